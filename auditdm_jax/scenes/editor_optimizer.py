"""What trains the editor: Muon, as the zoo's but for torch and for convolutions too, and checkpoints.

A checkpoint is one safetensors file: weights, the optimizer's moments, and how far the training is.
"""

import json
from collections.abc import Iterable
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file

from auditdm_jax.errors import UserError
from auditdm_jax.files import atomic_file

Modules = dict[str, torch.nn.Module]
# Of a training that goes on, what may be changed.
_MAY_DIFFER = {"vae_steps", "decoder_steps", "steps", "log_every", "examined"}

# Of the momentum and of Adam's two means, and the coefficients that Muon's authors chose.
_MOMENTUM, _MEAN, _SQUARE = 0.95, 0.9, 0.98
_A, _B, _C, _ITERATIONS = 3.4445, -4.7750, 2.0315, 5
# Root mean square of an update at rate 1, that of Adam in practice.
_SCALE = 0.2


class Muon(torch.optim.Optimizer):
    """Matrices and kernels move by their orthogonalised momentum; embeddings, biases and norms by Adam, as far.

    Every update has a root mean square of 0.2 times the rate, about.
    """

    def __init__(self, modules: Iterable[torch.nn.Module], lr: float):
        parts = [part for module in modules for part in module.modules()]
        words = {id(part.weight) for part in parts if isinstance(part, torch.nn.Embedding)}
        every = {id(weight): weight for part in parts for weight in part.parameters(recurse=False)}
        matrices = [weight for key, weight in every.items() if weight.ndim > 1 and key not in words]
        others = [weight for key, weight in every.items() if weight.ndim < 2 or key in words]
        groups = [{"params": matrices, "orthogonal": True}, {"params": others, "orthogonal": False}]
        super().__init__(groups, {"lr": lr})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Moves every parameter that has a gradient."""
        for group in self.param_groups:
            update_of = self._orthogonal if group["orthogonal"] else self._adam
            for weight in group["params"]:
                if weight.grad is not None:
                    weight.sub_(_SCALE * group["lr"] * update_of(weight))

    def _orthogonal(self, weight: torch.Tensor) -> torch.Tensor:
        state = self.state[weight]
        momentum = state.setdefault("momentum", torch.zeros_like(weight))
        momentum.mul_(_MOMENTUM).add_(weight.grad)
        matrix = (weight.grad + _MOMENTUM * momentum).flatten(1)
        tall = matrix.shape[0] > matrix.shape[1]
        x = matrix.T if tall else matrix
        x = x / (x.norm() + 1e-7)
        for _ in range(_ITERATIONS):
            square = x @ x.T
            x = _A * x + (_B * square + _C * square @ square) @ x
        return (x.T if tall else x).reshape(weight.shape) * max(matrix.shape) ** 0.5

    def _adam(self, weight: torch.Tensor) -> torch.Tensor:
        state = self.state[weight]
        if not state:
            state |= {"step": torch.zeros(()), "mean": torch.zeros_like(weight), "square": torch.zeros_like(weight)}
        state["step"] += 1
        state["mean"].lerp_(weight.grad, 1 - _MEAN)
        state["square"].lerp_(weight.grad**2, 1 - _SQUARE)
        mean = state["mean"] / (1 - _MEAN ** float(state["step"]))
        square = state["square"] / (1 - _SQUARE ** float(state["step"]))
        return mean / (square.sqrt() + 1e-8)


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
    if _fixed(saved) != _fixed(settings):
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
