"""[host] A sweep as a TOML file says it: cells, which are sets of settings, times seeds; all checked before one runs.

    seeds = [0, 1, 2]

    [base]                            # what all cells share
    steps = 300
    audit.questions = 1000            # audit.py's settings follow "audit."

    [grid]                            # every combination of these values
    grpo.preset = ["dr_grpo@auditdm", "grpo@trl"]
    channels = [["question"], ["question", "edit"]]

    [[variant]]                       # each of these with each combination; in place of [base] where both name it
    label = "binary"
    reward.diversity = 0

Settings are named as `python train.py --help` names them. "None" stands for a setting that is not given.
"""

import os
import re
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields, is_dataclass, replace
from difflib import get_close_matches
from functools import cache
from itertools import product
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, NamedTuple, Union, get_args, get_origin, get_type_hints
from zlib import crc32

from flax.traverse_util import flatten_dict

from auditdm_jax.checkpoint import check_config
from auditdm_jax.config import AuditConfig, Probing, TrainConfig
from auditdm_jax.errors import UserError, one_line
from auditdm_jax.files import plain, read_json
from auditdm_jax.image_files import find_images
from auditdm_jax.layout import used_by_all
from auditdm_jax.models.hf_config import directory_of, load_processor
from auditdm_jax.runs import audited_settings, rebuilt
from auditdm_jax.scenes.zoo_paths import model_path, pipeline_path
from auditdm_jax.studio import Studio
from auditdm_jax.topics import beginnings_of
from auditdm_jax.training import MAY_DIFFER

AUDIT = "audit."
REPORTS = (".md", ".parquet", ".svg")
"""How the names of the files end that stand beside the folders of the cells."""
OWN = ("name", "out", "seed", "resume", "overwrite")
"""Settings that the sweep gives to its runs itself."""


class Run(NamedTuple):
    """One cell with one seed."""

    train: TrainConfig
    audit: AuditConfig

    @property
    def folder(self) -> Path:
        return Path(self.train.out) / self.train.name


class Cell(NamedTuple):
    """varied: what the grid and the variant set, by name. runs: one a seed."""

    label: str
    varied: dict[str, Any]
    runs: tuple[Run, ...]


class Setting(NamedTuple):
    """Where a setting is in its dataclass, and of which type."""

    path: tuple[str, ...]
    hint: Any


def settings_of(config_type: type, above: str = "", path: tuple[str, ...] = ()) -> dict[str, Setting]:
    """All settings of a configuration by the names of the command line."""
    hints = get_type_hints(config_type, include_extras=True)
    found: dict[str, Setting] = {}
    for field in fields(config_type):
        hint, inner = hints[field.name], (*path, field.name)
        name = above + field.name.replace("_", "-")
        nameless = get_origin(hint) is Annotated  # tyro.conf.arg(name="")
        kind = get_args(hint)[0] if nameless else hint
        if is_dataclass(kind):
            found |= settings_of(kind, above if nameless else f"{name}.", inner)  # type: ignore[arg-type]
        else:
            found[name] = Setting(inner, kind)
    return found


KNOWN = settings_of(TrainConfig) | {AUDIT + name: setting for name, setting in settings_of(AuditConfig).items()}


def fits(value: Any, hint: Any) -> bool:
    """Whether a value of TOML is of a setting's type: a list is of a tuple's, an int of a float's, "None" of None's."""
    origin, parts = get_origin(hint), get_args(hint)
    if origin is Literal:
        return value in parts
    if origin in (Union, UnionType):
        return any(fits(value, part) for part in parts)
    if origin is tuple:
        kinds = parts[:1] * len(value) if isinstance(value, list) and parts[-1] is ... else parts
        return isinstance(value, list) and len(value) == len(kinds) and all(map(fits, value, kinds))
    if hint is NoneType:
        return value == "None"
    return type(value) in ((int, float) if hint is float else (hint,)) and value == value


