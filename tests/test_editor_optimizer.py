"""scenes/editor_optimizer.py: what moves how far, that it learns, and what goes on."""

import json
from dataclasses import asdict

import pytest
import torch
from safetensors.torch import load_file, save_file

from auditdm_jax.errors import UserError
from auditdm_jax.scenes.editor import EditorTraining
from auditdm_jax.scenes.editor_optimizer import Muon, restore, save


def moved(module: torch.nn.Module, rate: float = 1.0) -> dict[str, torch.Tensor]:
    """How one step from a random gradient moves each parameter."""
    before = {name: weight.detach().clone() for name, weight in module.named_parameters()}
    torch.manual_seed(0)
    for weight in module.parameters():
        weight.grad = torch.randn_like(weight)
    Muon([module], rate).step()
    return {name: weight.detach() - before[name] for name, weight in module.named_parameters()}


@pytest.mark.parametrize(
    "module",
    [
        torch.nn.Linear(24, 8),
        torch.nn.Linear(8, 24),
        torch.nn.Conv2d(4, 16, 3),
        torch.nn.Embedding(9, 4),
        torch.nn.LayerNorm(7),
    ],
)
def test_every_update_has_about_one_length(module):
    for update in moved(module, rate=3.0).values():
        assert 0.5 < update.square().mean().sqrt() / 0.6 < 1.3


def test_matrices_move_along_all_directions_alike():
    update = moved(torch.nn.Linear(24, 8))["weight"]
    singular = torch.linalg.svdvals(update / (0.2 * 24**0.5))
    assert 0.6 < singular.min() <= singular.max() < 1.3
    # A convolution is the matrix of its kernels; an embedding, whose rows are words, moves value by value.
    kernels = moved(torch.nn.Conv2d(4, 16, 3))["weight"].flatten(1)
    assert torch.linalg.svdvals(kernels / (0.2 * 36**0.5)).max() < 1.3
    torch.testing.assert_close(moved(torch.nn.Embedding(9, 4))["weight"].abs(), torch.full((9, 4), 0.2))


def test_it_minimises():
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(8, 32), torch.nn.Tanh(), torch.nn.Linear(32, 8))
    inputs = torch.randn(64, 8)
    wanted = inputs.flip(1)
    losses = []
    optimizer = Muon([model], 0.02)
    for _ in range(200):
        loss = (model(inputs) - wanted).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.05 * losses[0]


def test_what_only_sizes_the_exam_may_differ_when_it_goes_on(tmp_path):
    """A checkpoint of an earlier version tells of it among its settings, which is no matter either."""
    part = torch.nn.Linear(2, 2)
    optimizer = Muon([part], 0.1)
    settings = asdict(EditorTraining(examined=16))
    save(tmp_path / "new", {"part": part}, optimizer, settings, 7)
    tensors, told = load_file(tmp_path / "new"), {"step": "5", "settings": json.dumps(settings)}
    save_file(tensors, tmp_path / "old", told)
    more = asdict(EditorTraining(examined=400))
    assert restore(tmp_path / "new", {"part": part}, optimizer, more) == 7
    assert restore(tmp_path / "old", {"part": part}, optimizer, more) == 5
    for name in ("new", "old"):
        with pytest.raises(UserError, match="other settings"):
            restore(tmp_path / name, {"part": part}, optimizer, more | {"edits": 4})
