"""PaliGemma 2 and Gemma 3 in JAX. `vlm.py` is the door: `VLM.load`, and the functions on its parameters."""
