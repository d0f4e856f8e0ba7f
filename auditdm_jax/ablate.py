"""[host] Many runs from one file, and what they show: `python -m auditdm_jax.ablate SPEC [--out runs] [--list]`.

`sweep.py` says what the file holds, `compare.py` what is said of the results. Each run is as train.py and audit.py make
it, in `<out>/<name of the file>/<cell>/seed<n>`. Beside them stand `table.md`, `table.parquet` (a row for each run),
`curves.svg` and `frontier.svg`, renewed after each cell. The same command goes on where it was stopped, in the middle
of a run too. A run that fails is told of, and tried again the next time; the others go on.
"""

import io
import traceback
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass, replace
from pathlib import Path
from time import monotonic
from typing import Any

import tyro

import auditdm_jax.cli  # noqa: F401 - sets what JAX reads when it is imported

# isort: split
import jax
import pyarrow as pa

from auditdm_jax import audit
from auditdm_jax.compare import MEASURES, measures_of, safe, table
from auditdm_jax.curves import svg
from auditdm_jax.errors import UserError, one_line, run_cli
from auditdm_jax.files import atomic_file, plain, read_json, write_parquet
from auditdm_jax.frontier import frontier_svg
from auditdm_jax.huge_pages import with_huge_pages
from auditdm_jax.places import at_home
from auditdm_jax.sweep import Cell, Run, read_sweep, spelled
from auditdm_jax.training import train, train_jointly


@dataclass(frozen=True)
class AblateConfig:
    """Train and audit each cell of a sweep with each seed, and compare the cells."""

    spec: tyro.conf.Positional[Path]
    """TOML file with the seeds and settings; auditdm_jax/sweep.py shows one."""
    out: str = "runs"
    """Folder of all runs."""
    list: bool = False
    """Check the file and list its cells, without running them."""
    together: bool = False
    """Train the seeds of a cell in one compiled step (joint.py): of 3 seeds 14 % less processor time a step."""

    def __post_init__(self) -> None:
        at_home(self, "out")


def stage(run: Run) -> str:
    """How far a run is: to do, begun, trained, finished."""
    if not (run.folder / "auditor" / "config.json").exists():
        return "begun" if any(run.folder.glob("checkpoints/*")) else "to do"
    try:
        summary = read_json(run.folder / "audit" / "summary.json")
        measures_of(summary)
        there = dict(summary["settings"])
    except (UserError, OSError, AttributeError, KeyError, TypeError, ValueError):
        return "trained"  # there is no audit, or a damaged one
    # Runs may have been moved; an audit with other settings is made anew.
    return "finished" if there == plain(run.audit) | {"out": there.get("out")} else "trained"


def finish(run: Run) -> None:
    """Trains and audits, as far as that is not done. Raises UserError as both do."""
    if stage(run) in ("to do", "begun"):
        train(replace(run.train, resume=True))
    if stage(run) == "trained":
        with redirect_stdout(io.StringIO()):  # its report is in summary.json
            audit.main(run.audit)


def run_all(cells: Sequence[Cell], folder: Path, together: bool) -> None:
    """Finishes all runs, a cell's seeds trained together if told so. Raises UserError in the end if some failed."""
    failed: dict[Path, str] = {}
    folder.mkdir(parents=True, exist_ok=True)  # told before the work, not after it
    runs = [run for cell in cells for run in cell.runs]
    print(", ".join(f"{count} {name}" for name, count in Counter(map(stage, runs)).items()))
    for cell in cells:
        todo = [run for run in cell.runs if stage(run) != "finished"]
        untrained = [replace(run.train, resume=True) for run in todo if stage(run) in ("to do", "begun")]
        for config in untrained:  # an audit that is there is of another auditor
            (Path(config.out) / config.name / "audit" / "summary.json").unlink(missing_ok=True)
        if together and len(untrained) > 1:
            try:
                train_jointly(untrained)
            except Exception as error:  # of one seed, maybe: on its own each shows
                print(f"{one_line(cell.label)}: {one_line(error, 200)}; its seeds go on one after another")
        for run in todo:
            start = monotonic()
            print(f"{one_line(cell.label)}, seed {run.train.seed}")
            try:
                finish(run)
            except Exception as error:  # memory may be too small for one cell, and enough for the next
                if not isinstance(error, UserError):
                    traceback.print_exc()
                failed[run.folder] = str(error) or type(error).__name__
                print(f"  failed: {one_line(error, 200)}")
            else:
                print(f"  done in {monotonic() - start:.0f} s")
        if todo:
            # Each run compiles for an optimizer of its own, which nothing else would ever let go of.
            jax.clear_caches()
            write_report(cells, failed, folder)
    write_report(cells, failed, folder)
    print((folder / "table.md").read_text())
    if failed:
        raise UserError(f"{len(failed)} of {len(runs)} runs failed, see table.parquet; mend the cause and run again")


