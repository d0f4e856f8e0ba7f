"""Images -> a trained auditor: python train.py [--help]."""

from auditdm_jax.huge_pages import with_huge_pages

if __name__ == "__main__":
    with_huge_pages()
    from auditdm_jax.cli import train  # only now, for this loads JAX

    train()
