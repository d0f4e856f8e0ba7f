"""checkpoint.py: what is restored is what was saved, and nothing half-written is taken for good."""

import errno
import os
import shutil
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from auditdm_jax import checkpoint
from auditdm_jax.checkpoint import Checkpointer, check_config
from auditdm_jax.errors import UserError
from auditdm_jax.files import read_json

CONFIG = {"target": "zoo/S", "learning_rate": 0.1, "steps": 10, "log": {"every": 5}}


def new_state(value: float = 1.0) -> dict:
    """One leaf of every kind that a training state may hold."""
    params = {"layers": {"q": jnp.full((2, 3), value, jnp.bfloat16)}, "bias": jnp.full((3,), value, jnp.float32)}
    return {
        "params": params,
        "opt_state": optax.adamw(1e-3).init(params),
        "key": jax.random.fold_in(jax.random.key(7), int(value)),
        "keys": jax.random.split(jax.random.key(int(value), impl="rbg"), 2),
        "raw_key": jax.random.PRNGKey(int(value)),
        "step": int(value),
        "rate": value / 2,
        "seen": np.arange(3) * int(value),
        "none": None,
        "empty": jnp.zeros((0, 4)),
    }


def assert_same(left: object, right: object) -> None:
    assert jax.tree.structure(left) == jax.tree.structure(right)
    for a, b in zip(jax.tree.leaves(left), jax.tree.leaves(right), strict=True):
        assert type(a) is type(b)
        if isinstance(a, jax.Array):
            assert a.dtype == b.dtype
            if jnp.issubdtype(a.dtype, jax.dtypes.prng_key):
                a, b = jax.random.key_data(a), jax.random.key_data(b)
        np.testing.assert_array_equal(np.asarray(a), np.asarray(b))


def opened(run: Path, config: dict = CONFIG, **options: object) -> Checkpointer:
    return Checkpointer(run, config, **{"may_differ": ("steps",), **options})


def saved(run: Path, *steps: int) -> Checkpointer:
    checkpoints = opened(run)
    for step in steps:
        checkpoints.save(step, new_state(step), {"step": step})
    return checkpoints


def test_round_trip_of_every_kind_of_leaf(tmp_path):
    saved(tmp_path, 3).close()
    step, state, position = opened(tmp_path).restore(new_state(0))
    assert (step, position) == (3, {"step": 3})
    assert_same(state, new_state(3))
    # the restored keys go on as the saved ones would have
    assert_same(jax.random.normal(state["key"]), jax.random.normal(new_state(3)["key"]))
    assert jax.random.key_impl(state["keys"]) == "rbg"


def test_restored_arrays_lie_where_those_of_the_new_state_lie(tmp_path):
    """Bound to their device, too, where those are: a step that is given others would compile again."""
    like = new_state(0)
    like["params"] = jax.device_put(like["params"], jax.devices()[0])
    params = saved(tmp_path, 1).restore(like).state["params"]
    for got, want in zip(*map(jax.tree.leaves, (params, like["params"])), strict=True):
        assert got.sharding == want.sharding
        assert got.committed is want.committed is True


def test_newest_is_restored_and_the_last_few_kept(tmp_path):
    checkpoints = opened(tmp_path, keep=2)
    for step in (1, 2, 10):
        checkpoints.save(step, new_state(step))
    assert checkpoints.latest_step() == 10
    assert sorted(os.listdir(tmp_path / "checkpoints")) == ["10", "2"]
    assert_same(checkpoints.restore(new_state(0)).state, new_state(10))


def test_saving_a_step_again_or_an_earlier_one(tmp_path):
    checkpoints = saved(tmp_path, 5)
    checkpoints.save(5, new_state(6))
    assert_same(checkpoints.restore(new_state(0)).state, new_state(5))
    with pytest.raises(ValueError, match="step 4 is not after the newest saved step 5"):
        checkpoints.save(4, new_state(4))


def test_only_what_is_given_is_written(tmp_path):
    """A state of a few kilobytes must not grow into megabytes beside it."""
    saved(tmp_path, 1)
    assert sum(f.stat().st_size for f in tmp_path.rglob("*") if f.is_file()) < 100_000