def read_sweep(spec: Path, out: str) -> list[Cell]:
    """The cells of a sweep, the runs of which go to `<out>/<name of the file>/<cell>/seed<n>`.

    Raises UserError with a line for each mistake in the file, and for each cell that could not run.
    """
    table = _parsed(spec)
    base, grid = _by_name(table.get("base", {})), _by_name(table.get("grid", {}))
    variants = [_by_name(each) for each in table.get("variant", [])] or [{}]
    labels = [str(each.pop("label", f"variant {number}")) for number, each in enumerate(variants, 1)]
    lines = list(dict.fromkeys(_mistakes(base, grid, variants)))
    grid = {name: values for name, values in grid.items() if isinstance(values, list)}

    cells: dict[str, Cell] = {}
    same: dict[Any, str] = {}
    faults: dict[str, list[str]] = {}
    for (label, variant), *values in product(zip(labels, variants, strict=True), *grid.values()):
        varied = variant | dict(zip(grid, values, strict=True))
        parts = [f"{name}={spelled(value)}" for name, value in zip(grid, values, strict=True)]
        label = ", ".join([label] * ("variant" in table) + parts) or "base"
        settings = base | varied
        if any(_mistake(*item) for item in settings.items()):
            continue  # it has its line already
        try:
            runs = _runs(settings, table["seeds"], f"{out}/{spec.stem}/{folder_name(label)}")
            twin = same.setdefault(tuple(replace(part, out="") for part in runs[0]), label)
            if label in cells or twin != label:
                raise UserError(f"{twin!r} has the same settings or name; leave one out")
            for run in runs:
                check(run)
            cells[label] = Cell(label, varied, runs)
        except UserError as error:
            faults.setdefault(str(error), []).append(label)
    for fault, where in faults.items():
        lines += (
            [f"every cell: {fault}"] if not cells and len(faults) == 1 else [f"{label}: {fault}" for label in where]
        )
    if lines:
        raise UserError(*lines, f"{one_line(spec)}: nothing was run")
    return list(cells.values())


def check(run: Run) -> None:
    """Raises UserError for what would stop a run later on: models, images, or a folder of other settings."""
    models = audited_settings(run.train, run.audit, trained=True).models
    named = (models.auditor, models.target, models.verifier, *models.references, run.train.models.target)
    for name in (*named, *filter(None, [run.audit.auditor])):
        path = model_path(name)
        if str(path).startswith((".", "/", "~")) or Path(path).is_dir():  # what is from a hub shows when it is fetched
            directory_of(path)
    used_by_all(run.train.probing, run.train.images_per_step)
    audited = min(run.audit.batch_size, run.audit.questions)
    used_by_all(run.train.probing, audited, "audit.batch-size and audit.questions")
    _tokens_suffice(models.auditor, run.train.topics, run.train.max_question_tokens)
    drawing = run.train.probing
    _renders(Probing(drawing.channels, editor=drawing.editor, generator=drawing.generator, render=drawing.render))
    for images in (run.train.images, run.audit.images):
        if images:
            _found(images)
    if any(run.folder.glob("checkpoints/*")) or (run.folder / "auditor").exists():
        saved, free = read_json(run.folder / "config.json"), [name for name in MAY_DIFFER if name != "steps"]
        check_config(saved, plain(run.train), run.folder, free)


_found = cache(find_images)


@cache
def _tokens_suffice(auditor: str, topics: tuple[str, ...], max_question_tokens: int) -> None:
    """Raises UserError as `beginnings_of` does, of an auditor whose tokenizer is here."""
    if topics and Path(os.path.expanduser(path := model_path(auditor))).is_dir():
        beginnings_of(load_processor(directory_of(path)).tokenizer, topics, max_question_tokens)


@cache
def _renders(probing: Probing) -> None:
    """Raises UserError for pipelines that cannot be loaded, or not do what is set: nothing less than loading tells.
    What is from a hub shows when it is fetched."""
    used = (("edit", probing.editor), ("caption", probing.generator))
    names = [pipeline_path(name) for channel, name in used if channel in probing.channels]
    if names:
        from auditdm_jax.pipelines import check_pipeline  # takes seconds: who only asks does not wait for it

        for name in names:
            check_pipeline(name)
    if names and all(Path(name).expanduser().is_dir() for name in names):
        for renderer in filter(None, Studio.load(probing) or ()):
            if probing.render.size is not None:
                renderer.check_size(probing.render.size)


