"""[host] What the later commands take from a training run."""

from dataclasses import fields, is_dataclass, replace
from pathlib import Path
from typing import Any

from auditdm_jax.config import AuditConfig, Models, RectifyConfig, TrainConfig
from auditdm_jax.errors import UserError, one_line
from auditdm_jax.files import read_json
from auditdm_jax.scenes.zoo_paths import same_model


def training_settings(run: Path) -> TrainConfig | None:
    """What the run in folder `run` was trained with; None if there is no such run.

    Fields that its config.json lacks have their defaults, unknown ones are left out. Raises UserError if
    the file is damaged.
    """
    path = run / "config.json"
    if not path.exists():
        return None
    try:
        return rebuilt(TrainConfig(), read_json(path))
    except (AttributeError, TypeError) as error:
        problem = f"{one_line(path)} holds no settings of a run ({error})"
        raise UserError(f"{problem}; give another --name") from None


def trained_auditor(run: Path) -> str:
    """The directory of the run's trained auditor; "" if there is no run in folder `run`.

    Raises UserError if the run is there but has not finished.
    """
    if (run / "auditor" / "config.json").exists():
        return str(run / "auditor")
    if (run / "config.json").exists():
        raise UserError(
            f"{one_line(run)} has no trained auditor, its training did not finish; "
            "go on with train.py --resume and the same --name"
        )
    return ""


def audited_models(run: Path, trained: Models, config: RectifyConfig) -> Models:
    """The models of a repair: those that it names, else those of the run's audit, else those of its training."""
    path = run / "audit" / "summary.json"
    audited = trained
    if path.exists() and not config.discoveries:
        try:
            audited = rebuilt(trained, read_json(path).get("models", {}))
        except (AttributeError, TypeError) as error:
            raise UserError(f"{one_line(path)} names no models ({error}); run audit.py again") from None
    named = {role: getattr(config, role) for role in ("target", "references") if getattr(config, role)}
    return replace(audited, **named)


def audited_images(run: Path) -> tuple[str, ...]:
    """The images that the run's audit was of, () for scenes or where there is none."""
    path = run / "audit" / "summary.json"
    summary = read_json(path) if path.exists() else {}
    source = summary.get("image_source") if isinstance(summary, dict) else None
    return tuple(map(str, source)) if isinstance(source, list) else ()


def audit_settings(config: AuditConfig) -> tuple[TrainConfig, str]:
    """The run's settings, with the models that the audit names in place of its own, and the trained auditor
    ("" without a run).

    Raises UserError for a run that has not finished, or models that cannot stand together.
    """
    run = Path(config.out) / config.name
    settings = training_settings(run) or TrainConfig()
    trained = config.auditor if config.auditor and (run / "config.json").exists() else trained_auditor(run)
    settings = audited_settings(settings, config, bool(trained))
    return settings, trained


def audited_settings(settings: TrainConfig, config: AuditConfig, trained: bool) -> TrainConfig:
    """Settings of a run with the models that an audit of it names. Raises UserError if they cannot stand together.

    trained: whether the run has an auditor of its own.
    """
    # Without a run the auditor that is named has not been trained: it takes the untrained one's place.
    roles = ("target", "references", "verifier", *(() if trained else ("auditor",)))
    named = {role: getattr(config, role) for role in roles if getattr(config, role)}
    settings = replace(settings, models=replace(settings.models, **named))
    models = settings.models
    judges = bool(config.images or settings.images) or settings.probing.channels != ("question",)
    if judges and any(same_model(models.verifier, name) for name in (models.target, *models.references)):
        raise UserError(
            f"the verifier {models.verifier!r} is also the target or a reference: it would judge itself; "
            "name another --verifier"
        )
    return settings


def rebuilt(like: Any, saved: Any) -> Any:
    """The dataclass `like` with the values that `saved` (JSON's types) has for its fields."""
    if not isinstance(saved, dict):
        raise TypeError(f"{type(like).__name__} is no object")
    known = {}
    for name in (field.name for field in fields(like) if field.name in saved):
        old, new = getattr(like, name), saved[name]
        if is_dataclass(old):
            known[name] = rebuilt(old, new)
            continue
        numbers = (int, float)
        wanted = list if isinstance(old, tuple) else numbers if isinstance(old, numbers) else type(old)
        # What is None unless it is given may be of any simple type.
        if old is not None and not isinstance(new, wanted):
            raise TypeError(f"{name} is {one_line(repr(new), 40)}")
        known[name] = tuple(new) if isinstance(new, list) else new
    return replace(like, **known)
