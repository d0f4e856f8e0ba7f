"""Discoveries -> a repaired target, with evaluations before and after: python rectify.py [--help]."""

from auditdm_jax.huge_pages import with_huge_pages

if __name__ == "__main__":
    with_huge_pages()
    from auditdm_jax.cli import rectify  # only now, for this loads JAX

    rectify()
