"""How often audits find weaknesses that were planted on purpose, and name none where there is none.

python benchmarks/planted.py                                                   # hours; goes on where it was stopped
python benchmarks/planted.py --plantings clock none --seeds 1 --methods prompt-only random --search-queries 0

Every method puts the same number of questions to the target (training also probes held-out images, 768 questions of
which nothing is learned). Some spend the search queries first, on images of their
own; what is reported comes from fresh images alone, so that choosing by luck cannot pass for finding. One JSON line a
run; the references are three healthy models, none of which the target was made from, and the oracle judges.
"""

import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import jax
import numpy as np
import tyro

from auditdm_jax.answers import normalize
from auditdm_jax.asking import Ask, Asking, Panel, make_ask
from auditdm_jax.audit import audit, guide_of
from auditdm_jax.checkpoint import check_config
from auditdm_jax.config import AuditConfig, Models, TrainConfig
from auditdm_jax.errors import UserError, at_least_one, run_cli
from auditdm_jax.evals import Answerer, wilson
from auditdm_jax.files import append_jsonl, plain, read_json, read_jsonl, write_json
from auditdm_jax.huge_pages import with_huge_pages
from auditdm_jax.outcomes import Asked, consensus_of, is_answer
from auditdm_jax.plant import PlantConfig, plant
from auditdm_jax.plant_exam import Refused
from auditdm_jax.plant_score import KEY, score
from auditdm_jax.reward import Reward
from auditdm_jax.scenes.dataset import SceneSource
from auditdm_jax.scenes.language import ATTRIBUTES, Ref
from auditdm_jax.scenes.questions import Asker
from auditdm_jax.scenes.world import COLORS, MATERIALS, SHAPES, SIZES
from auditdm_jax.scenes.zoo_paths import load_model
from auditdm_jax.summary import summarize
from auditdm_jax.training import train

BATCH = 256
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
PLURALS = tuple(Ref(shape).words(plural=True) for shape in SHAPES)
CLASSES = (COLORS, SHAPES, PLURALS, SIZES, MATERIALS, ATTRIBUTES)


@dataclass(frozen=True)
class Config:
    """Plantings x seeds x methods; small sizes make a quick look."""

    plantings: tuple[str, ...] = PLANTINGS
    """Gaps separated by commas, as for plant.py; "none" is a healthy clone."""
    seeds: int = 3
    methods: tuple[str, ...] = ("prompt-only", "random", "best-of-n", "evolution", "trained")
    queries: int = 2000
    """Questions to the target that are reported."""
    search_queries: int = 12_800
    """Questions to the target before that; methods that do not search report them too."""
    strength: float = 0.8
    references: tuple[str, ...] = ("reference-a", "reference-c", "verifier")
    best_of: int = 8
    """N of best-of-N."""
    population: int = 64
    """Questions of a generation of the evolutionary search."""
    temperature: float = 0.6
    """Of auditors, when they report."""
    confidence: float = 0.85
    """Of the reward that the trained auditor learns from (`train.py --reward.confidence`); at 0 it may come to ask what
    these three references err on together, instead of what the target does."""
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


@dataclass(frozen=True)
class World:
    """What all methods work with. folder: of this planting and seed."""

    config: Config
    seed: int
    folder: Path
    target: Answerer
    references: tuple[Answerer, ...]
    prompt_only: Callable[[float], Ask]
    """The auditor before training at a temperature."""

    def rewards(self, images: np.ndarray, questions: Sequence[str]) -> np.ndarray:
        """bool [N]: whether the references agree and the target gives another answer."""
        said = zip(*(answer(images, questions) for answer in self.references), strict=True)
        shared = [normalize(consensus_of(answers, 1.0)) for answers in said]
        targets = [normalize(text) if is_answer(text) else "" for text in self.target(images, questions)]
        return np.array([bool(a and b) and a != b for a, b in zip(shared, targets, strict=True)])


def key_of(config: Config, planting: str, seed: int, place: Path) -> dict | None:
    """The answer key of a target, which is planted if it is not there; None where no planting took."""
    if (place / KEY).exists():
        return read_json(place / KEY)
    for lessons in range(seed, seed + 1001 * TRIES, 1001):  # the seed modulo 5 and 8 says what is wrong
        try:
            return plant(PlantConfig(planting, config.strength, lessons, str(place)))
        except Refused as error:
            print(f"{planting}, seed {lessons}: {error}")
    return None


def random_questions(known: Iterator[dict]) -> Ask:
    """Uniform over skills, about what is in the image: what nobody can do who does not know the world. known: the
    batches that will be asked about."""

    def ask(images: np.ndarray, key: jax.Array) -> Asking:
        rng, scenes = np.random.default_rng(np.asarray(jax.random.key_data(key))), next(known)["scene"]
        return Asking([Asked("", Asker(scene, rng).draw("uniform", "train").text) for scene in scenes], images)

    return ask


