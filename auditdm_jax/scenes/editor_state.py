"""Checkpoints of the editor's training in one safetensors file: weights, optimizer moments, and how far it is."""

import json
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file

from auditdm_jax.errors import UserError
from auditdm_jax.files import atomic_file

Modules = dict[str, torch.nn.Module]
# Of a training that goes on, what may be changed.
_MAY_DIFFER = {"vae_steps", "decoder_steps", "steps", "log_every"}


def save(path: Path, modules: Modules, optimizer: torch.optim.Optimizer, settings: dict, step: int) -> None:
    """Writes everything that `restore` needs, atomically. step: how many were made."""
    tensors = {
        f"{name}/{key}": tensor for name, module in modules.items() for key, tensor in module.state_dict().items()
    }
    for index, moments in optimizer.state_dict()["state"].items():
        tensors |= {f"optimizer/{index}/{key}": torch.as_tensor(moment) for key, moment in moments.items()}
    # T5 has its embedding under two names, and a file takes each tensor once.
    copies = {name: tensor.detach().clone().contiguous() for name, tensor in tensors.items()}
    with atomic_file(path) as draft:
        save_file(copies, draft, {"step": str(step), "settings": json.dumps(_fixed(settings))})


def restore(path: Path, modules: Modules, optimizer: torch.optim.Optimizer, settings: dict) -> int:
    """Loads a checkpoint, if there is one, and returns how many steps were made.

    Raises UserError if it is of a training with other settings, or damaged.
    """
    if not path.exists():
        return 0
    try:
        with safe_open(path, "pt") as file:
            metadata = file.metadata()
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        step, saved = int(metadata["step"]), json.loads(metadata["settings"])
    except Exception as error:  # safetensors has an error type of its own for each damage
        raise UserError(f"{path} cannot be read ({error}); delete it and run again") from None
    if saved != _fixed(settings):
        raise UserError(f"{path} is of a training with other settings; delete it, or choose another work folder")
    for name, module in modules.items():
        prefix = f"{name}/"
        module.load_state_dict({key[len(prefix) :]: value for key, value in tensors.items() if key.startswith(prefix)})
    moments: dict[int, dict[str, torch.Tensor]] = {}
    for name, tensor in tensors.items():
        if name.startswith("optimizer/"):
            _, index, key = name.split("/")
            moments.setdefault(int(index), {})[key] = tensor
    optimizer.load_state_dict(optimizer.state_dict() | {"state": moments})
    return step


def _fixed(settings: dict) -> dict:
    """The settings that a resumed training must share, as JSON gives them back."""
    return json.loads(json.dumps({name: value for name, value in settings.items() if name not in _MAY_DIFFER}))
