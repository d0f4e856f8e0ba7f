"""Images -> a trained auditor: python train.py [--help]."""

from auditdm_jax.cli import train

if __name__ == "__main__":
    train()
