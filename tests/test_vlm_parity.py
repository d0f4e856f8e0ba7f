"""Both families against transformers on small random models, in float32."""

import dataclasses
import json
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny_vlm
import torch
from PIL import Image
from safetensors.numpy import load_file, save_file
from transformers import AutoConfig, AutoModelForImageTextToText

from auditdm_jax.models import convert, gemma
from auditdm_jax.models.hf_config import config_from_hf, load_configs
from auditdm_jax.models.multimodal import preprocess_on_device
from auditdm_jax.models.vlm import VLM, encode_images, hidden_states, init_params, unembed
from auditdm_jax.sampling import Prompt, sample

MIXED = ["sliding_attention", "full_attention", "sliding_attention"]
LINEAR = {
    "full_attention": {"rope_type": "linear", "rope_theta": 1e4, "factor": 8.0},
    "sliding_attention": {"rope_type": "default", "rope_theta": 1e2},
}
CONFIGS = {
    "paligemma, 2 queries a key": lambda: tiny_vlm.hf_config("paligemma"),
    "paligemma, one key head, no caps": lambda: tiny_vlm.hf_config(
        "paligemma", text={"num_key_value_heads": 1, "attn_logit_softcapping": None, "final_logit_softcapping": None}
    ),
    "paligemma, short window, tight caps, 9 patches": lambda: tiny_vlm.hf_config(
        "paligemma",
        text={
            "num_key_value_heads": 4,
            "sliding_window": 4,
            "attn_logit_softcapping": 2.0,
            "final_logit_softcapping": 3.0,
        },
        vision={"image_size": 48, "patch_size": 16},
    ),
    "gemma3, 2 queries a key, pooled image": lambda: tiny_vlm.hf_config("gemma3"),
    "gemma3, short window, linear RoPE": lambda: tiny_vlm.hf_config(
        "gemma3", text={"num_key_value_heads": 1, "sliding_window": 4, "layer_types": MIXED, "rope_parameters": LINEAR}
    ),
    "gemma3, equal heads, image not pooled": lambda: tiny_vlm.hf_config(
        "gemma3",
        text={"num_key_value_heads": 4, "head_dim": 8, "layer_types": MIXED, "sliding_window": 7},
        vision={"image_size": 24, "patch_size": 8},
        image_tokens=9,
    ),
}


@pytest.fixture(scope="module", params=CONFIGS)
def pair(request, tmp_path_factory):
    """The same random weights in transformers and, through a saved directory, in ours."""
    model = tiny_vlm.hf_model(CONFIGS[request.param]())
    directory = tmp_path_factory.mktemp("model")
    tiny_vlm.save(model, directory)
    return model, VLM.load(directory)


def hf_logits(model, batch) -> np.ndarray:
    with torch.no_grad():
        return model(**{name: torch.tensor(array) for name, array in batch.items()}).logits.numpy()


@pytest.mark.parametrize("side", ["left", "right"])
def test_logits(pair, side):
    model, vlm = pair
    batch = tiny_vlm.inputs(model.config, lengths=(11, 6), side=side, suffix=4)
    real = batch["attention_mask"] == 1
    ours = np.asarray(vlm.logits(**batch))
    assert ours.dtype == np.float32
    np.testing.assert_allclose(ours[real], hf_logits(model, batch)[real], atol=2e-5)
    tensors = {name: torch.tensor(array) for name, array in batch.items()}  # the processor's return_tensors="pt"
    np.testing.assert_array_equal(vlm.logits(**tensors), ours)


def test_greedy_generation(pair):
    """Cached decoding against transformers' own, token for token, with an end token that does occur."""
    model, vlm = pair
    batch = tiny_vlm.inputs(model.config, lengths=(11, 6), side="left")
    forbidden = list(vlm.config.forbidden_token_ids)

    def theirs(end: int) -> np.ndarray:
        with torch.no_grad():
            ids = model.generate(
                **{name: torch.tensor(array) for name, array in batch.items()},
                max_new_tokens=9,
                do_sample=False,
                eos_token_id=end,
                pad_token_id=0,
                suppress_tokens=forbidden,
            )
        ids = ids[:, batch["input_ids"].shape[1] :].numpy()
        return np.pad(ids, ((0, 0), (0, 9 - ids.shape[1])))

    end = int(theirs(end=59)[0, 3])
    config = dataclasses.replace(vlm.config, eos_token_ids=(end,))
    features = encode_images(vlm.params, config, jnp.asarray(batch["pixel_values"]))
    settings = {"num_generations": 1, "max_new_tokens": 9, "temperature": 0.0}
    for side in ("left", "right"):
        padded = tiny_vlm.inputs(model.config, lengths=(11, 6), side=side)
        prompt = Prompt(jnp.asarray(padded["input_ids"]), jnp.asarray(padded["attention_mask"] == 1))
        ours = sample(vlm.params, config, prompt, features, jax.random.key(0), **settings)
        np.testing.assert_array_equal(np.asarray(ours.ids[:, 0]), theirs(end))


