"""The command `auditdm train | audit | rectify`, also as `python -m auditdm_jax`."""

from auditdm_jax.huge_pages import with_huge_pages


def main(command: str | None = None) -> None:
    with_huge_pages()
    from auditdm_jax import cli  # only now, for this loads JAX

    cli.main(command)


if __name__ == "__main__":
    main()
