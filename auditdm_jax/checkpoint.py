"""[host] Saves and restores what a run has learned: `<run>/config.json` and `<run>/checkpoints/<step>`.

A checkpoint holds the trainable state (any pytree: parameters, optimizer state, PRNG keys, counters), the
position in the data and the settings, and nothing frozen. Orbax writes it under a temporary name and gives
it its real one when it is whole, so a killed run or a full disk leaves the earlier checkpoints as they were.
"""

import contextlib
import logging
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import orbax.checkpoint as ocp
from flax.traverse_util import flatten_dict

from auditdm_jax.errors import UserError, disk_full, is_disk_full, one_line
from auditdm_jax.files import plain, read_json, write_json


class Restored(NamedTuple):
    """A checkpoint read back."""

    step: int
    state: Any
    position: Any


class Checkpointer:
    """The checkpoints of one run folder, of which the newest `keep` stay.

    Opening writes `config.json`, or compares it where the folder already has checkpoints: raises UserError,
    naming the fields, if the run was made with other settings, or, where a `fresh` run is wanted, if it has
    checkpoints at all, or more than `steps` are done. Fields in `may_differ` ("steps", or
    "log.every" for a nested one) are free to change, so that a run can be prolonged.
    """

    def __init__(
        self,
        run: str | os.PathLike[str],
        config: Any,
        *,
        keep: int = 3,
        may_differ: Sequence[str] = (),
        fresh: bool = False,
        steps: int | None = None,
    ) -> None:
        self._run = Path(run)
        self._folder = self._run.absolute() / "checkpoints"
        self._config, self._may_differ = plain(config), tuple(may_differ)
        options = ocp.CheckpointManagerOptions(
            max_to_keep=keep,
            enable_async_checkpointing=False,  # the state is small, and a full disk is met at its cause
            cleanup_tmp_directories=True,
        )
        with _quiet():
            self._manager = ocp.CheckpointManager(self._folder, options=options)
        settings = self._run / "config.json"
        if self.latest_step() is not None and settings.exists():
            check_config(read_json(settings), self._config, self._run, self._may_differ)
        if fresh and self.latest_step() is not None:
            raise UserError(
                f"{one_line(self._run)} already holds a run of {self.latest_step()} steps; add --resume to go on, "
                "--overwrite to begin again, or --name to begin another"
            )
        if steps is not None and (self.latest_step() or 0) > steps:
            raise UserError(
                f"{one_line(self._run)} has {self.latest_step()} steps done, more than {steps}; give --steps "
                f"{self.latest_step()} or more, --overwrite to begin again, or --name to begin another"
            )
        write_json(settings, self._config)

    def latest_step(self) -> int | None:
        """The step (number of updates done) of the newest whole checkpoint, None if there is none."""
        return self._manager.latest_step()

    def save(self, step: int, state: Any, position: Any = None) -> None:
        """Saves `state` as it is after `step` updates, with `position` (JSON's types).

        A step that is already saved is left alone: the same settings lead to the same state. Raises
        UserError if the disk is full; what was saved before stays.
        """
        if step == self.latest_step():
            return
        leaves = _leaves(state)
        about = {
            "leaves": {name: _described(leaf) for name, leaf in leaves.items()},
            "position": plain(position),
            "config": self._config,
        }
        # Asked beforehand: where its native writers run into a full disk, Orbax prints tracebacks from their threads.
        if shutil.disk_usage(self._folder).free < sum(array.nbytes for array in _stored(leaves).values()):
            raise disk_full(self._run / "checkpoints" / str(step))
        try:
            with _quiet():
                saved = self._manager.save(
                    step,
                    args=ocp.args.Composite(
                        state=ocp.args.StandardSave(_stored(leaves)), about=ocp.args.JsonSave(about)
                    ),
                )
        except Exception as error:
            _forget_other_failures()
            for draft in self._folder.glob("*orbax-checkpoint-tmp*"):
                shutil.rmtree(draft, ignore_errors=True)
            if is_disk_full(error):
                raise disk_full(self._run / "checkpoints" / str(step)) from error
            raise
        if not saved:
            raise ValueError(f"step {step} is not after the newest saved step {self.latest_step()}")

    def restore(self, like: Any) -> Restored | None:
        """Reads the newest checkpoint into the structure, placement and key types of `like`; None if there
        is no checkpoint.

        Raises UserError if it is damaged, was made with other settings, or holds arrays of other names,
        shapes or dtypes than `like`.
        """
        step = self.latest_step()
        if step is None:
            return None
        about = self._read(step, about=ocp.args.JsonRestore())["about"]
        check_config(about["config"], self._config, self._run, self._may_differ)
        leaves, wanted = _leaves(like), about["leaves"]
        for name in [*leaves, *wanted]:
            there = wanted.get(name, "absent")
            here = _described(leaves[name]) if name in leaves else "absent"
            if there != here:
                raise UserError(
                    f"checkpoint {step} of {one_line(self._run)} does not fit this model: "
                    f"{one_line(name, 80)} is {one_line(there)} there and {here} here; "
                    "resume with the models it was made with, or begin a new run with another --name"
                )
        targets = {name: _target(raw) for name, raw in _stored(leaves).items()}
        raw = self._read(step, state=ocp.args.StandardRestore(targets))["state"]
        restored = [_as_before(raw[name], leaf) if name in raw else leaf for name, leaf in leaves.items()]
        state = jax.tree.unflatten(jax.tree.structure(like), restored)
        return Restored(step, state, about["position"])

    def close(self) -> None:
        """Ends Orbax's threads."""
        self._manager.close()

    def _read(self, step: int, **items: Any) -> Any:
        try:
            with _quiet():
                return self._manager.restore(step, args=ocp.args.Composite(**items))
        except Exception as error:  # a missing or cut file surfaces with many types
            _forget_other_failures()
            folder = self._run / "checkpoints" / str(step)
            raise UserError(
                f"the checkpoint {one_line(folder)} is damaged ({one_line(error, 120)}); "
                "delete that folder to go on from the one before it"
            ) from error


