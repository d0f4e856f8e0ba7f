"""Images -> a trained auditor: python train.py [--help]."""

from auditdm_jax.__main__ import main

if __name__ == "__main__":
    main("train")
