"""A trained auditor -> what the target is bad at: python audit.py [--help]."""

from auditdm_jax.cli import audit

if __name__ == "__main__":
    audit()