def folder_name(label: str) -> str:
    """A label as the name of a folder; where that is not reversible, or is taken, a hash keeps two of them apart."""
    name = re.sub(r"[^\w.@=+,-]", "-", label.replace(", ", ","))
    reversible = name.replace(",", ", ") == label and name.isascii() and len(name) <= 80
    if reversible and name[:1] not in ("", ".") and not name.endswith(REPORTS):
        return name
    return f"{name.encode('ascii', 'replace').decode()[:70].replace('?', '-')}-{crc32(label.encode()):08x}"


def _parsed(spec: Path) -> dict[str, Any]:
    """The file's tables, of the right kinds."""
    try:
        table = tomllib.loads(spec.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        reason = one_line(error, 120)
        raise UserError(f"{one_line(spec)} cannot be read as TOML ({reason}); see auditdm_jax/sweep.py") from None
    kinds = {"seeds": tuple[int, ...], "base": dict, "grid": dict, "variant": tuple[dict, ...]}
    for name, value in table.items():
        if name not in kinds:
            raise UserError(f"{one_line(spec)} has {one_line(name, 40)!r}; it may have {', '.join(kinds)}")
        if not fits(value, kinds[name]):
            raise UserError(f"{name} in {one_line(spec)} is {one_line(value, 60)}; see auditdm_jax/sweep.py")
    seeds = table.get("seeds", [])
    if not seeds or len(set(seeds)) < len(seeds):
        raise UserError(f"seeds in {one_line(spec)} is {seeds}; give one or more, each once, as seeds = [0, 1, 2]")
    return table


def _by_name(section: dict[str, Any]) -> dict[str, Any]:
    """Settings by their full names, as the command line spells them. Raises UserError for one that is there twice."""
    found: dict[str, Any] = {}
    for place, value in section.items():
        for name, setting in flatten_dict({place: value}, sep=".").items():
            name = name.replace("_", "-")
            if name in found:
                raise UserError(f"{one_line(name, 60)} is written twice in one section; leave one")
            found[name] = setting
    return found


def _mistakes(base: dict, grid: dict, variants: list[dict]) -> Iterator[str]:
    """What is wrong with the file's settings, whatever they are combined with."""
    for name, values in grid.items():
        if not isinstance(values, list) or not values:
            yield f"{name} in [grid] is {one_line(values, 40)!r}; give a list of values"
        if any(name in other for other in (base, *variants)):
            yield f"{name} is in [grid] and elsewhere, where it would count for nothing; leave it in one"
    columns = {name: value for name, value in grid.items() if isinstance(value, list)}
    given = [(name, value) for name, values in columns.items() for value in values]
    for name, value in [*base.items(), *given, *(item for variant in variants for item in variant.items())]:
        if mistake := _mistake(name, value):
            yield mistake


def _mistake(name: str, value: Any) -> str:
    """What is wrong with one setting and its value, "" if nothing is."""
    if name.removeprefix(AUDIT) in OWN:
        return f"{name} is given by the sweep itself; leave it out"
    if name not in KNOWN:
        nearest = get_close_matches(name, KNOWN, 1, 0.5)
        return f"there is no setting {one_line(name, 60)!r}; " + (
            f"the nearest is {nearest[0]!r}" if nearest else "see train.py --help and audit.py --help"
        )
    hint = KNOWN[name].hint
    if not fits(value, hint):
        kind = hint.__name__ if isinstance(hint, type) else str(hint).replace("typing.", "")
        return f"{name} is {one_line(repr(value), 40)}; its type is {kind}"
    return ""


def spelled(value: Any) -> str:
    return "+".join(map(str, value)) or "none" if isinstance(value, list) else str(value)


def _runs(settings: Mapping[str, Any], seeds: Sequence[int], out: str) -> tuple[Run, ...]:
    """The runs of one cell. Raises UserError where settings cannot stand together."""
    train: dict[str, Any] = {"out": out}
    audit: dict[str, Any] = {"out": out}
    for name, value in settings.items():
        if value == "None":  # as if it were not given
            continue
        *above, last = KNOWN[name].path
        place = audit if name.startswith(AUDIT) else train
        for part in above:
            place = place.setdefault(part, {})
        place[last] = value
    configs = rebuilt(TrainConfig(), train), rebuilt(AuditConfig(), audit)
    return tuple(Run(*(replace(config, seed=seed, name=f"seed{seed}") for config in configs)) for seed in seeds)