def test_nothing_to_resume(tmp_path):
    assert opened(tmp_path).restore(new_state()) is None


def test_another_configuration_is_refused_by_field(tmp_path):
    saved(tmp_path, 1).close()
    other = {**CONFIG, "target": "zoo/L", "log": {"every": 6}, "new": True}
    with pytest.raises(UserError) as raised:
        opened(tmp_path, other)
    told = str(raised.value)
    assert "log.every is 5 there and 6 now, new is absent there and True now, target is zoo/S" in told
    assert "another --name" in told
    assert read_json(tmp_path / "config.json") == CONFIG


def test_a_free_field_may_change_and_is_written_down(tmp_path):
    saved(tmp_path, 1).close()
    longer = opened(tmp_path, {**CONFIG, "steps": 20, "log": {"every": 6}}, may_differ=("steps", "log"))
    assert longer.restore(new_state()).step == 1
    assert read_json(tmp_path / "config.json")["steps"] == 20


def test_a_folder_without_checkpoints_takes_a_new_configuration(tmp_path):
    opened(tmp_path).close()
    opened(tmp_path, {**CONFIG, "target": "zoo/L"})
    assert read_json(tmp_path / "config.json")["target"] == "zoo/L"


def test_a_checkpoint_moved_into_another_run_is_refused(tmp_path):
    saved(tmp_path / "a", 1).close()
    opened(tmp_path / "b", {**CONFIG, "target": "zoo/L"}).close()
    shutil.copytree(tmp_path / "a" / "checkpoints" / "1", tmp_path / "b" / "checkpoints" / "1")
    with pytest.raises(UserError, match="target is zoo/S there and zoo/L now"):
        opened(tmp_path / "b", {**CONFIG, "target": "zoo/L"}).restore(new_state())


def test_a_file_that_holds_no_settings_is_told(tmp_path):
    saved(tmp_path, 1).close()
    (tmp_path / "config.json").write_text("[]")
    with pytest.raises(UserError, match="holds no settings"):
        opened(tmp_path)


def test_long_lists_of_differences_are_cut():
    with pytest.raises(UserError, match=r"a4 is 4 there and absent now, and 15 more; "):
        check_config({f"a{i}": i for i in (0, 1, 2, 3, 4, *range(50, 65))}, {}, "runs/x")


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda s: s["params"].update(bias=jnp.zeros((4,))), r"\['params'\]\['bias'\] is float32\[3\] there"),
        (lambda s: s["params"].update(bias=jnp.zeros((3,), jnp.bfloat16)), r"and bfloat16\[3\] here"),
        (lambda s: s["params"].update(more=jnp.zeros(())), r"\['more'\] is absent there and float32\[\] here"),
        (lambda s: s["params"].pop("bias"), r"\['bias'\] is float32\[3\] there and absent here"),
        (lambda s: s.update(key=jax.random.key(0, impl="rbg")), r"key<fry>\[\] there and key<rbg>\[\] here"),
    ],
)
def test_a_state_of_another_model_is_refused(tmp_path, change, told):
    checkpoints = saved(tmp_path, 1)
    like = new_state(0)
    change(like)
    with pytest.raises(UserError, match=told):
        checkpoints.restore(like)


def test_full_disk_leaves_earlier_checkpoints_and_no_draft(tmp_path, monkeypatch, capfd):
    """Orbax's array writer raises ValueError with the system's words; its others raise OSError."""
    checkpoints = saved(tmp_path, 1)
    real = checkpoints._manager.save
    for error in (
        ValueError("RESOURCE_EXHAUSTED: Failed to write 9 bytes: No space left on device [os_error_code='28']"),
        OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)),
    ):

        def fill_up(step: int, error: Exception = error, **_: object) -> None:
            (tmp_path / "checkpoints" / f"{step}.orbax-checkpoint-tmp").mkdir()
            raise error

        monkeypatch.setattr(checkpoints._manager, "save", fill_up)
        with pytest.raises(UserError, match=r"the disk is full: .*/checkpoints/2 could not be written; free"):
            checkpoints.save(2, new_state(2))
        assert os.listdir(tmp_path / "checkpoints") == ["1"]
    monkeypatch.setattr(checkpoints._manager, "save", real)
    assert_same(checkpoints.restore(new_state(0)).state, new_state(1))
    checkpoints.save(2, new_state(2))
    assert checkpoints.latest_step() == 2


