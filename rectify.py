"""Discoveries -> a repaired target, with evaluations before and after: python rectify.py [--help]."""

from auditdm_jax.cli import rectify

if __name__ == "__main__":
    rectify()
