"""Find, list and repair what a vision-language model gets wrong, with an auditor trained in JAX."""

__version__ = "0.1.0"
