"""Draws docs/run.png, the README's picture, from a finished run: `pip install matplotlib; python docs/picture.py`."""

import io
import json
import textwrap
from dataclasses import dataclass
from pathlib import Path

import matplotlib.pyplot as plt
import pyarrow.parquet as pq
import tyro
from PIL import Image


@dataclass(frozen=True)
class Config:
    """Which run to draw."""

    run: Path = Path("runs/default")
    out: Path = Path("docs/run.png")


def main(config: Config) -> None:
    rows = pq.read_table(config.run / "audit" / "discoveries.parquet").to_pylist()
    seen: dict[str, dict] = {}
    for row in rows:
        if row["verified"]:
            seen.setdefault(row["skill"], row)
    figure = plt.figure(figsize=(13, 5.2), constrained_layout=True)
    left, right = figure.subfigures(1, 2, width_ratios=(1.6, 1))
    for axis, row in zip(left.subplots(2, 4).flat, seen.values(), strict=False):
        axis.imshow(Image.open(io.BytesIO(row["image"]["bytes"])), interpolation="nearest")
        axis.set_title(textwrap.fill(row["question"], 24), fontsize=8)
        axis.set_xlabel(f"target: {row['target_answer']}\nreferences: {row['consensus']}", fontsize=8)
        axis.set_xticks([]), axis.set_yticks([])
    metrics = [json.loads(line) for line in (config.run / "metrics.jsonl").read_text().splitlines()]
    probes = [row for row in metrics if "heldout/oracle/verified" in row]
    axis = right.subplots()
    for name, label in (("heldout/claimed", "claimed"), ("heldout/oracle/verified", "verified by the oracle")):
        axis.plot([row["step"] for row in probes], [row[name] for row in probes], label=label)
    axis.set(xlabel="training step", ylabel="share of questions on held-out scenes", ylim=(0, 1))
    axis.legend(loc="lower right"), axis.grid(alpha=0.3)
    figure.savefig(config.out, dpi=100)


if __name__ == "__main__":
    main(tyro.cli(Config))