def check_config(
    saved: Mapping[str, Any], config: Mapping[str, Any], run: str | os.PathLike[str], may_differ: Sequence[str] = ()
) -> None:
    """Raises UserError naming the fields in which two configurations (JSON's types) differ."""
    if not isinstance(saved, Mapping):
        raise UserError(f"{one_line(Path(run) / 'config.json')} holds no settings; remove the folder")
    there, here = (flatten_dict(settings, sep=".") for settings in (saved, config))
    differing = [
        f"{one_line(name, 40)} is {one_line(there.get(name, 'absent'), 40)} there "
        f"and {one_line(here.get(name, 'absent'), 40)} now"
        for name in sorted(there.keys() | here.keys())
        if there.get(name, "absent") != here.get(name, "absent")
        and not any(name == free or name.startswith(f"{free}.") for free in may_differ)
    ]
    if differing:
        more = f", and {len(differing) - 5} more" if len(differing) > 5 else ""
        raise UserError(
            f"{one_line(run)} was made with other settings: {', '.join(differing[:5])}{more}; "
            "use the same settings, choose another --name or --out, or begin again: delete that folder (or --overwrite)"
        )


def _leaves(tree: Any) -> dict[str, Any]:
    """The leaves by path. Names, unlike positions, tell which array is missing or too many."""
    return {jax.tree_util.keystr(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}


def _is_key(leaf: Any) -> bool:
    return isinstance(leaf, jax.Array) and jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def _described(leaf: Any) -> str:
    """A leaf's dtype and shape, such as `float32[8,64]`; for typed keys the generator, `key<fry>[]`."""
    array = leaf if isinstance(leaf, jax.Array) else np.asarray(leaf)
    return f"{array.dtype}{list(array.shape)}".replace(" ", "")


def _stored(leaves: Mapping[str, Any]) -> dict[str, jax.Array | np.ndarray]:
    """What Orbax can store: the words of a typed key, an array for a Python number, no empty arrays."""
    raw = {name: jax.random.key_data(leaf) if _is_key(leaf) else leaf for name, leaf in leaves.items()}
    arrays = {name: leaf if isinstance(leaf, jax.Array) else np.asarray(leaf) for name, leaf in raw.items()}
    return {name: array for name, array in arrays.items() if array.size}


def _target(raw: jax.Array | np.ndarray) -> jax.ShapeDtypeStruct | np.ndarray:
    """Tells Orbax the shape, dtype and device of the array to make."""
    if isinstance(raw, np.ndarray):
        return raw
    return jax.ShapeDtypeStruct(raw.shape, raw.dtype, sharding=raw.sharding)


def _as_before(raw: Any, leaf: Any) -> Any:
    """A stored array in the kind of `leaf`: typed key, JAX or NumPy array, Python number."""
    if _is_key(leaf):
        return jax.random.wrap_key_data(raw, impl=jax.random.key_impl(leaf))
    if isinstance(leaf, jax.Array | np.ndarray | np.generic):
        return raw
    return type(leaf)(raw)


def _forget_other_failures() -> None:
    """Orbax abandons its other reads or writes; asyncio would log a traceback of each when it is collected."""
    logging.getLogger("asyncio").setLevel(logging.CRITICAL + 1)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Orbax logs a traceback before it raises; the user gets one line instead."""
    logger = logging.getLogger("absl")
    level = logger.level
    logger.setLevel(logging.CRITICAL + 1)
    try:
        yield
    finally:
        logger.setLevel(level)