def write_report(cells: Sequence[Cell], failed: dict[Path, str], folder: Path) -> None:
    """table.md, table.parquet, curves.svg and frontier.svg from the runs that are finished."""
    rows = list(rows_of(cells, failed))
    write_parquet(folder / "table.parquet", pa.Table.from_pylist(rows))
    # The first cell, which the others are compared with, is there even where none of its runs is finished.
    results: dict[str, dict[int, dict[str, float]]] = {cells[0].label: {}}
    drawn: dict[str, list[Path]] = {cells[0].label: []}
    for row in rows:
        if row["stage"] == "finished":
            results.setdefault(row["cell"], {})[row["seed"]] = {name: row[name] for name in MEASURES}
            drawn.setdefault(row["cell"], []).append(Path(row["folder"]))
    missing = [f"- {row['cell']}, seed {row['seed']}: {row['stage']}" for row in rows if row["stage"] != "finished"]
    texts = {"curves.svg": svg(drawn), "frontier.svg": frontier_svg(results)}
    pictures = "![curves](curves.svg)\n\n![frontier](frontier.svg)\n"
    texts["table.md"] = f"# {safe(folder.name)}\n\n{table(results)}\n\n{pictures}"
    if missing:
        texts["table.md"] += "\n".join(["\nNot in the table:", *map(safe, missing), ""])
    for name, text in texts.items():
        with atomic_file(folder / name) as draft:
            draft.write_text(text, encoding="utf-8", errors="backslashreplace")


def rows_of(cells: Sequence[Cell], failed: dict[Path, str]) -> Iterator[dict[str, Any]]:
    """A row for each run: what was varied, as text, and what its audit measured."""
    names = dict.fromkeys(name for cell in cells for name in cell.varied)
    for cell in cells:
        for run in cell.runs:
            done = stage(run) == "finished"
            measured = measures_of(read_json(run.folder / "audit" / "summary.json")) if done else {}
            yield {
                "cell": cell.label,
                "seed": run.train.seed,
                **{name: spelled(cell.varied[name]) if name in cell.varied else None for name in names},
                "stage": f"failed: {failed[run.folder]}" if run.folder in failed else stage(run),
                **{name: measured.get(name) for name in MEASURES},
                "folder": str(run.folder),
            }


def ablate(config: AblateConfig) -> None:
    """The command. Raises UserError, before anything runs, for every mistake in the file."""
    cells = read_sweep(config.spec, config.out)
    if config.list:
        for cell in cells:
            print(f"{one_line(cell.label)}: " + ", ".join(f"seed {run.train.seed} {stage(run)}" for run in cell.runs))
        steps = sum(run.train.steps for cell in cells for run in cell.runs if stage(run) in ("to do", "begun"))
        print(f"{len(cells)} cells, {sum(len(cell.runs) for cell in cells)} runs, up to {steps:,} steps to train")
        return
    run_all(cells, Path(config.out) / config.spec.stem, config.together)


if __name__ == "__main__":
    with_huge_pages()
    run_cli(lambda: ablate(tyro.cli(AblateConfig, description=AblateConfig.__doc__)))
