"""Random models of the embedded world's two families, as small as they can be: they compile in seconds."""

from pathlib import Path

from PIL import Image

from auditdm_jax.scenes.members import Member, new_model

SMALL = dict(steps=1, width=32, text_layers=1, heads=1, mlp=32, vision_width=32, vision_layers=1)


def tiny(name: str, family: str, seed: int):
    return new_model(Member(name, family, seed=seed, **SMALL))


def save_tiny_zoo(folder: Path) -> dict[str, str]:
    """A directory for an auditor, a target and two references; returns their paths by role."""
    families = {"auditor": "gemma3", "target": "paligemma", "a": "gemma3", "b": "paligemma"}
    for seed, (name, family) in enumerate(families.items()):
        tiny(name, family, seed).save(folder / name)
    return {name: str(folder / name) for name in families}


def save_pictures(folder: Path, count: int, first: int = 0) -> Path:
    """A new folder of `count` small images; the red of each is its number, from `first` on."""
    folder.mkdir(parents=True)
    for i in range(first, first + count):
        Image.new("RGB", (20, 10), (i, 0, 0)).save(folder / f"{i:03}.png")
    return folder
