"""[host] Checkpoints in Hugging Face's layout <-> our parameter pytree and `VLMConfig`.

Three spellings of parameter names are in use: the published hub files' (`vision_tower.vision_model.…`,
`language_model.model.…`), the one current transformers writes (`vision_tower.…`) and its in-memory one
(`model.language_model.…`). All are reduced to one short form before look-up. Only safetensors are read.
"""

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from auditdm_jax.errors import UserError
from auditdm_jax.models.layers import Params

SHARD_BYTES = 5 * 10**9
METADATA = {"format": "pt"}  # transformers asks for it
INDEX = "model.safetensors.index.json"

# Ours -> theirs. `{}` stands for the layer; names without it occur once.
_LINEAR = {"kernel": "weight", "bias": "bias"}
_NORM = {"scale": "weight", "bias": "bias"}
_VISION_LAYER = {
    "attention_norm": ("layer_norm1", _NORM),
    "q": ("self_attn.q_proj", _LINEAR),
    "k": ("self_attn.k_proj", _LINEAR),
    "v": ("self_attn.v_proj", _LINEAR),
    "o": ("self_attn.out_proj", _LINEAR),
    "mlp_norm": ("layer_norm2", _NORM),
    "up": ("mlp.fc1", _LINEAR),
    "down": ("mlp.fc2", _LINEAR),
}
_TEXT_LAYER = {
    "attention_norm": ("input_layernorm", _NORM),
    "q": ("self_attn.q_proj", _LINEAR),
    "k": ("self_attn.k_proj", _LINEAR),
    "v": ("self_attn.v_proj", _LINEAR),
    "o": ("self_attn.o_proj", _LINEAR),
    "q_norm": ("self_attn.q_norm", _NORM),
    "k_norm": ("self_attn.k_norm", _NORM),
    "post_attention_norm": ("post_attention_layernorm", _NORM),
    "mlp_norm": ("pre_feedforward_layernorm", _NORM),
    "gate": ("mlp.gate_proj", _LINEAR),
    "up": ("mlp.up_proj", _LINEAR),
    "down": ("mlp.down_proj", _LINEAR),
    "post_mlp_norm": ("post_feedforward_layernorm", _NORM),
}
_OUTSIDE_LAYERS = {
    "vision/patch/kernel": "vision_tower.vision_model.embeddings.patch_embedding.weight",
    "vision/patch/bias": "vision_tower.vision_model.embeddings.patch_embedding.bias",
    "vision/position": "vision_tower.vision_model.embeddings.position_embedding.weight",
    "vision/norm/scale": "vision_tower.vision_model.post_layernorm.weight",
    "vision/norm/bias": "vision_tower.vision_model.post_layernorm.bias",
    "text/embedding": "language_model.model.embed_tokens.weight",
    "text/norm/scale": "language_model.model.norm.weight",
}
_PROJECTOR = {
    "paligemma": {
        "projector/kernel": "multi_modal_projector.linear.weight",
        "projector/bias": "multi_modal_projector.linear.bias",
    },
    "gemma3": {
        "projector/kernel": "multi_modal_projector.mm_input_projection_weight",
        "projector/norm/scale": "multi_modal_projector.mm_soft_emb_norm.weight",
    },
}


@dataclass(frozen=True)
class Entry:
    """One leaf of our tree and where it lives in a checkpoint.

    name: the published name, with `{}` for the layer if stacked. shape: theirs, of one layer. to_ours /
    to_theirs turn one layer's array into the other form (transposes and reshapes only).
    """

    path: tuple[str, ...]
    name: str
    stacked: int
    shape: tuple[int, ...]
    to_ours: Callable[[np.ndarray], np.ndarray]
    to_theirs: Callable[[np.ndarray], np.ndarray]


def entries(family: str, template: Params) -> Iterator[Entry]:
    """The checkpoint entry of every leaf of `template`, a tree of arrays or shapes."""
    names = _OUTSIDE_LAYERS | _PROJECTOR[family]
    for keys, leaf in jax.tree_util.tree_leaves_with_path(template):
        path = tuple(key.key for key in keys)
        stacked = leaf.shape[0] if "layers" in path else 0
        if stacked:
            tower, _, part, kind = path
            table = _VISION_LAYER if tower == "vision" else _TEXT_LAYER
            stem, kinds = table[part]
            prefix = "vision_tower.vision_model.encoder" if tower == "vision" else "language_model.model"
            name = f"{prefix}.layers.{{}}.{stem}.{kinds[kind]}"
        else:
            name = names["/".join(path)]
        shape = tuple(leaf.shape[1:] if stacked else leaf.shape)
        if path == ("vision", "patch", "kernel"):
            side = round((shape[0] / 3) ** 0.5)
            theirs = (shape[1], 3, side, side)
            yield Entry(path, name, stacked, theirs, lambda a: a.reshape(len(a), -1).T, _unflatten(theirs))
        elif path[-1] == "kernel" and not name.endswith("mm_input_projection_weight"):
            yield Entry(path, name, stacked, shape[::-1], np.transpose, np.transpose)
        else:
            yield Entry(path, name, stacked, shape, _same, _same)


