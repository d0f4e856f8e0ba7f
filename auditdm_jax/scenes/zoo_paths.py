"""[host] Names of models: the zoo's short ones, checkpoint directories, hub ids."""

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from auditdm_jax.errors import UserError, one_line

if TYPE_CHECKING:
    from auditdm_jax.models.vlm import VLM

ZOO = Path(__file__).parent / "zoo_checkpoints"
"""Where the shipped checkpoints lie, a directory each."""


def zoo_names() -> list[str]:
    """The zoo's members that are there, in alphabetical order."""
    return sorted(path.parent.name for path in ZOO.glob("*/config.json"))


def same_model(one: str, other: str) -> bool:
    """Whether two names are of one model: its zoo name and its directory, or two ways to write a path."""

    def place(name: str) -> str | Path:
        path = ZOO / name if name in zoo_names() else Path(os.path.expanduser(name))
        return path.resolve() if path.exists() else name

    return place(one) == place(other)


def load_model(name: str, dtype: Any = "float32") -> "VLM":
    """The model of a zoo name, a checkpoint directory or a hub id "owner/name".

    Raises UserError if there is no such model, or it is damaged or of another architecture.
    """
    from auditdm_jax.models.vlm import VLM  # takes seconds: who only compares names does not wait for it

    return VLM.load(model_path(name), dtype)


def model_path(name: str) -> str | Path:
    """Where a model of that name lies, or its hub id; a zoo name comes first: write `./verifier` for a directory of
    your own that has one. Raises UserError if it can be none of these.
    """
    members = zoo_names()
    if name in members:
        return ZOO / name
    if "/" not in name and not Path(os.path.expanduser(name)).exists():
        there = f"the zoo has {', '.join(members)}" if members else "the zoo has not been built"
        raise UserError(
            f"no model is called {one_line(name, 80)!r} ({there}); give one of the zoo's names, "
            "a checkpoint directory or a hub id such as owner/name"
        )
    return name


def pipeline_path(name: str) -> str | Path:
    """The directory of the zoo's diffusion pipeline of that name, else the name: a directory or a hub id."""
    return ZOO / name if "/" not in name and (ZOO / name / "model_index.json").exists() else name
