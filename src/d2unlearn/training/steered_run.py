"""`unlearn` by the measured recipe: when it applies, its choices kept for a run that is taken up again, and how it ended."""

from __future__ import annotations

import math
from dataclasses import asdict
from pathlib import Path
from typing import Any

from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from d2unlearn.artifact import read_manifest
from d2unlearn.config import UnlearnSettings
from d2unlearn.errors import ConfigError
from d2unlearn.models import load_model, load_tokenizer
from d2unlearn.runtime import first_rank, read_json, say, torch_dtype, write_json
from d2unlearn.training.measured import MEASURED_METHODS, MeasuredChoices, account, choices_of, config_with, measure, tell
from d2unlearn.training.steering import STEERED, path_of, start_of
from d2unlearn.training.targets import Standing, Targets, is_met, nearest_two, verdict
from d2unlearn.training.trainer import UnlearnTrainer

CHOICES_FILE = "recipe.json"


def is_measured(settings: UnlearnSettings) -> bool:
    """Whether a run steers by targets: asked for by name, or by naming one. Raises `ConfigError` where it cannot be."""
    asked = settings.recipe == "measured" or settings.forget_below is not None or settings.retain_model is not None
    if not asked and settings.strict:
        raise ConfigError(["--strict is for --recipe measured: without targets none can be missed"])
    if asked and settings.method not in MEASURED_METHODS:
        known = ", ".join(MEASURED_METHODS)
        raise ConfigError([f"the measured recipe is for {known}: leave --recipe, --forget-below and --retain-model out"])
    if asked and settings.keep != "best":
        raise ConfigError(["the measured recipe keeps the checkpoint that is nearest to its targets: leave --keep last out"])
    return asked


def loaded_retain_model(settings: UnlearnSettings, tokenizer: PreTrainedTokenizerBase) -> PreTrainedModel | None:
    """The model that never knew, where there is one. Raises `ConfigError` for another tokenizer, which reads other rows."""
    if settings.retain_model is None:
        return None
    if load_tokenizer(settings.retain_model).get_vocab() != tokenizer.get_vocab():
        raise ConfigError([f"{settings.retain_model} has another tokenizer than {settings.model}: give --forget-below instead"])
    return load_model(settings.retain_model, dtype=torch_dtype(settings.dtype))


def steer_run(
    trainer: UnlearnTrainer, settings: UnlearnSettings, retain_model: nn.Module | None, workspace: Path, key: str
) -> MeasuredChoices:
    """Choose what is left open, or read what this very run has chosen before, and let the trainer train so."""
    path = workspace / CHOICES_FILE
    stored = read_json(path) if path.is_file() else {}
    if stored.get("key") == key:
        choices = choices_of(stored["choices"])
    else:
        choices = _measured(trainer, settings, retain_model)
        if first_rank():
            write_json(path, {"key": key, "choices": account(choices)})
    tell(choices)
    trainer.args = config_with(trainer.args, choices)  # type: ignore[arg-type]
    return choices


def ended(trainer: UnlearnTrainer, choices: MeasuredChoices) -> dict[str, Any]:
    """Says how it ended; what the manifest holds of it: targets, probe, every choice, the path and which point was kept."""
    targets = Targets(choices.forget_below, choices.keep_at_least)
    path = path_of(trainer.state.log_history, trainer.before)
    best = Path(str(trainer.state.best_model_checkpoint)).name
    held = next((point for point in path if f"checkpoint-{point.step}" == best), None)
    said = verdict(path, held, targets)
    say(said)
    recipe = {
        "name": "measured",
        **asdict(choices),
        "trials": [trial._asdict() for trial in choices.trials],
        "before": {"forget": start_of(trainer.before)},
        "path": [_point(point) for point in path],
        "kept_step": None if held is None else held.step,
        "met": held is not None and is_met(held, targets),
        "nearest": [point.step for point in nearest_two(path, targets)],
        "verdict": said,
        "evaluation_seconds": round(trainer.evaluation_seconds, 1),
    }
    return {"recipe": recipe}


def missed_targets(artifact: Path) -> bool:
    """Whether an artifact was made for targets that its weights do not meet."""
    recipe = (read_manifest(artifact) or {}).get("recipe", {})
    return recipe.get("met") is False


def _measured(trainer: UnlearnTrainer, settings: UnlearnSettings, retain_model: nn.Module | None) -> MeasuredChoices:
    given = set(settings.method_parameters)
    return measure(
        trainer,
        forget_below=settings.forget_below,
        keep_at_least=settings.keep_at_least,
        retain_model=retain_model,
        learning_rate=None if settings.learning_rate == "auto" else float(settings.learning_rate),
        epochs=None if settings.epochs == "auto" else float(settings.epochs),
        free_weights=[name for name in STEERED if name not in given],
    )


def _point(standing: Standing) -> dict[str, Any]:
    numbers = {name: getattr(standing, name) for name in ("forget", "retain", "near")}
    plain = {name: None if math.isnan(value) else round(value, 6) for name, value in numbers.items()}
    return {"step": standing.step, "epoch": round(standing.epoch, 3), **plain, "weights": dict(standing.weights)}
