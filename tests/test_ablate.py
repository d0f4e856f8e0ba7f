"""ablate.py: what is left to do is done, and only that; results stand beside each other."""

import dataclasses
import json
from types import SimpleNamespace

import pyarrow.parquet as pq
import pytest

from auditdm_jax import ablate as module
from auditdm_jax import training
from auditdm_jax.ablate import AblateConfig, ablate
from auditdm_jax.config import TrainConfig
from auditdm_jax.errors import UserError
from auditdm_jax.files import append_jsonl, write_json
from auditdm_jax.runs import training_settings

SPEC = """
seeds = [0, 1, 2]
[grid]
reward.diversity = [0, 60]
"""


@pytest.fixture
def fake(tmp_path, monkeypatch):
    """Training and audits that take no time: what was asked of them, in order, and which runs must fail."""
    (tmp_path / "s.toml").write_text(SPEC)
    record = SimpleNamespace(done=[], broken=set(), config=AblateConfig(tmp_path / "s.toml", str(tmp_path)))

    def train(config):
        run = module.Path(config.out) / config.name
        assert config.resume
        record.done.append(("train", config.reward.diversity, config.seed))
        if record.done[-1][1:] in record.broken:
            raise UserError("loss is nan at step 3; lower the learning rate")
        write_json(run / "config.json", config)
        write_json(run / "auditor" / "config.json", {})
        for step in (0, 50):
            append_jsonl(run / "metrics.jsonl", {"step": step, "heldout/claimed": 0.5, "heldout/oracle/verified": 0.4})

    def audit(config):
        run = module.Path(config.out) / config.name
        settings = training_settings(run)
        record.done.append(("audit", settings.reward.diversity, config.seed))
        print("a long report")
        success = {"rate": 0.5 + settings.reward.diversity / 1000 + config.seed * (1 + settings.reward.diversity) / 1e4}
        found = {"claimed": success, "verified": success, "skills_found": 5, "failure_types": [{"failures": 10}]}
        write_json(run / "audit" / "summary.json", found | {"settings": config})

    monkeypatch.setattr(module, "train", train)
    monkeypatch.setattr(module.audit, "main", audit)
    return record


def test_a_sweep_trains_audits_and_compares(fake, tmp_path, capsys):
    ablate(fake.config)
    order = [(what, diversity, seed) for diversity in (0, 60) for seed in (0, 1, 2) for what in ("train", "audit")]
    assert fake.done == order
    text = (tmp_path / "s" / "table.md").read_text()
    printed = capsys.readouterr().out
    assert text in printed
    assert "a long report" not in printed
    assert "| reward.diversity=0 | 0, 1, 2 | 0.500 [0.500, 0.500] |" in text
    assert "| reward.diversity=60 | 3 | +0.066 [+0.051, +0.081]** |" in text
    assert "Not in the table" not in text
    rows = pq.read_table(tmp_path / "s" / "table.parquet").to_pylist()
    assert [(row["reward.diversity"], row["seed"], row["skills"], row["stage"]) for row in rows] == [
        (diversity, seed, 5, "finished") for diversity in ("0", "60") for seed in (0, 1, 2)
    ]
    assert (tmp_path / "s" / "curves.svg").read_text().count("<g ") == 2
    assert text.endswith("![curves](curves.svg)\n\n![frontier](frontier.svg)\n")
    frontier = (tmp_path / "s" / "frontier.svg").read_text()
    assert frontier.count("<polygon ") == 2 * (6 + 2) + 2  # in each panel the runs and means; the legend
    fake.done.clear()
    ablate(fake.config)
    assert fake.done == []


