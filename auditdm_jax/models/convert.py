"""[host] Checkpoints in Hugging Face's layout <-> our parameter pytree and `VLMConfig`.

Three spellings of parameter names are in use: the published hub files' (`vision_tower.vision_model.…`,
`language_model.model.…`), the one current transformers writes (`vision_tower.…`) and its in-memory one
(`model.language_model.…`). All are reduced to one short form before look-up. Only safetensors are read.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from huggingface_hub import split_state_dict_into_shards_factory
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from auditdm_jax.errors import UserError
from auditdm_jax.models.layers import Params

SHARD_BYTES = 5 * 10**9
METADATA = {"format": "pt"}  # transformers asks for it
INDEX = "model.safetensors.index.json"

# Ours -> theirs. `{}` stands for the layer; names without it occur once.
_KINDS = {"kernel": "weight", "scale": "weight", "bias": "bias"}
_VISION_LAYER = {
    "attention_norm": "layer_norm1",
    "q": "self_attn.q_proj",
    "k": "self_attn.k_proj",
    "v": "self_attn.v_proj",
    "o": "self_attn.out_proj",
    "mlp_norm": "layer_norm2",
    "up": "mlp.fc1",
    "down": "mlp.fc2",
}
_TEXT_LAYER = {
    "attention_norm": "input_layernorm",
    "q": "self_attn.q_proj",
    "k": "self_attn.k_proj",
    "v": "self_attn.v_proj",
    "o": "self_attn.o_proj",
    "q_norm": "self_attn.q_norm",
    "k_norm": "self_attn.k_norm",
    "post_attention_norm": "post_attention_layernorm",
    "mlp_norm": "pre_feedforward_layernorm",
    "gate": "mlp.gate_proj",
    "up": "mlp.up_proj",
    "down": "mlp.down_proj",
    "post_mlp_norm": "post_feedforward_layernorm",
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


class Entry(NamedTuple):
    """One leaf of our tree, an array or a shape, and where it lives in a checkpoint.

    name: the published name, with `{}` for the layer if stacked. stacked: how many layers, or 0. shape: theirs, of one
    layer. turned: ours is their transpose, their later axes taken as one.
    """

    leaf: Any
    name: str
    stacked: int
    shape: tuple[int, ...]
    turned: bool

    def to_ours(self, array: np.ndarray) -> np.ndarray:
        """One layer's array of a checkpoint in our form."""
        return array.reshape(len(array), -1).T if self.turned else array

    def to_theirs(self, array: np.ndarray) -> np.ndarray:
        """The inverse."""
        return array.T.reshape(self.shape) if self.turned else array


def entries(family: str, template: Params) -> Iterator[Entry]:
    """The checkpoint entry of every leaf of `template`, a tree of arrays or shapes."""
    names = _OUTSIDE_LAYERS | _PROJECTOR[family]
    for keys, leaf in jax.tree_util.tree_leaves_with_path(template):
        path = tuple(key.key for key in keys)
        stacked = leaf.shape[0] if "layers" in path else 0
        shape = tuple(leaf.shape[1:] if stacked else leaf.shape)
        if stacked:
            tower, _, part, kind = path
            table = _VISION_LAYER if tower == "vision" else _TEXT_LAYER
            prefix = "vision_tower.vision_model.encoder" if tower == "vision" else "language_model.model"
            name = f"{prefix}.layers.{{}}.{table[part]}.{_KINDS[kind]}"
        else:
            name = names["/".join(path)]
        turned = path[-1] == "kernel" and not name.endswith("mm_input_projection_weight")
        if path == ("vision", "patch", "kernel"):
            side = round((shape[0] / 3) ** 0.5)
            shape = (shape[1], 3, side, side)
        elif turned:
            shape = shape[::-1]
        yield Entry(leaf, name, stacked, shape, turned)


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
    leaves = []
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
        leaves.append(jnp.asarray(array))
    params = jax.tree.unflatten(jax.tree.structure(template), leaves)
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
    state = {}
    for entry in entries(family, params):
        for layer in range(max(entry.stacked, 1)):
            one = np.asarray(entry.leaf[layer] if entry.stacked else entry.leaf)
            state[entry.name.format(layer)] = np.ascontiguousarray(entry.to_theirs(one))
    split = split_state_dict_into_shards_factory(
        state,
        get_storage_size=lambda array: array.nbytes,
        filename_pattern="model{suffix}.safetensors",
        max_shard_size=SHARD_BYTES,
    )
    for file_name, names in split.filename_to_tensors.items():
        save_file({name: state[name] for name in names}, directory / file_name, metadata=METADATA)
    if split.is_sharded:
        index = {"metadata": split.metadata, "weight_map": split.tensor_to_filename}
        (directory / INDEX).write_text(json.dumps(index, indent=2))
