"""The command line: `auditdm train | audit | rectify`, and the same three for the scripts at the top of the project."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

# Read when JAX is imported. One card is shared by JAX and, for image editing, PyTorch: JAX must not take it all. What
# was compiled once is kept for the next run.
os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
_CACHE = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "auditdm_jax"
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(_CACHE))

import tyro  # noqa: E402

from auditdm_jax.config import AuditConfig, RectifyConfig, TrainConfig  # noqa: E402
from auditdm_jax.errors import run_cli  # noqa: E402

COMMANDS: dict[str, Callable[..., Any]] = {"train": TrainConfig, "audit": AuditConfig, "rectify": RectifyConfig}


def _do(config: Any) -> None:
    command: Callable[[Any], object]
    if isinstance(config, TrainConfig):  # who asks for help does not wait for the models' code
        from auditdm_jax.training import train as command
    elif isinstance(config, AuditConfig):
        from auditdm_jax.audit import main as command
    else:
        from auditdm_jax.rectify import rectify as command
    command(config)


def main(command: str | None = None) -> None:
    """One of `COMMANDS`, by default the one that is typed first."""

    def settings() -> Any:
        if command is None:
            return tyro.extras.subcommand_cli_from_dict(COMMANDS)
        return tyro.cli(COMMANDS[command], description=COMMANDS[command].__doc__)

    run_cli(lambda: _do(settings()))
