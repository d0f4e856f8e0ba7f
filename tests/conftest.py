"""Settings of every test: no network, one device, strict arithmetic, shapes checked against annotations."""

import os

# Set before JAX and the hub's client are first imported. `JAX_PLATFORMS=cuda,cpu pytest -m gpu` overrides.
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # there JAX leaves memory for torch
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
# Several tests compile the same programs.
_CACHE = os.path.join(os.path.dirname(__file__), "..", ".pytest_cache", "xla")
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", _CACHE)

from hypothesis import settings  # noqa: E402

# Compilation inside an example makes its first run slow, not wrong; the same examples on every machine.
settings.register_profile("repository", deadline=None, derandomize=True)
settings.load_profile("repository")
