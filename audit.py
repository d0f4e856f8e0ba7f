"""A trained auditor -> what the target is bad at: python audit.py [--help]."""

from auditdm_jax.huge_pages import with_huge_pages

if __name__ == "__main__":
    with_huge_pages()
    from auditdm_jax.cli import audit  # only now, for this loads JAX

    audit()
