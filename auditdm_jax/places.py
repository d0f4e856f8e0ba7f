"""[host] Names of images and models, as they are found from another directory too."""

import glob
import os
from pathlib import Path

from auditdm_jax.scenes.zoo_paths import pipeline_path, zoo_names


def at_home(settings: object, *fields: str) -> None:
    """Writes out a leading ~ of some fields, a path each; one of nobody's home stays as it is."""
    for name in fields:
        if path := getattr(settings, name):
            object.__setattr__(settings, name, str(Path(os.path.expanduser(path))))


def model_from_anywhere(name: str) -> str:
    """The same model or pipeline, named so that a directory is found from another one too, and is no hub id there."""
    path = Path(os.path.expanduser(name))
    local = name and name not in zoo_names() and pipeline_path(name) == name and path.is_dir()
    return str(Path.cwd() / path) if local else name


def images_from_anywhere(images: tuple[str, ...]) -> tuple[str, ...]:
    """The same images, named so that they are found from another directory too."""

    def named(item: str) -> str:
        path, here = Path(os.path.expanduser(item)), str(Path.cwd())
        return str(Path(glob.escape(here) if glob.has_magic(item) and not path.exists() else here) / path)

    return tuple(item if item.startswith("hf://") else named(item) for item in images)


def name_from_anywhere(settings: object, *roles: str) -> None:
    """Names the models of some fields, each a name or several, so that they are found from another directory too."""
    for role in roles:
        value = getattr(settings, role)
        named = model_from_anywhere(value) if isinstance(value, str) else tuple(map(model_from_anywhere, value))
        object.__setattr__(settings, role, named)
