"""scenes/editor*.py: training resumes exactly and learns what the pipeline computes; what it writes is an editor."""

from dataclasses import replace
from types import SimpleNamespace

import jax.numpy as jnp
import numpy as np
import pytest
import torch

from auditdm_jax.counterfactuals import Renderer
from auditdm_jax.errors import UserError
from auditdm_jax.scenes import editor
from auditdm_jax.scenes.captions import parse_caption, sample_caption
from auditdm_jax.scenes.editor import EditorTraining, autoencoder_loss, encode_cells, flow_loss, train, write_pipeline
from auditdm_jax.scenes.editor_exam import Exam, carried_out, examine, spoilt
from auditdm_jax.scenes.editor_lessons import CHANGED_WEIGHT, pictures_of_cells, scene_lessons
from auditdm_jax.scenes.editor_parts import CAPTION_TOKENS, COMMAND_TOKENS, EditorSize, new_pipeline
from auditdm_jax.scenes.edits import Edit, apply, sample_edit
from auditdm_jax.scenes.parser import images_of, read_scenes, things
from auditdm_jax.scenes.render import render
from auditdm_jax.scenes.world import SPLITS, WEATHERS, Scene, sample_scene

SMALL = EditorSize(
    4, (4, 4, 4, 4), text_width=24, text_layers=1, heads=2, head_width=16, double_layers=1, single_layers=1
)
TRAINING = EditorTraining(
    seed=0,
    vae_steps=2,
    decoder_steps=2,
    vae_images=2,
    steps=2,
    edits=3,
    captions=2,
    log_every=1,
    examined=16,
    size=SMALL,
)


@pytest.fixture(scope="module")
def pipeline():
    return new_pipeline(SMALL, 0)


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    """The default architecture, untrained."""
    folder = tmp_path_factory.mktemp("editor")
    write_pipeline(new_pipeline(EditorSize(), 0), folder)
    return folder


def weights_of(pipeline) -> dict[str, torch.Tensor]:
    parts = {name: part for name, part in pipeline.components.items() if isinstance(part, torch.nn.Module)}
    return {f"{name}.{key}": value for name, part in parts.items() for key, value in part.state_dict().items()}


def test_training_resumes_exactly(tmp_path, monkeypatch):
    made = []
    monkeypatch.setattr(editor, "new_pipeline", lambda *a: made.append(new_pipeline(*a)) or made[-1])
    losses: dict[str, list[float]] = {"whole": [], "resumed": []}
    real = editor.flow_loss

    def stopping(run, limit):
        def loss(*arguments):
            if len(losses[run]) == limit:
                raise KeyboardInterrupt
            found = real(*arguments)
            losses[run].append(found.item())
            return found

        return loss

    monkeypatch.setattr(editor, "flow_loss", stopping("whole", 9))
    train(TRAINING, tmp_path / "whole", tmp_path / "work-1")
    monkeypatch.setattr(editor, "flow_loss", stopping("resumed", 1))
    with pytest.raises(KeyboardInterrupt):
        train(TRAINING, tmp_path / "resumed", tmp_path / "work-2")
    monkeypatch.setattr(editor, "flow_loss", stopping("resumed", 9))
    train(TRAINING, tmp_path / "resumed", tmp_path / "work-2")
    assert losses["resumed"] == losses["whole"]
    assert len(losses["whole"]) == 2
    whole, resumed = weights_of(made[0]), weights_of(made[2])
    assert all(torch.equal(whole[key], resumed[key]) for key in whole)
    start = weights_of(new_pipeline(SMALL, TRAINING.seed))
    assert not any(torch.equal(whole[f"{key}.weight"], start[f"{key}.weight"]) for key in ("vae.encoder.conv_in",))
    assert not torch.equal(whole["text_encoder_2.shared.weight"], start["text_encoder_2.shared.weight"])
    with pytest.raises(UserError, match="other settings"):
        train(replace(TRAINING, rate=0.5), tmp_path / "other", tmp_path / "work-2")
    (tmp_path / "work-2" / "autoencoder.safetensors").write_bytes(b"damaged")
    with pytest.raises(UserError, match="cannot be read"):
        train(TRAINING, tmp_path / "other", tmp_path / "work-2")
    card = (tmp_path / "whole" / "editor" / "README.md").read_text()
    assert "edits carried out" in card
    assert "| change value |" in card