def asks_of(pool: Sequence[str]) -> Ask:
    """Questions of a pool, at random."""

    def ask(images: np.ndarray, key: jax.Array) -> Asking:
        rng = np.random.default_rng(np.asarray(jax.random.key_data(key)))
        return Asking([Asked("", pool[i]) for i in rng.integers(len(pool), size=len(images))], images)

    return ask


def best_of_n(world: World) -> Ask:
    """Of N questions an image the one with the highest reward; those that earned one are asked again elsewhere."""
    ask, pool, count = world.prompt_only(1.0), [], world.config.best_of
    source = SceneSource("train", 700 + world.seed, BATCH)
    for number in range(world.config.search_queries // (BATCH * count)):
        images = next(source)["image"]
        waiting = np.ones(BATCH, bool)
        for i in range(count):
            key = jax.random.fold_in(jax.random.key(world.seed), number * count + i)
            questions = [asked.question for asked in ask(images, key).asked]
            won = world.rewards(images, questions) & waiting
            pool += [questions[j] for j in won.nonzero()[0]]
            waiting &= ~won
    return asks_of(pool) if pool else world.prompt_only(world.config.temperature)


def evolution(world: World) -> Ask:
    """Generations of questions: each is asked of as many images, the fitter half stays and has children in which words
    are exchanged for others of their class; an eighth are new questions of the auditor before training."""
    rng, size = np.random.default_rng(world.seed), world.config.population
    ask, source = world.prompt_only(1.0), SceneSource("train", 700 + world.seed, BATCH)

    def child(question: str) -> str:
        words = question.rstrip("?").split()
        places = [(i, kind) for i, word in enumerate(words) for kind in CLASSES if word in kind]
        if places:
            i, kind = places[rng.integers(len(places))]
            words[i] = str(rng.choice(kind))
        return " ".join(words) + "?"

    asked = [each.question for each in ask(next(source)["image"], jax.random.key(world.seed)).asked]
    living, per_question = asked[:size], BATCH // size
    for generation in range(world.config.search_queries // BATCH):
        images = next(source)["image"]
        fitness = world.rewards(images, np.repeat(living, per_question).tolist()).reshape(size, -1).mean(1)
        order = np.argsort(-fitness - 1e-3 * rng.random(size))
        fit = [living[i] for i in order[: size // 2]]
        key = jax.random.fold_in(jax.random.key(world.seed), generation + 1)
        fresh = [each.question for each in ask(images, key).asked][: size // 8]
        living = fit + fresh + [child(fit[i]) for i in rng.integers(len(fit), size=size - len(fit) - len(fresh))]
    return asks_of(living[: size // 2])


def trained(world: World) -> Ask:
    """An auditor trained on this target, with as many questions as the others search with; guided as in an audit."""
    config = world.config
    models = Models(target=str(world.folder / "target"), references=config.references)
    reward = Reward(confidence=config.confidence)
    run = TrainConfig("trained", str(world.folder), world.seed, models=models, reward=reward, resume=True)
    run = replace(run, steps=max(1, config.search_queries // (run.images_per_step * run.grpo.num_generations)))
    if not (world.folder / "trained" / "auditor" / "config.json").exists():
        train(run)
    auditor = load_model(str(world.folder / "trained" / "auditor"))
    guide = guide_of(AuditConfig(run.name, run.out, temperature=config.temperature), run)
    return make_ask(auditor, auditor, run, config.temperature, None, guide)


SEARCHES: dict[str, Callable[[World], Ask]] = {"best-of-n": best_of_n, "evolution": evolution, "trained": trained}


def measure(world: World, method: str, key: dict) -> dict:
    """One audit by a method: its score and what it found."""
    searches = method in SEARCHES
    count = world.config.queries + (0 if searches else world.config.search_queries)

    def reported() -> SceneSource:
        return SceneSource("validation", 900 + world.seed, min(BATCH, count))

    others = {"random": random_questions(reported()), "prompt-only": world.prompt_only(world.config.temperature)}
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
    auditor, settings = load_model("auditor"), TrainConfig()
    references = tuple(Answerer(load_model(name), batch_size=BATCH) for name in config.references)
    ask_at = lambda temperature: make_ask(auditor, auditor, settings, temperature, None)  # noqa: E731
    for planting in config.plantings:
        for seed in range(config.seeds):
            if done >= {(planting, seed, method) for method in config.methods}:
                continue
            folder = config.out / f"{zlib.crc32(planting.encode()):08x}-{seed}"
            place = folder / "target"
            if (key := key_of(config, planting, seed, place)) is None:
                continue  # counted nowhere: no audit can be measured by it
            target = Answerer(load_model(str(place)), batch_size=BATCH)
            world = World(config, seed, folder, target, references, ask_at)
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