def test_only_what_is_missing_is_done_again(fake, tmp_path):
    ablate(fake.config)
    fake.done.clear()
    run = tmp_path / "s" / "reward.diversity=60" / "seed1"
    (run / "auditor" / "config.json").unlink()
    (run / "audit" / "summary.json").unlink()
    (tmp_path / "s" / "reward.diversity=0" / "seed2" / "audit" / "summary.json").unlink()
    ablate(fake.config)
    assert fake.done == [("audit", 0, 2), ("train", 60, 1), ("audit", 60, 1)]
    fake.done.clear()
    (tmp_path / "s.toml").write_text(SPEC + "[base]\naudit.questions = 50")  # audits of other settings are made anew
    ablate(fake.config)
    assert [what for what, *_ in fake.done] == ["audit"] * 6


def test_an_auditor_that_is_trained_anew_is_audited_anew(fake, tmp_path):
    ablate(fake.config)
    fake.done.clear()
    (tmp_path / "s" / "reward.diversity=60" / "seed1" / "auditor" / "config.json").unlink()
    ablate(fake.config)
    assert fake.done == [("train", 60, 1), ("audit", 60, 1)]


def test_a_run_that_fails_does_not_stop_the_others(fake, tmp_path):
    fake.broken.add((0, 1))
    with pytest.raises(UserError, match="1 of 6 runs failed"):
        ablate(fake.config)
    assert len(fake.done) == 11
    text = (tmp_path / "s" / "table.md").read_text()
    assert "- reward.diversity=0, seed 1: failed: loss is nan at step 3" in text
    assert "| reward.diversity=0 | 0, 2 |" in text
    assert "Nothing can be said" in text  # two seeds are left that both cells have
    fake.broken.clear()
    fake.done.clear()
    ablate(fake.config)
    assert fake.done == [("train", 0, 1), ("audit", 0, 1)]


def test_no_other_cell_takes_the_first_ones_place(fake, tmp_path):
    fake.broken |= {(0, 0), (0, 1), (0, 2)}
    with pytest.raises(UserError, match="3 of 6 runs failed"):
        ablate(fake.config)
    text = (tmp_path / "s" / "table.md").read_text()
    assert "| reward.diversity=0 |  | - | - | - | - |" in text
    assert "Differences from reward.diversity=0, seed by seed:" in text
    assert "Nothing can be said" in text


def test_a_defect_in_a_run_does_not_stop_the_others(fake, tmp_path, monkeypatch, capsys):
    """Memory that is too small for one cell, say."""
    inner = module.train

    def train(config):
        if (config.reward.diversity, config.seed) == (0, 1):
            raise RuntimeError("RESOURCE_EXHAUSTED: out of memory")
        inner(config)

    monkeypatch.setattr(module, "train", train)
    with pytest.raises(UserError, match="1 of 6 runs failed"):
        ablate(fake.config)
    assert len(fake.done) == 10
    text = (tmp_path / "s" / "table.md").read_text()
    assert "- reward.diversity=0, seed 1: failed: RESOURCE_EXHAUSTED: out of memory" in text
    assert "Traceback" in capsys.readouterr().err


@pytest.mark.parametrize("text", ['{"settings', "[]", '{"settings": 3}', "{}"])
def test_a_damaged_audit_is_made_anew(fake, tmp_path, text):
    ablate(fake.config)
    fake.done.clear()
    run = tmp_path / "s" / "reward.diversity=60" / "seed1"
    (run / "audit" / "summary.json").write_text(text)
    with open(run / "metrics.jsonl", "a") as file:
        file.write('{"step": 5')  # of a run that was killed
    (tmp_path / "s" / "reward.diversity=0" / "seed0" / "metrics.jsonl").unlink()
    ablate(fake.config)
    assert fake.done == [("audit", 60, 1)]


@pytest.mark.parametrize("rate", [None, float("nan"), "0.5"])
def test_an_audit_without_its_numbers_is_made_anew(fake, tmp_path, rate):
    ablate(fake.config)
    fake.done.clear()
    path = tmp_path / "s" / "reward.diversity=60" / "seed1" / "audit" / "summary.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"verified": {"rate": rate}}))
    ablate(fake.config)
    assert fake.done == [("audit", 60, 1)]