@pytest.mark.parametrize(("field", "value"), [("log_every", 0), ("log_every", -1), ("examined", 15), ("examined", 0)])
def test_settings_that_no_checkpoint_could_be_made_with(field, value):
    with pytest.raises(UserError, match=rf"^{field.replace('_', '-')} is {value}: it must be at least \d+[^\n]*$"):
        EditorTraining(**{field: value})


def test_the_card_tells_of_kinds_that_the_exam_did_not_have(pipeline):
    right, wrong = np.ones(2, bool), np.zeros(3, bool)
    text = editor.card(TRAINING, pipeline, Exam(right, {"add": right, "move": right[:0]}, wrong, right, 1.0))
    assert "on 2 unseen test scenes" in text
    assert "- edits carried out: 1.000 (95 % " in text
    assert "| add | 1.000 |\n| move | 0.000 |\n" in text


def test_the_directory_is_small_and_states_its_own_settings(directory):
    assert sum(file.stat().st_size for file in directory.rglob("*")) < 10_000_000
    renderer = Renderer.load(directory, device="cpu")
    family = renderer.family
    assert (family.steps, family.guidance, renderer.micro_batch_size) == (1, 1.0, 32)
    assert (renderer.max_command_tokens, renderer.max_tokens) == (COMMAND_TOKENS, CAPTION_TOKENS)
    assert Renderer.load(directory, device="cpu", micro_batch_size=2).micro_batch_size == 2


def test_it_edits_and_generates_each_image_for_itself(directory):
    renderer = Renderer.load(directory, device="cpu")
    scenes = [sample_scene("test", seed) for seed in range(3)]
    images = jnp.asarray(np.stack([render(scene) for scene in scenes]))
    commands = [sample_edit(scene, np.random.default_rng(0), "test").command for scene in scenes]
    lengths = []
    renderer.pipeline.text_encoder_2.register_forward_hook(lambda _, inputs, __: lengths.append(inputs[0].shape[1]))
    edited = renderer.edit(images, commands, [1, 2, 3])
    alone = renderer.edit(images[1:2], commands[1:2], [2])
    assert np.abs(np.asarray(edited[1], int) - np.asarray(alone[0], int)).max() <= 1
    told = [sample_caption(scene, np.random.default_rng(0), CAPTION_TOKENS - 1)[1] for scene in scenes]
    drawn = renderer.generate(told, [1, 2, 3], 64)
    assert edited.shape == drawn.shape == (3, 64, 64, 3)
    assert lengths == [COMMAND_TOKENS, COMMAND_TOKENS, CAPTION_TOKENS]
    assert not renderer.counts.total()


def test_every_text_fits_without_spelling(pipeline):
    """A token a word, and none for the commas that part a caption."""
    rng = np.random.default_rng(0)
    for seed in range(300):
        split = SPLITS[seed % 3]
        scene = sample_scene(split, seed)
        for text, limit in (
            (sample_edit(scene, rng, split).command, COMMAND_TOKENS),
            (sample_caption(scene, rng, CAPTION_TOKENS - 1)[1], CAPTION_TOKENS),
        ):
            tokens = pipeline.tokenizer_2(text)["input_ids"]
            assert pipeline.tokenizer_2.unk_token_id not in tokens
            assert len(tokens) <= limit
            spelt = sum(len(word) == 2 and word.isdigit() for word in text.split()) if limit == CAPTION_TOKENS else 0
            assert len(tokens) == len(text.split()) + 1 or spelt
    words = "please make the small striped hexagon"
    assert pipeline.tokenizer.tokenize(words)[:5] == [f"{word}</w>" for word in words.split()[:5]]
    assert pipeline.tokenizer.unk_token_id not in pipeline.tokenizer("hexagon")["input_ids"][1:-1]


