"""The renderer on tiny pipelines of every class it takes, random but real: what comes out, skips, and errors."""

import jax.numpy as jnp
import numpy as np
import pytest
import tiny_pipelines
import torch
from diffusers.pipelines.stable_diffusion import StableDiffusionSafetyChecker
from one_line import expect
from transformers import CLIPConfig, CLIPImageProcessorPil

from auditdm_jax import bridge
from auditdm_jax.counterfactuals import Renderer, _resized
from auditdm_jax.pipelines import FAMILIES

EDITORS = [name for name, family in FAMILIES.items() if family.edits]
GENERATORS = [name for name, family in FAMILIES.items() if family.generates]
SIDE = {"QwenImageEditPipeline": 128}  # others 32: a few latents each
PROMPTS = ["make it red", "a", "remove the square"]


@pytest.fixture(scope="session")
def load(tmp_path_factory):
    """Renderer.load by class name, of one directory a class, in few steps."""
    root = tmp_path_factory.mktemp("pipelines")

    def load(name, **settings):
        if not (root / name).exists():
            tiny_pipelines.save(name, root / name)
        return Renderer.load(root / name, **{"steps": 2, "device": "cpu"} | settings)

    return load


def pictures(count=3, height=32, width=32):
    """Each of one colour, with a brighter square."""
    images = np.zeros((count, height, width, 3), np.uint8)
    images[:] = np.random.default_rng(0).integers(0, 200, (count, 1, 1, 3))
    images[:, height // 4 : height // 2, width // 4 : width // 2] += 50
    return jnp.asarray(images)


def render(renderer, prompts, seeds, images=None):
    """The renderer's images, as numbers that can be subtracted: edits where there are images."""
    side = SIDE.get(renderer.name, 32)
    result = renderer.generate(prompts, seeds, side) if images is None else renderer.edit(images, prompts, seeds)
    assert result.dtype == jnp.uint8
    assert result.shape == (len(prompts), side, side, 3)
    return np.asarray(result).astype(int)


CASES = [(name, True) for name in EDITORS] + [(name, False) for name in GENERATORS]


@pytest.mark.parametrize(("name", "edit"), CASES)
def test_an_image_depends_on_its_own_inputs_only(load, name, edit):
    side = SIDE.get(name, 32)
    renderer = load(name, size=side)
    images = pictures(3, side, side) if edit else None
    together = render(renderer, PROMPTS, [5, 6, 7], images)
    assert together.std((1, 2, 3)).min() > 10  # or equality would mean little
    for i, prompt in enumerate(PROMPTS):
        alone = render(renderer, [prompt], [5 + i], images[i : i + 1] if edit else None)
        assert np.abs(together[i] - alone[0]).max() <= 1
    others = [render(renderer, ["longer, and brighter", *PROMPTS[1:]], [5, 6, 8], images)]
    if edit:
        others.append(render(renderer, PROMPTS, [5, 6, 7], images.at[0].set(255 - images[0])))
    for other in others:
        assert np.abs(together - other)[0].max() > 1  # another prompt, or image
        assert np.abs(together - other)[1].max() <= 1
    assert np.abs(together - others[0])[2].max() > 1  # another seed
    assert not renderer.counts.total()


def test_micro_batches_give_what_one_batch_gives(load, capsys):
    images = pictures()
    before = np.array(images)
    one, many = (
        render(load("FluxKontextPipeline", micro_batch_size=size), PROMPTS, [1, 2, 3], images) for size in (8, 2)
    )
    assert np.abs(one - many).max() <= 1
    np.testing.assert_array_equal(images, before)  # the pipeline had JAX's own memory
    shown = capsys.readouterr().err
    assert "editing" in shown
    assert "0/3" in shown  # what follows may be too fast to be drawn


def test_an_image_with_several_commands_is_encoded_once(load):
    """The pipeline's own way encodes it for each command; what it makes of them is the same, bit by bit."""
    renderer, prompts, encoded = load("FluxKontextPipeline"), [*PROMPTS, "a"], []
    images = pictures(2)[jnp.array([0, 0, 1, 0])]
    renderer.pipeline.vae.encoder.register_forward_hook(lambda _, inputs, __: encoded.append(len(inputs[0])))
    edited = render(renderer, prompts, [1, 2, 3, 4], images)
    assert encoded == [1, 1, 1]
    renderer._latents = lambda images: images
    np.testing.assert_array_equal(render(renderer, prompts, [1, 2, 3, 4], images), edited)
    assert encoded == [1] * 7


def test_qwen_renders_one_at_a_time_and_says_why(load):
    with pytest.warns(UserWarning, match="one image at a time: it shows"):
        assert load("QwenImageEditPipeline", micro_batch_size=2).micro_batch_size == 1


SIZES = [  # of the images, of the setting, and what the pipeline should look at and draw
    ("FluxKontextPipeline", (32, 48), None, (32, 48), (32, 48)),
    ("FluxKontextPipeline", (33, 47), (64, 80), (64, 80), (64, 80)),
    ("StableDiffusionInstructPix2PixPipeline", (32, 48), None, (32, 48), (32, 48)),
    ("StableDiffusionInstructPix2PixPipeline", (33, 47), 64, (64, 64), (64, 64)),
    ("QwenImageEditPipeline", (48, 24), None, (1408, 704), (1408, 704)),
    ("QwenImageEditPipeline", (48, 24), (128, 64), (1408, 704), (128, 64)),
]


@pytest.mark.parametrize(("name", "size", "setting", "looked_at", "drawn"), SIZES)
def test_pixels_keep_their_places(load, name, size, setting, looked_at, drawn):
    """With a decoder that returns what the encoder saw, an edit gives its input back."""
    images = pictures(1, *size)
    renderer = load(name, steps=1, size=setting)
    seen = []

    def mirror(module, inputs, output):
        picture = seen[0].reshape(1, 3, *looked_at)  # Qwen's has an axis of time
        assert output.shape[-2:] == drawn
        return (_resized((picture + 1) / 2, drawn) * 2 - 1).reshape(output.shape)

    renderer.pipeline.vae.encoder.register_forward_hook(lambda _, inputs, __: seen.append(inputs[0]))
    renderer.pipeline.vae.decoder.register_forward_hook(mirror)
    edited = renderer.edit(images, ["a"], [0])
    difference = np.abs(np.asarray(edited).astype(int) - images)
    assert difference.mean() < 2
    assert difference.max() <= (0 if looked_at == size else 40)  # resizing blurs edges


def test_sizes_of_generations(load):
    assert load("StableDiffusionPipeline").generate(["a"], [0]).shape == (1, 32, 32, 3)  # 4 latents by 8 pixels
    assert load("StableDiffusion3Pipeline").generate(["a"], [0]).shape == (1, 32, 32, 3)
    renderer = load("FluxPipeline", size=(32, 48))
    assert renderer.generate(["a"], [0]).shape == (1, 32, 48, 3)
    assert renderer.generate(["a"], [0], (16, 32)).shape == (1, 16, 32, 3)
    assert load("FluxKontextPipeline", steps=1)._own_size() == (1024, 1024)


REACHING = [(name, setting) for name in FAMILIES for setting in ("guidance", "steps")]


@pytest.mark.parametrize("name", FAMILIES)
def test_half_precision(load, name):
    side = SIDE.get(name, 32)
    images = pictures(2, side, side) if name in EDITORS else None
    renderer = load(name, size=side, steps=1, dtype="bfloat16")
    assert render(renderer, ["a", "b"], [0, 1], images).std() > 10
    assert not renderer.counts.total()


@pytest.mark.parametrize(("name", "setting"), [*REACHING, ("StableDiffusionInstructPix2PixPipeline", "image_guidance")])
def test_settings_reach_the_pipeline(load, name, setting):
    side = SIDE.get(name, 32)
    images = pictures(1, side, side) if name in EDITORS else None
    one, two = (render(load(name, size=side, **{setting: value}), ["a"], [0], images) for value in (1, 9))
    assert np.abs(one - two).max() > 1


def test_empty_prompts_are_skipped_and_counted(load):
    images = pictures(4)
    renderer = load("FluxKontextPipeline")
    edited = renderer.edit(images, ["", "make it red", " \n" * 600, "a"], [0, 1, 2, 3])
    same = [(edited[i] == images[i]).all() for i in range(4)]
    assert [bool(s) for s in same] == [True, False, True, False]
    assert renderer.counts["empty prompt"] == 2
    nothing = renderer.generate(["", " "], [0, 1], 32)
    assert not nothing.any()
    assert nothing.committed == edited.committed  # else a step with nothing to render would be compiled anew
    assert renderer.counts["empty prompt"] == 4
    assert renderer.edit(images[:0], [], []).shape == (0, 32, 32, 3)


@pytest.mark.parametrize("name", ["StableDiffusionPipeline", "FluxPipeline"])
def test_long_prompts_are_truncated_counted_and_warned_of_once(load, name, recwarn):
    """The tiny tokenizers take a token a letter: CLIP 24 with two of its own, T5 32 with one of its own and a space."""
    longest = "x" * (22 if name == "StableDiffusionPipeline" else 30)
    renderer = load(name)
    exact = render(renderer, [longest], [0])
    assert renderer.counts["truncated prompt"] == 0
    assert not recwarn.list
    with pytest.warns(UserWarning, match=f"tokens that {name} takes"):
        longer = render(renderer, [longest + "y", longest + " and more"], [0, 0])
    assert np.abs(longer - exact).max() <= 1
    render(renderer, [longest + "y"], [0])
    assert renderer.counts["truncated prompt"] == 3
    assert not recwarn.list


def test_long_commands_for_qwen(load):
    """Its pipeline does not truncate."""
    renderer = load("QwenImageEditPipeline", steps=1, size=128)
    images = pictures(1, 128, 128)
    exact = render(renderer, ["x" * 512], [0], images)
    with pytest.warns(UserWarning, match="512 tokens"):
        longer = render(renderer, ["x" * 512 + "y" * 88], [0], images)
    np.testing.assert_array_equal(longer, exact)


def test_a_command_that_looks_like_a_chat_token_is_text(load):
    renderer = load("QwenImageEditPipeline", steps=1, size=128)
    render(renderer, ["add <|image_pad|> and <|im_end|>"], [0], pictures(1, 128, 128))


def test_prompts_are_padded_no_further_than_the_tokenizer_says(load):
    """FluxPipeline's own 512 would be most of a small transformer's work."""
    lengths = []
    renderer = load("FluxPipeline")
    renderer.pipeline.text_encoder_2.register_forward_hook(lambda _, inputs, __: lengths.append(inputs[0].shape[1]))
    render(renderer, ["a"], [0])
    assert lengths == [tiny_pipelines.T5_TOKENS]


def test_images_that_are_not_numbers_are_skipped_and_counted(load):
    def spoil(module, inputs, output):
        output[1, 0, 3, 3] = torch.nan

    for size in (32, 48):
        renderer = load("FluxKontextPipeline", size=size)
        good = renderer.edit(pictures(), PROMPTS, [0, 1, 2])
        renderer.pipeline.vae.decoder.register_forward_hook(spoil)
        edited = renderer.edit(pictures(), PROMPTS, [0, 1, 2])
        np.testing.assert_array_equal(edited, good.at[1].set(pictures()[1]))
        assert not renderer.generate(PROMPTS, [0, 1, 2], 32)[1].any()
        assert renderer.counts["not a number"] == 2


def test_a_safety_checker_is_obeyed_and_counted(load, tmp_path):
    pipeline = load("StableDiffusionPipeline").pipeline
    vision = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = CLIPConfig(vision_config=vision | {"image_size": 32, "patch_size": 16}, projection_dim=16)
    checker = StableDiffusionSafetyChecker(config)
    checker.concept_embeds_weights.data.fill_(-2)  # no cosine is lower: everything is unsafe
    size = {"height": 32, "width": 32}
    pipeline.register_modules(
        safety_checker=checker, feature_extractor=CLIPImageProcessorPil(size=size, crop_size=size)
    )
    pipeline.save_pretrained(tmp_path)
    renderer = Renderer.load(tmp_path, steps=1, device="cpu")
    assert not renderer.generate(PROMPTS, [0, 1, 2], 32).any()
    assert renderer.counts["unsafe"] == 3


class OnAGPU:
    """An array on a device that torch does not see."""

    platform = "gpu"

    def __init__(self, array):
        self.array = array

    def __getattr__(self, name):
        return getattr(self.array, name)

    def __len__(self):
        return len(self.array)

    def __array__(self, *args, **kwargs):
        return np.asarray(self.array)

    def devices(self):
        return {self}


@pytest.mark.skipif(torch.cuda.is_available(), reason="torch sees the GPU")
def test_a_cpu_only_torch_beside_a_gpu_is_explained_once(load, recwarn):
    bridge._tell_of_copies.cache_clear()
    renderer = load("FluxKontextPipeline")
    with pytest.warns(UserWarning, match="copied through the host"):
        edited = renderer.edit(OnAGPU(pictures()), PROMPTS, [0, 1, 2])
    np.testing.assert_array_equal(edited, renderer.edit(OnAGPU(pictures()), PROMPTS, [0, 1, 2]))
    assert not recwarn.list


def test_errors(load):
    images = pictures()
    flux, editor = load("FluxPipeline"), load("StableDiffusionInstructPix2PixPipeline")
    expect(lambda: flux.edit(images, PROMPTS, [0, 1, 2]), "takes no image", *EDITORS)
    expect(lambda: editor.generate(PROMPTS, [0, 1, 2]), "only edits", *GENERATORS)
    expect(lambda: editor.edit(images, PROMPTS[:2], [0]), "3 images, 2 prompts and 1 seeds")
    expect(lambda: flux.generate(PROMPTS, [0], 32), "3 images, 3 prompts and 1 seeds")
    expect(lambda: editor.edit(images / 255, PROMPTS, [0, 1, 2]), "float32", "uint8")
    expect(lambda: editor.edit(images[0], PROMPTS, [0, 1, 2]), "(32, 32, 3)")
    expect(lambda: editor.edit(images[:, :30], PROMPTS, [0, 1, 2]), "30x32", "multiples of 8")
    expect(lambda: flux.generate(["a"], [0], 0), "0x0")
    expect(lambda: load("FluxKontextPipeline", size=0).edit(images, PROMPTS, [0, 1, 2]), "0x0")
    expect(lambda: flux.generate(["a"], [0], (32, 24)), "32x24", "multiples of 16")
    expect(lambda: load("StableDiffusion3Pipeline").generate(["a"], [0], 24), "multiples of 16")


def test_too_little_memory(load):
    """Sizes beyond any machine's addresses, in the pipeline and before it."""
    size = 1 << 26
    editor = load("StableDiffusionInstructPix2PixPipeline", size=size)
    expect(lambda: editor.edit(pictures(), PROMPTS, [0, 1, 2]), f"batch of 3 at {size}x{size}", "micro_batch_size=1")
    expect(lambda: load("StableDiffusionPipeline").generate(["a"], [0], size), "not enough memory", "a smaller size")
