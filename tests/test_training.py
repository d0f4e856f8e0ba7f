"""The whole step and the whole run, on tiny random models."""

import dataclasses
import shutil
import struct
import subprocess
import sys
from functools import partialmethod
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image
from tensorboardX.proto import event_pb2
from tqdm import tqdm

from auditdm_jax import log as log_module
from auditdm_jax import training
from auditdm_jax.config import Models, TrainConfig
from auditdm_jax.conventions import GRPO
from auditdm_jax.errors import UserError
from auditdm_jax.files import read_jsonl, write_json
from auditdm_jax.log import SHOWN, Log
from auditdm_jax.models.vlm import VLM
from auditdm_jax.runs import trained_auditor
from auditdm_jax.step import make_step


@pytest.fixture
def config(zoo, tmp_path):
    models = Models(zoo["auditor"], zoo["target"], (zoo["a"], zoo["b"]))
    return TrainConfig(
        out=str(tmp_path), steps=4, images_per_step=2, models=models, grpo=GRPO(num_generations=4), probe_every=2,
        checkpoint_every=2, max_question_tokens=5,
    )  # fmt: skip


@pytest.fixture
def parts(config):
    players = training.load_players(config)
    settings = training.step_settings(config)
    state = training.initial_state(config, players, settings.optimizer)
    return players, settings, state, training.cast_of(players, [config.instruction])


def test_fused_step_equals_the_one_through_text(config, parts):
    """Ids passed on the device and text passed through the host must train the same, where tokens are shared."""
    players, settings, state, cast = parts
    assert training.share_tokens(players)
    # Pieces of words, markers and rows beyond the vocabulary, which an untrained auditor samples too, are not the same
    # once they were text: whole words only.
    auditor = cast.auditor.config
    words = {index for word, index in players.auditor.tokenizer.get_vocab().items() if word.isalpha()}
    other = set(range(auditor.text.vocab_size)) - words - set(auditor.eos_token_ids)
    auditor = dataclasses.replace(auditor, forbidden_token_ids=tuple(sorted(other)))
    cast = dataclasses.replace(cast, auditor=dataclasses.replace(cast.auditor, config=auditor))
    batch = next(training.open_source(config, 64, "train"))["image"]
    copy = dataclasses.replace(state, trained=jax.tree.map(jnp.copy, state.trained))
    fused, metrics, record = make_step(cast, settings)(copy, batch)
    text, text_metrics, text_record = make_step(cast, settings, training.retokenizer(players))(state, batch)
    np.testing.assert_array_equal(record["question_ids"], text_record["question_ids"])
    np.testing.assert_array_equal(record["target_id"], text_record["target_id"])
    np.testing.assert_array_equal(record["consensus_id"], text_record["consensus_id"])
    for name in metrics:
        np.testing.assert_allclose(metrics[name], text_metrics[name], rtol=1e-4, atol=1e-5, err_msg=name)
    assert int(fused.trained.step) == int(text.trained.step) == 1


def test_frozen_parameters_pass_through_uncopied(config, parts):
    _, settings, state, cast = parts
    before = [leaf.unsafe_buffer_pointer() for leaf in jax.tree.leaves(state.frozen)]
    batch = next(training.open_source(config, 64, "train"))["image"]
    state, metrics, _ = make_step(cast, settings)(state, batch)
    assert [leaf.unsafe_buffer_pointer() for leaf in jax.tree.leaves(state.frozen)] == before
    outcomes = [name for name in metrics if name.startswith("outcome/") and name != "outcome/valid"]
    assert sum(float(metrics[name]) for name in outcomes) == pytest.approx(1)  # each question has exactly one
    assert float(metrics["sampling/drift_max"]) < 1e-4


@pytest.mark.slow
def test_killed_and_resumed_run_equals_an_unbroken_one(config, monkeypatch, paying):
    whole = training.train(dataclasses.replace(config, name="whole"))
    broken = dataclasses.replace(config, name="broken")
    write, calls = training.Log.step, []

    def killed(self, number, metrics):
        calls.append(number)
        if number == 3:
            raise KeyboardInterrupt
        write(self, number, metrics)

    monkeypatch.setattr(training.Log, "step", killed)
    with pytest.raises(KeyboardInterrupt):
        training.train(broken)
    monkeypatch.setattr(training.Log, "step", write)
    with pytest.raises(UserError, match="--resume"):
        training.train(broken)
    again = training.train(dataclasses.replace(broken, resume=True))
    assert (whole / "metrics.jsonl").read_text() == (again / "metrics.jsonl").read_text()
    first, second = (VLM.load(run / "auditor").params for run in (whole, again))
    jax.tree.map(np.testing.assert_array_equal, first, second)
    base = VLM.load(config.models.auditor).params
    assert not np.allclose(first["text"]["embedding"], base["text"]["embedding"], atol=1e-5)