def test_lessons_are_edits_of_training_scenes():
    lessons = scene_lessons(0, 5, 20, edits=True)
    again = scene_lessons(0, 5, 20, edits=True)
    assert lessons.texts == again.texts != scene_lessons(0, 6, 20, edits=True).texts
    np.testing.assert_array_equal(lessons.cells, again.cells)
    for row, text in enumerate(lessons.texts):
        before, after = (
            Scene(WEATHERS[lessons.weathers[i, row]], tuple(things()[cell] for cell in lessons.cells[i, row]))
            for i in (0, 1)
        )
        assert apply(text, before).scene == after != before
        changed = np.array([a != b for a, b in zip(before.cells, after.cells, strict=True)])
        ratio = lessons.weights[row] / lessons.weights[row].min()
        whole = before.weather != after.weather
        np.testing.assert_allclose(ratio, np.where(changed & ~whole, CHANGED_WEIGHT, 1), rtol=1e-5)
    np.testing.assert_allclose(lessons.weights.mean(1), 1, rtol=1e-5)
    captions = scene_lessons(0, 5, 60, edits=False)
    np.testing.assert_array_equal(captions.cells[0], captions.cells[1])
    for weather, cells, text in zip(captions.weathers[1], captions.cells[1], captions.texts, strict=True):
        assert parse_caption(text) == Scene(WEATHERS[weather], tuple(things()[cell] for cell in cells))
    told = {text.count(",") for text in captions.texts}
    assert {1, 2, 3, 7} <= told  # of few things as of many


def test_each_head_of_the_text_encoder_begins_by_looking_near():
    """A word at place 20 of 40: the heads look at the words 1, 2, 3 and 5 before it, and 1 and 3 after it."""
    attention = new_pipeline(EditorSize(), 0).text_encoder_2.encoder.block[0].layer[0].SelfAttention
    bias = attention.compute_bias(40, 40, device=torch.device("cpu"))[0, :, 20]
    assert (bias.argmax(1) - 20).tolist() == [-1, -2, -3, -5, 1, 3]
    torch.testing.assert_close(bias[0, 17:21], torch.tensor([-3.0, -1.5, 0.0, -1.5]))
    assert (bias.softmax(1).amax(1) > 0.5).all()


def test_a_cell_is_encoded_as_one_token(pipeline):
    table, spread = encode_cells(pipeline, 0, copies=2)
    assert table.shape == (len(WEATHERS), len(things()), 16)
    assert abs(float(table.mean())) < 0.1
    assert 0 < spread < 1
    # A picture's tokens are those of its cells, but for their neighbours.
    indices = np.zeros((1, 16), int)
    indices[0, 6] = 77
    pixels = torch.from_numpy(images_of(np.array([3]), indices)).permute(0, 3, 1, 2) / 127.5 - 1
    latents = pipeline._encode_vae_image(pixels, None)
    tokens = pipeline._pack_latents(latents, *latents.shape)[0]
    error = (tokens.detach() - table[3, indices[0]]).square().mean().sqrt()
    assert error < (tokens.detach() - table[3, np.roll(indices[0], 1)]).square().mean().sqrt()