def test_a_real_write_error_is_not_logged_as_a_traceback(tmp_path, capfd):
    """The folder of a run vanishes under it: whatever Orbax raises, its log stays silent."""
    checkpoints = saved(tmp_path / "run", 1)
    shutil.rmtree(tmp_path / "run")
    (tmp_path / "run").touch()
    with pytest.raises(Exception):  # noqa: B017, PT011 - Orbax's own choice of type
        checkpoints.save(2, new_state(2))
    assert "Traceback" not in capfd.readouterr().err


def test_a_run_killed_while_saving_resumes_from_the_last_whole_checkpoint(tmp_path):
    """A second process saves without end and is killed at arbitrary moments."""
    program = textwrap.dedent("""
        import sys
        import jax.numpy as jnp
        from auditdm_jax.checkpoint import Checkpointer
        checkpoints = Checkpointer(sys.argv[1], {})
        step = (checkpoints.latest_step() or 0) + 1
        while True:
            checkpoints.save(step, {"x": jnp.full((200_000,), step)}, {"step": step})
            print(step, flush=True)
            step += 1
    """)
    process = subprocess.Popen(
        [sys.executable, "-c", program, str(tmp_path)],
        stdout=subprocess.PIPE,
        text=True,
        cwd=Path(checkpoint.__file__).parents[1],
    )
    try:
        reported = 0
        while reported < 4:
            reported = int(process.stdout.readline())
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
        process.stdout.close()
    step, state, position = Checkpointer(tmp_path, {}).restore({"x": jnp.zeros((200_000,), int)})
    assert step >= reported
    assert position == {"step": step}
    np.testing.assert_array_equal(state["x"], step)


def test_a_half_written_checkpoint_under_its_draft_name_is_ignored(tmp_path):
    saved(tmp_path, 1).close()
    folder = tmp_path / "checkpoints"
    shutil.copytree(folder / "1", folder / "2.orbax-checkpoint-tmp")
    checkpoints = opened(tmp_path)
    assert checkpoints.latest_step() == 1
    checkpoints.save(2, new_state(2))
    assert_same(checkpoints.restore(new_state(0)).state, new_state(2))


@pytest.mark.filterwarnings("ignore:coroutine:RuntimeWarning")  # Orbax gives up in the middle
@pytest.mark.parametrize("damage", ["cut", "missing"])
def test_a_damaged_checkpoint_says_which_folder_to_delete(tmp_path, damage, monkeypatch):
    saved(tmp_path, 1, 2).close()
    for file in [f for f in (tmp_path / "checkpoints" / "2" / "state").rglob("*") if f.is_file()]:
        if damage == "missing":
            file.unlink()
        else:
            os.truncate(file, file.stat().st_size // 2)
    monkeypatch.setattr(checkpoint.logging.getLogger("asyncio"), "level", 0)  # given back after the test
    with pytest.raises(UserError, match=r"checkpoints/2 is damaged .*; delete that folder to go on"):
        opened(tmp_path).restore(new_state(0))
    shutil.rmtree(tmp_path / "checkpoints" / "2")
    assert opened(tmp_path).restore(new_state(0)).step == 1


def test_log_level_of_others_is_given_back(tmp_path):
    logger = checkpoint.logging.getLogger("absl")
    logger.setLevel("WARNING")
    saved(tmp_path, 1)
    assert logger.level == checkpoint.logging.WARNING


def test_a_disk_too_small_is_met_before_anything_is_written(tmp_path, monkeypatch, capfd):
    checkpoints = Checkpointer(tmp_path, {})
    checkpoints.save(1, {"x": jnp.zeros(100)})
    usage = shutil.disk_usage(tmp_path)._replace(free=399)  # float32[100] takes 400 bytes
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    with pytest.raises(UserError, match=r"the disk is full: .*/checkpoints/2 could not be written"):
        checkpoints.save(2, {"x": jnp.ones(100)})
    assert [path.name for path in (tmp_path / "checkpoints").iterdir() if path.is_dir()] == ["1"]
    assert not capfd.readouterr().err
