"""Discoveries -> a repaired target, with evaluations before and after: python rectify.py [--help]."""

from auditdm_jax.__main__ import main

if __name__ == "__main__":
    main("rectify")
