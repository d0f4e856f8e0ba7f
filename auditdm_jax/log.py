"""[host] What a training run shows and writes: progress bar, metrics.jsonl, TensorBoard."""

import shutil
from pathlib import Path
from typing import Any

import jax
import numpy as np
from tensorboardX import SummaryWriter
from tensorboardX.proto.summary_pb2 import Summary
from tqdm import tqdm

from auditdm_jax.alarms import ALARMS, Watch, watch_row
from auditdm_jax.errors import UserError
from auditdm_jax.files import append_jsonl, read_jsonl, rewind_jsonl

CLAIMED, VERIFIED, GAP = "heldout/claimed", "heldout/oracle/verified", "heldout/oracle/gap"
# On the progress bar, averaged: short name and metric. Groups without signal stand beside what theory expects.
SHOWN = {
    "claimed": "outcome/claimed",
    "flat": "reward/groups_without_signal",
    "expected": "reward/groups_without_signal_expected",
}


class Log:
    """Use as a context manager. Rows after step `first` of an interrupted run are dropped, so no step stands twice."""

    def __init__(self, run: Path, first: int, steps: int):
        self.path, self.first = run / "metrics.jsonl", first
        if first == 0:  # what a run left that was killed before its first checkpoint, or is begun again
            self.path.unlink(missing_ok=True)
            shutil.rmtree(run / "tensorboard", ignore_errors=True)
        rewind_jsonl(self.path, first)
        self.watches = (Watch(),) * len(ALARMS)
        for row in read_jsonl(self.path):
            self.watches, _ = watch_row(self.watches, row)
        self.board = SummaryWriter(str(run / "tensorboard"), purge_step=first + 1)
        self.bar = tqdm(total=steps, initial=first, desc="compiling", unit="step", smoothing=0.05)
        self.pending: tuple[int, dict[str, Any]] | None = None
        self.shown: dict[str, float] = {}

    def __enter__(self) -> "Log":
        return self

    def __exit__(self, *_: object) -> None:
        self.flush()
        self.bar.close()
        self.board.close()

    def step(self, number: int, metrics: dict[str, Any]) -> None:
        """Metrics of update `number`, still on the device: they are read one step later, so nothing waits for them."""
        self.flush()
        self.pending = (number, metrics)

    def flush(self) -> None:
        """Reads and writes the metrics that are pending. Raises UserError where one is not finite, naming it."""
        if self.pending is None:
            return
        (number, metrics), self.pending = self.pending, None
        row = {name: float(value) for name, value in jax.device_get(metrics).items()}
        for name, value in row.items():
            if not np.isfinite(value):
                raise UserError(
                    f"{name} is {value} at step {number}; lower --grpo.learning-rate, and begin again with --overwrite"
                )
        for short, name in SHOWN.items():
            self.shown[short] = 0.95 * self.shown.get(short, row[name]) + 0.05 * row[name]
        self.write(number, row)
        if self.bar.n == self.first:
            self.bar.unpause()  # else the time left would be told from a step with all its compilation in it
        self.bar.set_description("training", refresh=False)
        self.bar.update()

    def write(self, number: int, row: dict[str, float]) -> None:
        """One row of metrics.jsonl and of TensorBoard; says what alarms, and what a probe with an oracle measured."""
        self.watches, tripped = watch_row(self.watches, row)
        row = {**row, "alarms": sum(watch.tripped for watch in self.watches)}
        append_jsonl(self.path, {"step": number, **row})
        if GAP in row:
            shares = f"{row[CLAIMED]:.3f} claimed, {row[VERIFIED]:.3f} verified by the oracle"
            tqdm.write(f"step {number}: held-out success {shares}, {100 * row[GAP]:.1f} points apart")
        for line in tripped:
            tqdm.write(f"step {number}: {line}")
        # One event for all: `add_scalar` makes one of each, a millisecond for five of them.
        values = [Summary.Value(tag=name, simple_value=value) for name, value in row.items()]
        self.board.file_writer.add_summary(Summary(value=values), number)
        if VERIFIED in row:
            self.shown["verified"] = row[VERIFIED]
        self.bar.set_postfix({name: f"{value:.2f}" for name, value in self.shown.items()}, refresh=False)
