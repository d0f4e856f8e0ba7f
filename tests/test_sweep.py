"""sweep.py: cells as the file says them; every mistake found at once, before anything runs."""

import dataclasses
from pathlib import Path

import pytest
import tyro
from flax.traverse_util import flatten_dict
from hypothesis import given
from hypothesis import strategies as st

from auditdm_jax.config import AuditConfig, TrainConfig
from auditdm_jax.errors import UserError
from auditdm_jax.files import write_json
from auditdm_jax.reward import Reward
from auditdm_jax.scenes.zoo_paths import zoo_names
from auditdm_jax.sweep import fits, folder_name, read_sweep, settings_of

GOOD = """
seeds = [0, 3]
[base]
steps = 7
target = "target-l"
audit.questions = 100
audit.temperature = 1  # an int where a float belongs
[grid]
grpo.preset = ["grpo@trl", "dapo@trl"]
channels = [["question"], ["question", "edit"]]
[[variant]]
label = "binary"
reward.diversity = 0
[[variant]]
label = "long"
steps = 9
grpo.max-grad-norm = 0.5
grpo.num_generations = 4
grpo.beta = "None"
"""


def sweep(tmp_path, text):
    (tmp_path / "my.toml").write_text(text)
    return read_sweep(tmp_path / "my.toml", str(tmp_path))


@pytest.mark.parametrize("config", [TrainConfig, AuditConfig])
def test_settings_have_the_names_of_the_command_line(config):
    defaults, typed = flatten_dict(dataclasses.asdict(config()), sep="."), []
    paths = {name: ".".join(setting.path) for name, setting in settings_of(config).items()}
    assert sorted(paths.values()) == sorted(defaults)
    for name, path in paths.items():
        value = defaults[path]
        words = [] if value is False else value if isinstance(value, tuple) else [value]
        typed += [f"--{name}", *map(str, words)]
    parsed = flatten_dict(dataclasses.asdict(tyro.cli(config, args=typed)), sep=".")
    assert parsed == {path: True if value is False else value for path, value in defaults.items()}


def test_cells_are_variants_times_combinations(tmp_path):
    cells = sweep(tmp_path, GOOD)
    assert len(cells) == 8
    assert [cell.label for cell in cells[:2]] == [
        "binary, grpo.preset=grpo@trl, channels=question",
        "binary, grpo.preset=grpo@trl, channels=question+edit",
    ]
    run = cells[7].runs[1]
    folder = "long,grpo.preset=dapo@trl,channels=question+edit"
    assert run.folder == tmp_path / "my" / folder / "seed3"
    wanted = TrainConfig(out=str(run.folder.parent), name="seed3", seed=3, steps=9)
    assert run.train == dataclasses.replace(
        wanted,
        models=dataclasses.replace(wanted.models, target="target-l"),
        probing=dataclasses.replace(wanted.probing, channels=("question", "edit")),
        grpo=dataclasses.replace(wanted.grpo, preset="dapo@trl", max_grad_norm=0.5, num_generations=4),
    )
    assert run.audit == AuditConfig(out=wanted.out, name="seed3", seed=3, questions=100, temperature=1)
    assert cells[7].varied["channels"] == ["question", "edit"]
    assert cells[7].varied["steps"] == 9
    assert cells[0].runs[0].train.steps == 7
    assert cells[0].runs[0].train.reward.diversity == 0


def test_none_is_a_setting_that_is_not_given(tmp_path):
    one, two = sweep(tmp_path, 'seeds = [0]\n[base]\ninstruction = "None"\n[grid]\naudit.target = ["None", "target-l"]')
    assert (one.runs[0].audit.target, two.runs[0].audit.target) == ("", "target-l")
    assert one.runs[0].train.instruction == TrainConfig().instruction


def test_without_a_grid_there_is_one_cell(tmp_path):
    assert [(cell.label, len(cell.runs)) for cell in sweep(tmp_path, "seeds = [1]")] == [("base", 1)]