def test_a_perfect_velocity_costs_nothing(pipeline, monkeypatch):
    """The pipeline's convention: noisy = (1 - sigma) x + sigma noise, velocity = noise - x; a step from noise is x."""
    table = torch.randn(len(WEATHERS), len(things()), 16)
    seen = []

    def perfect(hidden_states, timestep, **_):
        lessons = scene_lessons(TRAINING.seed, 0, len(hidden_states), edits=hidden_states.shape[1] == 32)
        after = table[lessons.weathers[1][:, None], lessons.cells[1]]
        seen.append(hidden_states.shape[1])
        velocity = (hidden_states[:, :16] - after) / timestep[:, None, None]
        return (torch.cat([velocity, hidden_states[:, 16:]], 1),)

    monkeypatch.setattr(pipeline.transformer, "forward", perfect)
    assert flow_loss(pipeline, table, 0.1, TRAINING, 0).item() < 1e-8
    assert seen == [32, 16]
    step = pipeline.scheduler
    step.set_timesteps(sigmas=[1.0])
    noise, x = torch.randn(1, 16), torch.randn(1, 16)
    torch.testing.assert_close(step.step(noise - x, step.timesteps[0], noise, return_dict=False)[0], x)


def test_the_autoencoder_learns_the_picture_itself(monkeypatch):
    """Were each cell's latents its colours, decoding them would give the picture: the loss is nothing."""
    monkeypatch.setattr(editor, "LATENT_PRICE", 0.0)
    monkeypatch.setattr(editor, "LATENT_NOISE", 0.0)
    flat = np.random.default_rng(0).integers(0, 256, (2, 4, 4, 3)).astype(np.uint8)
    images = flat.repeat(16, 1).repeat(16, 2)
    monkeypatch.setattr(editor, "pictures_of_cells", lambda *_: images)

    class Identity:
        """Latents are the mean of 8x8 pixels."""

        def encode(self, pixels):
            self.latent_dist = self
            self.latents = torch.nn.functional.avg_pool2d(pixels, 8)
            return self

        def mode(self):
            return self.latents

        def decode(self, latents):
            self.sample = torch.nn.functional.interpolate(latents, scale_factor=8)
            return self

    assert autoencoder_loss(SimpleNamespace(vae=Identity()), TRAINING, 0).item() < 1e-8


def test_pictures_of_cells_are_a_function_of_their_number():
    first, again, other = (pictures_of_cells(0, batch, 4) for batch in (1, 1, 2))
    np.testing.assert_array_equal(first, again)
    assert first.shape == (4, 64, 64, 3)
    assert not np.array_equal(first, other)


class Perfect:
    """Carries everything out, or nothing."""

    def __init__(self, works: bool):
        self.works, self.scenes = works, {render(scene).tobytes(): scene for scene in map(scene_of, range(40))}

    def edit(self, images, commands, seeds):
        images = [np.asarray(image) for image in images]
        scenes = [self.scenes[image.tobytes()] for image in images]
        edited = [apply(*case).scene if self.works else case[1] for case in zip(commands, scenes, strict=True)]
        return jnp.asarray(np.stack([render(scene) for scene in edited]))

    def generate(self, captions, seeds, size):
        empty = Scene("sunny", (None,) * 16)
        return jnp.asarray(np.stack([render(parse_caption(text) if self.works else empty) for text in captions]))


def scene_of(seed: int) -> Scene:
    return sample_scene("test", seed)


def test_the_exam_counts_what_is_seen():
    best, worst = (examine(Perfect(works), 40) for works in (True, False))
    assert (best.done.mean(), best.spoiled.mean(), best.present.mean()) == (1, 0, 1)
    assert (worst.done.mean(), worst.spoiled.mean(), worst.present.mean()) == (0, 0, 0)
    assert sum(map(len, best.by_kind.values())) == len(best.done) == 40
    assert "1.000 (95 %" in best.lines()[0]


def test_an_edit_that_spoils_another_cell_is_carried_out_but_counted():
    scene = Scene("sunny", (None,) * 16)
    edited = apply("add a red star at 1 1", scene)
    edit = Edit("add a red star at 1 1", edited.scene, "add")
    picture = render(edited.scene)
    picture[16:32, 16:32] = 0
    (reading,) = read_scenes(picture[None])
    assert carried_out(scene, edit, reading)
    assert sum(spoilt(scene, edit, reading)) == 1
    assert not carried_out(scene, edit, read_scenes(render(scene)[None])[0])
