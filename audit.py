"""A trained auditor -> what the target is bad at: python audit.py [--help]."""

from auditdm_jax.__main__ import main

if __name__ == "__main__":
    main("audit")