def lines_of(tmp_path, text):
    with pytest.raises(UserError) as error:
        sweep(tmp_path, text)
    *lines, last = error.value.args
    assert last.endswith("nothing was run")
    return lines


def test_every_mistake_is_found_at_once(tmp_path):
    text = """
    seeds = [0]
    [base]
    seed = 4
    grpo.learning_rat = 1e-3
    steps = "many"
    [grid]
    grpo.preset = ["grpo@trl", "grpo@trk"]
    reward.diversity = [0, nan]
    target = ["target-s", "target-x", "reference-a"]
    images-per-step = 4
    lora-rank = []
    [[variant]]
    grpo.preset = "dapo@trl"
    """
    lines = lines_of(tmp_path, text)
    for part in (
        "seed is given by the sweep",
        "no setting 'grpo.learning-rat'; the nearest is 'grpo.learning-rate'",
        "steps is 'many'; its type is int",
        "grpo.preset is in [grid] and elsewhere",
        "reward.diversity is nan; its type is float",
        "images-per-step in [grid] is '4'; give a list",
        "lora-rank in [grid] is '[]'; give a list",
    ):
        assert sum(part in line for line in lines) == 1, part
    assert len(lines) == 7


def test_cells_that_cannot_run_have_a_line_each(tmp_path):
    text = """
    seeds = [0]
    [grid]
    target = ["target-s", "target-x", "reference-a"]
    grpo.num-generations = [1, 8]
    """
    lines = lines_of(tmp_path, text)
    assert len(lines) == 5  # one cell of six is good
    for target, generations, problem in (
        ("target-s", 1, "num-generations is 1: a group needs 2"),
        ("target-x", 1, "num-generations is 1: a group needs 2"),
        ("target-x", 8, "no model is called 'target-x'"),
        ("reference-a", 8, "the references contain the target 'reference-a'"),
    ):
        start = f"target={target}, grpo.num-generations={generations}: "
        assert [problem in line for line in lines if line.startswith(start)] == [True]


@pytest.mark.parametrize(
    ("setting", "problem"),
    [
        ("max-question-tokens = [11, 3]", "tokens; shorten it, raise --max-question-tokens"),
        ('reward.topics = [["how many"], ["how many of all the many red stars are there in the"]]', "shorten it"),
        ('editor = ["editor", "nosuch"]', "no pipeline directory nosuch"),
        ('editor = ["editor"]\nrender.size = [64, 5]', "cannot work at 5x5 pixels"),
        ('editor = ["editor"]\nrender.image-guidance = ["None", 1.5]', "has no image guidance"),
        ("lora-rank = [0, -1]", "lora-rank is -1"),
        ('target = ["target-s", "/no/such/target"]', "no checkpoint directory /no/such/target"),
        ('audit.auditor = ["None", "/"]', "/ has no config.json"),
        (
            'channels = [["question"], ["question", "edit"]]\naudit.questions = [1]',
            "none goes through the channel edit",
        ),
    ],
)
@pytest.mark.skipif("auditor" not in zoo_names(), reason="the zoo has not been built")
def test_what_would_stop_a_run_later_is_told_before(tmp_path, setting, problem):
    channels = 'channels = ["question", "edit"]' if "editor" in setting else ""
    (line,) = lines_of(tmp_path, f"seeds = [0]\n[base]\n{channels}\n[grid]\n{setting}")
    assert problem in line


def test_a_fault_of_all_cells_is_told_once(tmp_path):
    lines = lines_of(tmp_path, "seeds = [0]\n[base]\nsteps = 0\n[grid]\nlora-rank = [0, 2, 4]")
    assert lines == ["every cell: steps is 0: it must be at least 1"]