def test_saved_directory_gives_transformers_the_same_logits(pair, tmp_path):
    model, vlm = pair
    vlm.save(tmp_path)
    # The Auto class finds the model by what config.json says of itself.
    again = AutoModelForImageTextToText.from_pretrained(tmp_path).eval()
    assert type(again) is type(model)
    assert AutoConfig.from_pretrained(tmp_path).architectures == [type(model).__name__]
    batch = tiny_vlm.inputs(model.config)
    np.testing.assert_array_equal(hf_logits(again, batch), hf_logits(model, batch))
    assert VLM.load(tmp_path).config == vlm.config


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("paligemma, short window, tight caps, 9 patches", {"attention_softcap": None}),
        ("paligemma, short window, tight caps, 9 patches", {"final_softcap": None}),
        ("paligemma, short window, tight caps, 9 patches", {"sliding_window": None}),
        ("gemma3, short window, linear RoPE", {"sliding_window": None}),
        ("gemma3, short window, linear RoPE", {"rope_factor": (1.0, 1.0)}),
        ("gemma3, short window, linear RoPE", {"rope_theta": (1e4, 1e4)}),
        ("gemma3, short window, linear RoPE", {"local_layers": (True, True, True)}),
        ("gemma3, short window, linear RoPE", {"qk_norm": False}),
    ],
)
def test_every_variant_changes_the_logits(name, change):
    """Else the parity above would not show that it is computed."""
    config = CONFIGS[name]()
    vlm = VLM.from_config(config, None, jax.random.key(0))
    batch = tiny_vlm.inputs(config, lengths=(11,), suffix=4)
    before = vlm.logits(**batch)
    vlm.config = dataclasses.replace(vlm.config, text=dataclasses.replace(vlm.config.text, **change))
    assert np.abs(vlm.logits(**batch) - before).max() > 1e-2


def test_old_spellings_of_the_configuration(tmp_path):
    """What the published Gemma 3 files say, read like its present form."""
    new = tiny_vlm.hf_config("gemma3", text={"layer_types": MIXED, "rope_parameters": LINEAR})
    old = json.loads(new.to_json_string())
    text = old["text_config"]
    del text["rope_parameters"], text["layer_types"]
    text |= {"rope_theta": 1e4, "rope_scaling": {"rope_type": "linear", "factor": 8.0}}
    text |= {"rope_local_base_freq": 1e2, "sliding_window_pattern": 2}
    (tmp_path / "config.json").write_text(json.dumps(old))
    assert config_from_hf(load_configs(tmp_path)[0]) == config_from_hf(new)


SPELLINGS = {
    "published": lambda name: name,
    "current transformers": lambda name: name.replace("vision_tower.vision_model.", "vision_tower."),
    "in memory": lambda name: (
        "model."
        + name.replace("vision_tower.vision_model.", "vision_tower.").replace(
            "language_model.model.", "language_model."
        )
    ),
    "prefixed": lambda name: "model." + name,
}


@pytest.mark.parametrize("spelling", SPELLINGS)
@pytest.mark.parametrize("family", ["paligemma", "gemma3"])
def test_layouts_of_names(family, spelling, tmp_path):
    vlm = tiny_vlm.ours(family)
    vlm.save(tmp_path)
    file = tmp_path / "model.safetensors"
    tensors = {SPELLINGS[spelling](name): array for name, array in load_file(file).items()}
    tensors["lm_head.weight"] = np.asarray(vlm.params["text"]["embedding"])  # a tied head, written out
    save_file(tensors, file)
    jax.tree.map(np.testing.assert_array_equal, VLM.load(tmp_path).params, vlm.params)


def test_shards(tmp_path, monkeypatch):
    vlm = tiny_vlm.ours("gemma3")
    vlm.save(tmp_path)
    monkeypatch.setattr(convert, "SHARD_BYTES", 50_000)
    vlm.save(tmp_path)
    assert len(list(tmp_path.glob("model-*.safetensors"))) > 2
    assert not (tmp_path / "model.safetensors").exists()  # the single file of the first save
    jax.tree.map(np.testing.assert_array_equal, VLM.load(tmp_path).params, vlm.params)
    monkeypatch.undo()
    vlm.save(tmp_path)
    assert [path.name for path in tmp_path.glob("*.safetensors*")] == ["model.safetensors"]