def test_together_the_seeds_of_a_cell_train_first(fake, monkeypatch):
    fake.broken.add((60, 1))

    def jointly(configs):
        fake.done.append(("jointly", configs[0].reward.diversity, [config.seed for config in configs]))
        for config in configs:
            module.train(config)

    monkeypatch.setattr(module, "train_jointly", jointly)
    with pytest.raises(UserError, match="1 of 6 runs failed"):
        ablate(dataclasses.replace(fake.config, together=True))
    assert [done for done in fake.done if done[0] == "jointly"] == [("jointly", d, [0, 1, 2]) for d in (0, 60)]
    # The seed that fails fails again on its own, the one after it does not.
    assert fake.done[-5:] == [
        ("train", 60, 1), ("audit", 60, 0), ("train", 60, 1), ("train", 60, 2), ("audit", 60, 2)
    ]  # fmt: skip


def test_the_list_runs_nothing(fake, capsys):
    ablate(dataclasses.replace(fake.config, list=True))
    assert fake.done == []
    printed = capsys.readouterr().out
    assert "reward.diversity=60: seed 0 to do, seed 1 to do, seed 2 to do" in printed
    assert f"2 cells, 6 runs, up to {6 * TrainConfig().steps:,} steps to train" in printed


def test_a_mistake_costs_nothing(fake, tmp_path):
    (tmp_path / "s.toml").write_text(SPEC + "[base]\nsteps = -1")
    with pytest.raises(UserError, match="steps is -1"):
        ablate(fake.config)
    assert fake.done == []
    assert not (tmp_path / "s").exists()


def test_a_place_that_cannot_be_is_told_before_anything_runs(fake, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match="file"):
        ablate(dataclasses.replace(fake.config, out=str(tmp_path / "file")))
    assert fake.done == []


@pytest.mark.slow
def test_a_killed_sweep_goes_on_in_the_middle_of_a_run(zoo, tmp_path, monkeypatch):
    """On tiny models, without stand-ins: the result is that of a sweep which was not killed."""
    names = "\n".join(f'{role} = "{zoo[name]}"' for role, name in (("auditor", "auditor"), ("target", "target")))
    settings = f"""
    seeds = [0, 1]
    [base]
    {names}
    verifier = "{zoo["a"]}"
    references = ["{zoo["a"]}", "{zoo["b"]}"]
    steps = 4
    images-per-step = 2
    max-question-tokens = 5
    probe-every = 2
    checkpoint-every = 2
    audit.questions = 8
    audit.prompt-only-questions = 4
    [grid]
    grpo.num-generations = [2]
    """
    for name in ("whole", "broken"):
        (tmp_path / f"{name}.toml").write_text(settings)
    ablate(AblateConfig(tmp_path / "whole.toml", str(tmp_path)))
    write, calls = training.Log.step, []

    def killed(self, number, metrics):
        calls.append(number)
        if len(calls) == 7:  # step 3 of the second run
            raise KeyboardInterrupt
        write(self, number, metrics)

    monkeypatch.setattr(training.Log, "step", killed)
    broken = AblateConfig(tmp_path / "broken.toml", str(tmp_path))
    with pytest.raises(KeyboardInterrupt):
        ablate(broken)
    ablate(broken)
    assert calls == [1, 2, 3, 4, 1, 2, 3, 3, 4]  # neither the first run again nor the second from its beginning
    tables = [(tmp_path / name / "table.md").read_text().split("\n", 1)[1] for name in ("whole", "broken")]
    assert tables[0] == tables[1]
    for seed in (0, 1):
        path = f"grpo.num-generations=2/seed{seed}/metrics.jsonl"
        one, other = ((tmp_path / name / path).read_text().splitlines() for name in ("whole", "broken"))
        assert list(map(json.loads, one)) == list(map(json.loads, other))
