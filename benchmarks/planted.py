"""How often audits find weaknesses that were planted on purpose, and name none where there is none.

python benchmarks/planted.py                                                   # hours; goes on where it was stopped
python benchmarks/planted.py --plantings clock none --seeds 1 --methods prompt-only random --search-queries 0

Every method puts the same number of questions to the target (training also probes held-out images, 768 questions of
which nothing is learned). Some spend the search queries first, on images of their
own; what is reported comes from fresh images alone, so that choosing by luck cannot pass for finding. One JSON line a
run; the references are three healthy models, none of which the target was made from, and the oracle judges.
"""

import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import jax
import numpy as np
import tyro
from ways_of_asking import BATCH, SEARCHES, Spending, World, drawn, random_questions, reference, untrained

from auditdm_jax.asking import Panel
from auditdm_jax.audit import audit
from auditdm_jax.checkpoint import check_config
from auditdm_jax.errors import UserError, at_least_one, run_cli
from auditdm_jax.evals import Answerer, wilson
from auditdm_jax.files import append_jsonl, plain, read_json, read_jsonl, write_json
from auditdm_jax.huge_pages import with_huge_pages
from auditdm_jax.plant import PlantConfig, plant
from auditdm_jax.plant_exam import Refused
from auditdm_jax.plant_score import KEY, score
from auditdm_jax.scenes.zoo_paths import load_model
from auditdm_jax.summary import summarize

PLANTINGS = (
    "clock", "sign,emotion", "counting", "material,distraction", "counting/above four", "color/small object",
    "hallucination/absent", "localization/large object,action", "concept/red", "concept/star",
    "concept/blue,small_text", "shape/medium object,world_knowledge", "none",
)  # fmt: skip
TRIES = 3
"""Seeds of lessons, before a planting is given up."""
LOOKS = {f"recall {count}": count for count in (100, 250, 500, 1000, 2000)}
"""Recall is also told after so many of the questions that are reported, whatever was spent before them."""
MAY_DIFFER = ("plantings", "seeds", "methods", "out")
"""Settings that say what is run, not how: others may be given when it goes on."""


@dataclass(frozen=True)
class Config(Spending):
    """Plantings x seeds x methods; small sizes make a quick look."""

    plantings: tuple[str, ...] = PLANTINGS
    """Gaps separated by commas, as for plant.py; "none" is a healthy clone."""
    seeds: int = 3
    methods: tuple[str, ...] = ("prompt-only", "random", "best-of-n", "evolution", "trained")
    strength: float = 0.8
    out: Path = Path("runs/planted")

    def __post_init__(self) -> None:
        if unknown := set(self.methods) - {*SEARCHES, "prompt-only", "random"}:
            known = ", ".join(("prompt-only", "random", *SEARCHES))
            raise UserError(f"methods has {', '.join(sorted(unknown))}: there are {known}")
        for planting in self.plantings:
            PlantConfig(planting, self.strength).gaps()
        searched = ("search_queries",) if set(self.methods) & {*SEARCHES} else ()
        at_least_one(self, "seeds", "queries", *searched, "best_of", "population")
        if self.search_queries < 0 or self.population < 2 or BATCH % self.population:
            raise UserError(f"search-queries must be 0 or more, and population divide {BATCH}, and be 2 or more")
        if "best-of-n" in self.methods and self.search_queries < BATCH * self.best_of:
            raise UserError(f"best-of-n asks {BATCH} x best-of questions at a time: raise search-queries to that")


def key_of(config: Config, planting: str, seed: int, place: Path) -> dict | None:
    """The answer key of a target, which is planted if it is not there; None where no planting took."""
    if (place / KEY).exists():
        return read_json(place / KEY)
    for lessons in range(seed, seed + 1001 * TRIES, 1001):  # what is wrong goes by the seed, too
        try:
            return plant(PlantConfig(planting, config.strength, lessons, str(place)))
        except Refused as error:
            print(f"{planting}, seed {lessons}: {error}")
    return None