def _same(array: np.ndarray) -> np.ndarray:
    return array


def _unflatten(shape: tuple[int, ...]) -> Callable[[np.ndarray], np.ndarray]:
    return lambda array: array.T.reshape(shape)


def short_name(name: str) -> str:
    """Any of the three spellings -> one: `vision_tower.…`, `language_model.…`, `lm_head.…`."""
    name = name.removeprefix("model.")
    for old, new in (
        ("vision_tower.vision_model.", "vision_tower."),
        ("language_model.model.", "language_model."),
        ("language_model.lm_head.", "lm_head."),
    ):
        if name.startswith(old):
            name = new + name.removeprefix(old)
    return name


def load_params(directory: Path, family: str, template: Params, dtype: Any) -> Params:
    """Read the weights of a checkpoint directory into a tree shaped like `template`, as `dtype`.

    Raises UserError for missing, misshapen or unreadable tensors, naming the first.
    """
    files = _weight_files(directory)
    params: Params = {}
    for entry in entries(family, template):
        if entry.stacked:
            array = None
            for layer in range(entry.stacked):
                one = entry.to_ours(_read(directory, files, entry.name.format(layer), entry.shape))
                if array is None:
                    array = np.empty((entry.stacked, *one.shape), dtype)
                array[layer] = one
        else:
            array = entry.to_ours(_read(directory, files, entry.name, entry.shape)).astype(dtype)
        node = params
        for key in entry.path[:-1]:
            node = node.setdefault(key, {})
        node[entry.path[-1]] = jnp.asarray(array)
    _check_head(directory, files, params["text"]["embedding"])
    return params


def _weight_files(directory: Path) -> dict[str, tuple[Any, str]]:
    """Short name -> (open safetensors file, name in that file)."""
    if (directory / INDEX).exists():
        try:
            index = json.loads((directory / INDEX).read_text())
            paths = [directory / name for name in sorted(set(index["weight_map"].values()))]
        except (ValueError, KeyError, AttributeError, TypeError):
            raise UserError(f"{directory / INDEX} is damaged; copy the checkpoint again") from None
    else:
        paths = sorted(directory.glob("*.safetensors"))
    if not paths:
        found = "only pickled weights" if [*directory.glob("*.bin"), *directory.glob("*.pt*")] else "no weights"
        raise UserError(f"{directory} has {found}; save the model as safetensors (pickles are never read)")
    files: dict[str, tuple[Any, str]] = {}
    for path in paths:
        if not path.exists():
            raise UserError(f"{directory} lacks the shard {path.name} named in {INDEX}; copy the checkpoint again")
        try:
            opened = safe_open(path, framework="np")
        except (SafetensorError, OSError) as error:
            raise UserError(f"{path} cannot be read ({error}); copy the checkpoint again") from None
        files |= {short_name(name): (opened, name) for name in opened.keys()}  # noqa: SIM118, not a dict
    return files


def _read(directory: Path, files: dict[str, tuple[Any, str]], name: str, shape: tuple[int, ...]) -> np.ndarray:
    if short_name(name) not in files:
        raise UserError(f"{directory} has no tensor {name}; is it a complete checkpoint of this architecture?")
    opened, stored_name = files[short_name(name)]
    array = opened.get_tensor(stored_name)
    if array.shape != shape:
        raise UserError(
            f"{directory}: tensor {stored_name} has shape {array.shape} where config.json asks for {shape}; "
            "use the config.json that belongs to these weights"
        )
    return array


def _check_head(directory: Path, files: dict[str, tuple[Any, str]], embedding: Any) -> None:
    """Some files repeat the tied embedding as `lm_head`; a head of its own is not part of these families."""
    if "lm_head.weight" in files:
        opened, name = files["lm_head.weight"]
        head = opened.get_tensor(name)
        if head.shape != embedding.shape or not np.array_equal(head.astype(embedding.dtype), np.asarray(embedding)):
            raise UserError(f"{directory} has an output head of its own ({name}); only tied heads are supported")


def save_params(directory: Path, family: str, params: Params) -> None:
    """Write the tree as safetensors under the published names: one file, or 5 GB shards with an index."""
    shards: list[dict[str, np.ndarray]] = [{}]
    size = total = 0
    for entry in entries(family, params):
        array: Any = params
        for key in entry.path:
            array = array[key]
        for layer in range(max(entry.stacked, 1)):
            one = entry.to_theirs(np.asarray(array[layer] if entry.stacked else array))
            if size and size + one.nbytes > SHARD_BYTES:
                shards.append({})
                size = 0
            shards[-1][entry.name.format(layer)] = np.ascontiguousarray(one)
            size, total = size + one.nbytes, total + one.nbytes
    if len(shards) == 1:
        save_file(shards[0], directory / "model.safetensors", metadata=METADATA)
        return
    weight_map: dict[str, str] = {}
    for number, shard in enumerate(shards, start=1):
        file_name = f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        save_file(shard, directory / file_name, metadata=METADATA)
        weight_map |= dict.fromkeys(shard, file_name)
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    (directory / INDEX).write_text(json.dumps(index, indent=2))