@pytest.mark.parametrize("family", ["paligemma", "gemma3"])
def test_bfloat16(family, tmp_path):
    """Loaded as bfloat16, the same function to its precision; saved and loaded again, the same bits."""
    wide = tiny_vlm.ours(family)
    wide.save(tmp_path)
    narrow = VLM.load(tmp_path, dtype=jnp.bfloat16)
    assert {leaf.dtype for leaf in jax.tree.leaves(narrow.params)} == {jnp.dtype(jnp.bfloat16)}
    batch = tiny_vlm.inputs(wide.hf_config)
    real = batch["attention_mask"] == 1
    exact, rounded = wide.logits(**batch), narrow.logits(**batch)
    assert rounded.dtype == jnp.float32
    assert np.abs(exact - rounded)[real].max() < 0.05 * np.abs(exact).max()
    narrow.save(tmp_path)
    again = VLM.load(tmp_path, dtype=jnp.bfloat16)
    jax.tree.map(np.testing.assert_array_equal, again.params, narrow.params)


def test_embedding_factor_is_rounded_like_the_activations():
    """sqrt(2560) is 50.596; in bfloat16 it is 50.5, and Gemma 3 4B was trained with that."""
    ids = jnp.zeros((1, 1), jnp.int32)
    for dtype, factor in ((jnp.bfloat16, 50.5), (jnp.float32, 2560**0.5)):
        embedded = gemma.embed({"embedding": jnp.ones((1, 2560), dtype)}, ids)
        assert embedded.dtype == dtype
        np.testing.assert_allclose(np.asarray(embedded, np.float32), factor, rtol=1e-6)


@pytest.mark.parametrize("family", ["paligemma", "gemma3"])
def test_rematerialisation_changes_no_gradient(family):
    vlm = tiny_vlm.ours(family)
    batch = jax.tree.map(jnp.asarray, tiny_vlm.inputs(vlm.hf_config, lengths=(4, 2)))

    @partial(jax.jit, static_argnums=1)
    def gradient(params, remat):
        def loss(params):
            features = encode_images(params, vlm.config, batch["pixel_values"], remat=remat)
            mask = batch["attention_mask"] == 1
            x = hidden_states(params, vlm.config, batch["input_ids"], features, mask, remat=remat)
            return jnp.sum(unembed(params, vlm.config, x) ** 2)

        return jax.grad(loss)(params)

    plain, again = gradient(vlm.params, False), gradient(vlm.params, True)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-3, rtol=1e-3), plain, again)


def test_a_deep_model_is_traced_as_fast_as_a_shallow_one():
    """Beyond the depth that is unrolled, the program does not grow with the layers."""

    def program_size(depth: int) -> int:
        config = tiny_vlm.hf_config(
            "gemma3", text={"num_hidden_layers": depth, "layer_types": None}, vision={"num_hidden_layers": depth}
        )
        ours = config_from_hf(config)
        shapes = jax.eval_shape(partial(init_params, config=ours), jax.random.key(0))
        batch = jax.tree.map(jnp.asarray, tiny_vlm.inputs(config))

        def forward(params):
            features = encode_images(params, ours, batch["pixel_values"])
            return hidden_states(params, ours, batch["input_ids"], features, batch["attention_mask"] == 1)

        lines = str(jax.make_jaxpr(forward)(shapes)).splitlines()
        return sum("literal" not in line for line in lines)

    assert program_size(12) == program_size(62)


@pytest.mark.parametrize("family", ["paligemma", "gemma3"])
def test_pixels_equal_the_processors(family, tmp_path):
    """Arrays, PIL images and files of any size and mode; and on the device at the model's own size."""
    vlm = tiny_vlm.ours(family)
    rng = np.random.default_rng(0)
    shapes = ((48, 64), (32, 32), (20, 90))
    arrays = [rng.integers(0, 256, (*shape, 3), np.uint8) for shape in shapes]
    Image.fromarray(arrays[1]).save(tmp_path / "image.png")
    grey = Image.fromarray(arrays[2]).convert("L")
    text = "<image>" if family == "paligemma" else "<start_of_image>"
    images = [Image.fromarray(arrays[0]), Image.open(tmp_path / "image.png"), grey]
    theirs = vlm.processor(images=[[i] for i in images], text=[text] * 3, return_tensors="np")["pixel_values"]
    ours = vlm.pixel_values([arrays[0], tmp_path / "image.png", grey])
    np.testing.assert_array_equal(ours, theirs)
    np.testing.assert_allclose(preprocess_on_device(vlm.config, jnp.asarray(arrays[1][None])), theirs[1:2], atol=1e-6)