def measure(world: World, method: str, key: dict) -> dict:
    """One audit by a method: its score and what it found."""
    searches = method in SEARCHES
    count = world.config.queries + (0 if searches else world.config.search_queries)

    def reported() -> Iterator[dict]:
        return iter(drawn("validation", 900 + world.seed, count))

    others = {"random": random_questions(reported()), "prompt-only": untrained(world.config.temperature)}
    ask = SEARCHES[method](world) if searches else others[method]
    panel = Panel(ask, None, world.target, world.references, lambda images, texts: [""] * len(texts))
    rows = audit(panel, reported(), count, 1, 1.0, world.seed).rows
    summary = summarize(rows, rows)
    first = {name: summarize(rows[:n], rows[:n])["weaknesses"] for name, n in LOOKS.items()}
    looks = {name: score(key, weaknesses, [])["recall"] for name, weaknesses in first.items()}
    return score(key, summary["weaknesses"], summary["failure_types"]) | {
        "weaknesses": summary["weaknesses"],
        "queries": count + searches * world.config.search_queries,
        "verified": summary["verified_success_rate"],
        **looks,
    }


def interval(values: Sequence[float]) -> str:
    """Mean and 95 % bootstrap interval over runs."""
    rng, numbers = np.random.default_rng(0), np.array(values, float)
    if not len(numbers):
        return "-"
    means = rng.choice(numbers, (4000, len(numbers))).mean(1)
    return "{:.3f} [{:.3f}, {:.3f}]".format(numbers.mean(), *np.quantile(means, [0.025, 0.975]))


def table(rows: Sequence[dict], names: Sequence[str], compared: Sequence[str]) -> str:
    """Numbers by method; the last columns are the trained auditor's less the method's, on the same targets."""
    head = ("method", "runs", *names, "null: weaknesses", *(f"trained ahead, {name}" for name in compared))
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    best = {(row["planting"], row["seed"]): row for row in rows if row["method"] == "trained"}
    for method in dict.fromkeys(row["method"] for row in rows):
        mine = [row for row in rows if row["method"] == method]
        real, null = ([row for row in mine if (row["planting"] == "none") == none] for none in (False, True))
        cells = [interval([row[name] for row in real if row[name] is not None]) for name in names]
        failed = sum(bool(row["weaknesses"]) for row in null)
        cells.append("{}/{} [{:.2f}, {:.2f}]".format(failed, len(null), *wilson(failed, len(null))))
        pairs = [(best.get((row["planting"], row["seed"])), row) for row in real]
        for name in compared:
            cells.append(interval([ours[name] - row[name] for ours, row in pairs if ours is not None]))
        lines.append("| " + " | ".join([method, str(len(mine)), *cells]) + " |")
    return "\n".join(lines)


def main() -> None:
    config = tyro.cli(Config, description=Config.__doc__)
    jax.config.update("jax_compilation_cache_dir", str(config.out / "compiled"))  # the same programs for every target
    results, settings_file = config.out / "results.jsonl", config.out / "settings.json"
    if settings_file.exists():
        check_config(read_json(settings_file), plain(config), config.out, MAY_DIFFER)
    elif results.exists():
        raise UserError(f"{config.out} has results and no settings.json, so nobody knows what of; name another --out")
    config.out.mkdir(parents=True, exist_ok=True)
    write_json(settings_file, config)
    rows = read_jsonl(results)
    done = {(row["planting"], row["seed"], row["method"]) for row in rows}
    references = tuple(map(reference, config.references))
    for planting in config.plantings:
        for seed in range(config.seeds):
            if done >= {(planting, seed, method) for method in config.methods}:
                continue
            folder = config.out / f"{zlib.crc32(planting.encode()):08x}-{seed}"
            place = folder / "target"
            if (key := key_of(config, planting, seed, place)) is None:
                continue  # counted nowhere: no audit can be measured by it
            target = Answerer(load_model(str(place)), batch_size=BATCH)
            world = World(config, seed, folder, target, references)
            for method in config.methods:
                if (planting, seed, method) not in done:
                    row = {"planting": planting, "seed": seed, "method": method} | measure(world, method, key)
                    append_jsonl(results, row)
                    rows.append(row)
                    print(f"{planting}, seed {seed}, {method}: found {row['found']}, false {row['false_discoveries']}")
    shown = [row for row in rows if row["method"] in config.methods and row["planting"] in config.plantings]
    print(table(shown, ("recall", "precision", "verified"), ("recall", "verified")))
    print(table(shown, tuple(LOOKS), tuple(LOOKS)))


if __name__ == "__main__":
    with_huge_pages()
    run_cli(main)