def test_a_longer_run_has_no_auditor_until_it_is_done(config, monkeypatch):
    """Else an audit of a run that was stopped would be of the auditor of fewer steps, without a word."""
    folder = Path(config.out) / config.name
    state = training.initial_state(config, training.load_players(config), training.step_settings(config).optimizer)
    checkpoints = training.Checkpointer(str(folder), dataclasses.asdict(config))
    source = training.open_source(config, 64, "train").get_state()
    checkpoints.save(2, state.trained, {"train": source, "heldout": source})
    checkpoints.close()
    for part in ("auditor/config.json", "audit/summary.json"):
        write_json(folder / part, {})
    monkeypatch.setattr(training, "make_step", lambda *_: pytest.fail("training began"))
    with pytest.raises(pytest.fail.Exception, match="training began"):
        training.train(dataclasses.replace(config, steps=5, resume=True))
    with pytest.raises(UserError, match="training did not finish"):
        trained_auditor(folder)
    assert not (folder / "audit").exists()  # it was of the auditor of fewer steps


def test_a_run_of_more_steps_is_not_relabelled(config):
    folder = Path(config.out) / config.name
    training.Checkpointer(folder, dataclasses.asdict(config)).save(7, {"x": jnp.zeros(2)})
    before = (folder / "config.json").read_text()
    with pytest.raises(UserError, match="has 7 steps done, more than 5; give --steps 7 or more"):
        training.train(dataclasses.replace(config, steps=5, resume=True))
    assert (folder / "config.json").read_text() == before


