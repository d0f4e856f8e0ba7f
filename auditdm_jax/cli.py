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


def _train(config: TrainConfig) -> None:
    from auditdm_jax.training import train

    train(config)


def _audit(config: AuditConfig) -> None:
    from auditdm_jax.audit import main

    main(config)


def _rectify(config: RectifyConfig) -> None:
    from auditdm_jax.rectify import rectify

    rectify(config)


def _run(config_type: type, command: Callable[[Any], None]) -> None:
    run_cli(lambda: command(tyro.cli(config_type, description=config_type.__doc__)))


def train() -> None:
    """`python train.py`."""
    _run(TrainConfig, _train)


def audit() -> None:
    """`python audit.py`."""
    _run(AuditConfig, _audit)


def rectify() -> None:
    """`python rectify.py`."""
    _run(RectifyConfig, _rectify)


def main() -> None:
    """`auditdm train|audit|rectify`."""
    commands: dict[str, Callable[..., Any]] = {"train": TrainConfig, "audit": AuditConfig, "rectify": RectifyConfig}
    runners: dict[type, Callable[[Any], None]] = {TrainConfig: _train, AuditConfig: _audit, RectifyConfig: _rectify}

    def run() -> None:
        config: Any = tyro.extras.subcommand_cli_from_dict(commands)
        runners[type(config)](config)

    run_cli(run)