def test_the_same_cell_twice(tmp_path):
    (line,) = lines_of(tmp_path, "seeds = [0]\n[grid]\nlora-rank = [0, 2, 0]")
    assert line == "lora-rank=0: 'lora-rank=0' has the same settings or name; leave one out"
    variants = '[[variant]]\nlabel = "a"\n[[variant]]\nlabel = "b"\n'
    variants += f"reward.diversity = {Reward().diversity}\n"
    (line,) = lines_of(tmp_path, "seeds = [0]\n" + variants)
    assert line.startswith("b: 'a' has the same settings")


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("seeds = [0", "cannot be read as TOML"),
        ("[base]\nsteps = 3", "seeds in .* give one or more"),
        ("seeds = [1, 1]", "each once"),
        ("seeds = [0.5]", "seeds in .* is \\[0.5\\]"),
        ("seeds = [0]\n[girds]", "has 'girds'; it may have seeds, base, grid, variant"),
        ("seeds = [0]\n[variant]\nsteps = 3", "variant in .* is"),
    ],
)
def test_files_that_are_no_sweep(tmp_path, text, problem):
    with pytest.raises(UserError, match=problem):
        sweep(tmp_path, text)


def test_a_folder_of_other_settings_is_found_beforehand(tmp_path):
    (cell,) = sweep(tmp_path, "seeds = [0]\n[base]\nsteps = 3")
    (run,) = cell.runs
    write_json(run.folder / "config.json", dataclasses.replace(run.train, resume=True, checkpoint_every=7))
    (run.folder / "checkpoints" / "3").mkdir(parents=True)
    sweep(tmp_path, "seeds = [0]\n[base]\nsteps = 3")
    (line,) = lines_of(tmp_path, "seeds = [0]\n[base]\nsteps = 4")
    assert "steps is 3 there and 4 now" in line


@pytest.mark.parametrize(
    ("value", "hint", "good"),
    [
        (1, float, True),
        (True, float, False),
        (True, int, False),
        (1.0, int, False),
        ("None", float | None, True),
        ("None", float, False),
        (["a"], tuple[str, ...], True),
        ("a", tuple[str, ...], False),
        ([1, 2], int | tuple[int, int] | None, True),
        ([1, 2, 3], int | tuple[int, int] | None, False),
    ],
)
def test_types_of_values(value, hint, good):
    assert fits(value, hint) is good


@given(st.lists(st.text(max_size=120), min_size=2, max_size=2, unique=True))
def test_folders_of_labels_are_safe_and_apart(labels):
    names = [folder_name(label) for label in labels]
    assert names[0] != names[1]
    assert all(len(name.encode()) <= 80 and "/" not in name and name.isprintable() for name in names)


def test_a_label_is_never_another_place():
    for label in (".", "..", "table.md", "frontier.svg", "a,b", "\U00020000" * 75, ""):
        name = folder_name(label)
        assert name.isascii()
        assert name not in (label, "a,b")
    assert [folder_name(label) for label in ("a, b", "floor=0.5")] == ["a,b", "floor=0.5"]


@pytest.mark.parametrize(
    "text",
    [
        '[base]\n"reward.topic_share" = 0.5\n"reward.topic-share" = 0.1',
        "[grid]\nlora-rank = [1, 2]\nlora_rank = [3, 4]",
    ],
)
def test_a_setting_twice_in_a_section_is_told(tmp_path, text):
    (tmp_path / "s.toml").write_text(f"seeds = [0]\n{text}")
    with pytest.raises(UserError, match="is written twice in one section"):
        read_sweep(tmp_path / "s.toml", str(tmp_path))


@pytest.mark.parametrize(("name", "cells"), [("algorithms", 18), ("channels", 4), ("frontier", 13), ("first_look", 2)])
def test_the_sweeps_that_are_shipped_are_good(name, cells, tmp_path):
    path = Path(__file__).parents[1] / "benchmarks" / "ablations" / f"{name}.toml"
    assert len(read_sweep(path, tmp_path)) == cells