def test_a_run_is_of_one_process_at_a_time(config, monkeypatch):
    """Else two of one name would write into one folder, and a checkpoint of one be taken for the other's."""
    monkeypatch.setattr(training, "make_step", lambda *_: pytest.fail("training began"))
    hold = (
        "import sys, pathlib; from auditdm_jax.files import lock_folder; lock = lock_folder(pathlib.Path(sys.argv[1]))"
    )
    folder = Path(config.out) / config.name
    script = [sys.executable, "-c", f"{hold}; print('held', flush=True); sys.stdin.read()", str(folder)]
    with subprocess.Popen(script, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout.readline() == "held\n"
        with pytest.raises(UserError, match="another process is at work in"):
            training.train(config)
        other.stdin.close()
    with pytest.raises(pytest.fail.Exception, match="training began"):
        training.train(config)


def test_other_settings_need_overwrite(config, monkeypatch):
    """A run folder is never mixed from two configurations, and `--overwrite` begins it again whatever was there."""
    monkeypatch.setattr(training, "make_step", lambda *_: pytest.fail("training began"))
    training.Checkpointer(f"{config.out}/{config.name}", dataclasses.asdict(config)).save(1, {"x": jnp.zeros(2)})
    other = dataclasses.replace(config, seed=5)
    with pytest.raises(UserError, match="seed is 0 there and 5 now"):
        training.train(other)
    with pytest.raises(pytest.fail.Exception, match="training began"):
        training.train(dataclasses.replace(other, overwrite=True))


@pytest.mark.slow
def test_adapters_train_and_are_folded_in(config, paying):
    run = training.train(dataclasses.replace(config, name="lora", lora_rank=2, steps=2))
    base, trained = (VLM.load(path).params for path in (config.models.auditor, run / "auditor"))
    np.testing.assert_array_equal(base["text"]["embedding"], trained["text"]["embedding"])
    before, after = (params["text"]["layers"]["q"] for params in (base, trained))
    assert after.keys() == {"kernel"}
    assert not np.allclose(before["kernel"], after["kernel"], atol=1e-5)


def test_a_mistake_leaves_the_finished_run_as_it_was(config, tmp_path):
    """Refused settings, or images that are not there, must cost nothing of what an earlier run left."""
    run = Path(config.out) / config.name
    training.Checkpointer(run, dataclasses.asdict(config)).save(1, {"x": jnp.zeros(2)})
    write_json(run / "auditor" / "config.json", {})

    def files():
        return {path: path.read_bytes() for path in run.rglob("*") if path.is_file() and path.name != ".lock"}

    before = files()
    with pytest.raises(UserError, match="--resume"):
        training.train(dataclasses.replace(config, steps=7))
    with pytest.raises(UserError, match="typo"):
        training.train(dataclasses.replace(config, images=(str(tmp_path / "typo"),), overwrite=True))
    with pytest.raises(UserError, match="give one of them"):
        training.train(dataclasses.replace(config, resume=True, overwrite=True))
    assert files() == before


@pytest.mark.slow
def test_overwrite_leaves_nothing_of_the_earlier_run(config):
    short = dataclasses.replace(config, steps=2)
    run = training.train(short)
    write_json(run / "audit" / "summary.json", {})
    steps = [row["step"] for row in read_jsonl(run / "metrics.jsonl")]
    training.train(dataclasses.replace(short, overwrite=True))
    assert [row["step"] for row in read_jsonl(run / "metrics.jsonl")] == steps
    assert not (run / "audit").exists()


@pytest.mark.slow
def test_images_that_are_skipped_are_told(config, tmp_path, capsys):
    for number in range(4):
        Image.new("RGB", (8, 8), (60 * number, 0, 0)).save(tmp_path / f"{number}.png")
    (tmp_path / "broken.png").write_bytes(b"no image")
    training.train(dataclasses.replace(config, steps=4, images=(str(tmp_path),)))
    assert "images skipped: 1 " in capsys.readouterr().out


def test_a_copy_among_the_references_is_told(config, monkeypatch, capsys, tmp_path):
    shutil.copytree(config.models.references[0], tmp_path / "copy")
    models = dataclasses.replace(config.models, references=(*config.models.references, str(tmp_path / "copy")))
    monkeypatch.setattr(training, "probe", lambda *_: pytest.fail("training began"))
    with pytest.raises(pytest.fail.Exception, match="training began"):
        training.train(dataclasses.replace(config, models=models))
    assert capsys.readouterr().out.count("copy have the same weights") == 1


def test_a_run_that_diverged_is_stopped(tmp_path):
    log, shares = Log(tmp_path, 0, 3), {name: jnp.array(0.5) for name in SHOWN.values()}
    log.step(1, {**shares, "loss": jnp.array(1.0)})
    log.step(2, {**shares, "loss": jnp.array(jnp.nan)})
    with pytest.raises(UserError, match=r"loss is nan at step 2; lower --grpo.learning-rate"):
        log.flush()
    assert [row["step"] for row in read_jsonl(tmp_path / "metrics.jsonl")] == [1]


def test_a_run_whose_bars_are_turned_off(tmp_path, monkeypatch):
    """TQDM_DISABLE=1, read when tqdm is imported; such a bar knows little of itself."""
    off = type("Off", (tqdm,), {"__init__": partialmethod(tqdm.__init__, disable=True)})
    monkeypatch.setattr(log_module, "tqdm", off)
    with Log(tmp_path, 0, 1) as log:
        log.step(1, {name: jnp.array(0.5) for name in SHOWN.values()})
    assert [row["step"] for row in read_jsonl(tmp_path / "metrics.jsonl")] == [1]


def test_the_bar_shows_verified_success_beside_the_claimed(tmp_path):
    with Log(tmp_path, 0, 2) as log:
        log.write(0, {"heldout/claimed": 0.5, "heldout/oracle/verified": 0.25})
        assert log.shown["verified"] == 0.25


def test_a_run_begun_again_has_no_rows_of_the_one_before(tmp_path):
    for _ in range(2):
        with Log(tmp_path, 0, 2) as log:
            log.write(0, {"loss": 1.0})
    assert len(read_jsonl(tmp_path / "metrics.jsonl")) == 1


def test_tensorboard_has_every_value_of_a_row(tmp_path):
    with Log(tmp_path, 0, 2) as log:
        log.write(1, {"loss": 0.5, "heldout/claimed": 0.25})
        log.write(2, {"loss": 0.125})
    data, found = next((tmp_path / "tensorboard").iterdir()).read_bytes(), {}
    while data:  # records: length, its checksum, the event, its checksum
        (length,) = struct.unpack("<Q", data[:8])
        event = event_pb2.Event.FromString(data[12 : 12 + length])
        found |= {(event.step, value.tag): value.simple_value for value in event.summary.value}
        data = data[16 + length :]
    alarms = {(1, "alarms"): 0.0, (2, "alarms"): 0.0}
    assert found == {(1, "loss"): 0.5, (1, "heldout/claimed"): 0.25, (2, "loss"): 0.125} | alarms
