"""`unlearn` from settings to artifact: read, set rows aside, train, keep the best checkpoint, publish."""

from __future__ import annotations

import math
import os
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, get_type_hints

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from d2unlearn.artifact import CHECKPOINTS, STAGED, clear, is_done, manifest, publish, workspace_of
from d2unlearn.config import UnlearnSettings, identity
from d2unlearn.data.holdout import HeldOut, hold_out, split_validation
from d2unlearn.data.records import content_hash, read_examples
from d2unlearn.errors import ConfigError, DataError
from d2unlearn.fields import typed
from d2unlearn.methods import METHODS, Method
from d2unlearn.models import context_length, load_model, load_tokenizer, state_hash
from d2unlearn.runtime import fingerprint, pick_device, remove, say, seed_everything, torch_dtype, write_json
from d2unlearn.schema import MANIFEST_FILE, Example, Role
from d2unlearn.training.alternates import read_alternates
from d2unlearn.training.arguments import UnlearnConfig
from d2unlearn.training.checkpoints import last_complete_checkpoint
from d2unlearn.training.recipe import Pace, automatic_accumulation, automatic_epochs, automatic_learning_rate
from d2unlearn.training.reference import model_settings
from d2unlearn.training.trainer import UnlearnTrainer
from d2unlearn.version import __version__

CHECKPOINTING = next(name for name in ("activation_checkpointing", "gradient_checkpointing") if hasattr(UnlearnConfig, name))
"""The field's name: newer versions of transformers warn of the older one."""
KEPT_BY = {
    "best": "largest selection = harmonic mean of erased, kept and AUROC (d2unlearn.training.monitor.Snapshot)",
    "last": "none: the weights that training ended with",
}
"""By what the checkpoint is chosen whose weights the artifact holds."""
STILL_KNOWN, STILL_KEPT = 0.1, 0.9
"""Answer probability above which forget rows count as known, and share of the retained rows' below which too much is lost."""


class DestroyedModelError(ConfigError):
    """Training gave a model that is none: its weights, or what it says of every row, are no numbers."""


@dataclass(frozen=True)
class Inputs:
    """What a run reads, loaded."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    forget: list[Example]
    retain: HeldOut
    alternates: Mapping[Role, list[Example]]
    saved_dtype: torch.dtype


def run_unlearn(settings: UnlearnSettings) -> Path:
    """Make the artifact that the settings describe and return its folder; at once when it is there already.

    An interrupted run goes on from its last complete checkpoint. Raises a `D2Error` for input that cannot be used.
    """
    method = build_method(settings.method, settings.method_parameters)
    check_reporting(settings.report_to)
    forget, retain = _read_data(settings)
    alternates = _read_alternates(settings, method, forget, retain)
    output = Path(settings.output)
    inputs = _load(settings, forget, retain, alternates)
    pace = _pace(settings, inputs)
    key = _key(settings, inputs)
    if is_done(output, key, settings):
        clear(output)
        return output
    with workspace_of(output, key) as workspace:
        _train_and_publish(settings, inputs, method, pace, key, workspace, output)
    return output


def _train_and_publish(
    settings: UnlearnSettings, inputs: Inputs, method: Method, pace: Pace, key: str, workspace: Path, output: Path
) -> None:
    seed_everything(settings.seed)
    validation, _ = split_validation(inputs.retain.held_out, seed=settings.seed)
    say(_announcement(settings, inputs, method, pace))
    if settings.keep == "best":
        say(
            "each epoch, forget / retained: energy should rise / stay, answer probability fall / stay; selection keeps the best"
        )
    trainer = UnlearnTrainer(
        inputs.model,
        _arguments(settings, inputs.model, workspace, pace),
        method,
        inputs.forget,
        inputs.retain.train,
        {"forget": inputs.forget, "retain": validation or inputs.retain.train},
        processing_class=inputs.tokenizer,
        peft_config=_adapter(settings),
        alternate_dataset=inputs.alternates.get("alternate"),
        retain_alternate_dataset=inputs.alternates.get("retain_alternate"),
    )
    started = time.monotonic()
    checkpoint = last_complete_checkpoint(workspace / CHECKPOINTS)
    if checkpoint is not None:
        say(f"going on from {checkpoint.name}")
    trainer.train(resume_from_checkpoint=None if checkpoint is None else str(checkpoint))
    seconds = time.monotonic() - started
    if not _is_a_model(trainer, settings):
        if trainer.is_world_process_zero():
            remove(workspace / CHECKPOINTS)
        raise DestroyedModelError(
            [f"learning_rate {pace.learning_rate:g} destroys the model: nothing that is left gives numbers; choose a lower one"]
        )
    if trainer.is_world_process_zero():
        for line in _outcome(trainer, settings):
            say(line)
        staged = workspace / STAGED
        remove(staged)
        _save(trainer.model, inputs, staged)
        write_json(staged / MANIFEST_FILE, _manifest(settings, inputs, method, pace, key, trainer, seconds))
        publish(staged, output)
    trainer.accelerator.wait_for_everyone()


def _outcome(trainer: UnlearnTrainer, settings: UnlearnSettings) -> Iterator[str]:
    """What was kept and how it stands, and what to do next; nothing of a run that was not evaluated."""
    looks = [log for log in trainer.state.log_history if "eval_selection" in log]
    if settings.keep != "best" or not looks:
        return
    kept = next(log for log in looks if f"checkpoint-{log['step']}" == Path(str(trainer.state.best_model_checkpoint)).name)
    left, stayed = kept["eval_forget_probability"], kept["eval_retain_probability"] / trainer.before.retain_probability
    yield (
        f"kept: epoch {kept['epoch']:.0f}; answer probability forget {trainer.before.forget_probability:.3f} -> {left:.3f}, "
        f"retained {trainer.before.retain_probability:.3f} -> {kept['eval_retain_probability']:.3f}"
    )
    if left > STILL_KNOWN:
        yield f"warning: above {STILL_KNOWN} the forget rows are not gone: more --epochs, or a higher --learning-rate"
    if stayed < STILL_KEPT:
        yield f"warning: {1 - stayed:.0%} of what should stay is lost: a lower --learning-rate, or more retain rows"
    if left <= STILL_KNOWN:
        given = f"--model {settings.output} --retain {settings.retain} --forget {settings.forget}"
        yield f"next: d2unlearn calibrate {given}"


def _is_a_model(trainer: UnlearnTrainer, settings: UnlearnSettings) -> bool:
    """Whether what is kept can be used: some evaluation gave numbers; without evaluations, that all weights are numbers."""
    if settings.keep == "best":
        return trainer.state.best_model_checkpoint is not None
    assert trainer.model is not None
    return all(bool(weights.isfinite().all()) for weights in trainer.model.parameters())


def build_method(name: str, parameters: dict[str, Any]) -> Method:
    """A method by its name and parameters. Raises `ConfigError` for names or parameters that do not exist."""
    if name not in METHODS:
        raise ConfigError([f"method {name!r} is not known; known: {', '.join(METHODS)}"])
    given, mistakes = typed(parameters, get_type_hints(METHODS[name]))
    if mistakes:
        raise ConfigError([f"method {name}: {mistake}" for mistake in mistakes])
    return METHODS[name](**given)


def check_reporting(report_to: str) -> None:
    """Raises `ConfigError` unless transformers can report there."""
    if report_to in ("none", "all"):
        return
    from transformers.integrations import integration_utils

    known = integration_utils.INTEGRATION_TO_CALLBACK
    if report_to not in known:
        raise ConfigError([f"report_to should be none, all or one of {', '.join(known)}, not {report_to!r}"])
    if report_to not in integration_utils.get_available_reporting_integrations():  # type: ignore[no-untyped-call]
        raise ConfigError([f"report_to {report_to} needs its package, which is not installed here"])


def _read_data(settings: UnlearnSettings) -> tuple[list[Example], HeldOut]:
    forget = read_examples(settings.forget, group_size=settings.group_size)
    retain = hold_out(read_examples(settings.retain, group_size=settings.group_size), seed=settings.seed)
    kept = [*retain.train, *retain.held_out]
    shared = {content_hash(e) for e in forget} & {content_hash(e) for e in kept}
    if shared:
        places = [e.source for e in forget if content_hash(e) in shared]
        raise DataError(
            f"{len(places)} rows are both in {settings.forget} and in {settings.retain} ({', '.join(places[:3])}, ...); "
            "take them out of one (`d2unlearn data check` lists them)"
        )
    return forget, retain


def _read_alternates(
    settings: UnlearnSettings, method: Method, forget: list[Example], retain: HeldOut
) -> dict[Role, list[Example]]:
    """Other answers from the file that the settings name, for the roles that the method reads; none without a file."""
    if settings.alternate is None:
        return {}
    asked: dict[Role, list[Example]] = {"alternate": forget, "retain_alternate": retain.train}
    read = {role: examples for role, examples in asked.items() if role in method.needs}
    if not read:
        raise ConfigError([f"method {settings.method} reads no other answers: leave --alternate out"])
    return {role: read_alternates(settings.alternate, examples, seed=settings.seed) for role, examples in read.items()}


def _load(
    settings: UnlearnSettings, forget: list[Example], retain: HeldOut, alternates: Mapping[Role, list[Example]]
) -> Inputs:
    """Full training of 16-bit weights happens in float32 (small updates vanish otherwise) and is saved as it came."""
    model = load_model(settings.model, dtype=torch_dtype(settings.dtype))
    tokenizer = load_tokenizer(settings.model)
    saved_dtype = model.dtype
    if settings.dtype == "auto" and not settings.lora:
        model = model.float()  # type: ignore[no-untyped-call]
    return Inputs(model, tokenizer, forget, retain, alternates, saved_dtype)


def _key(settings: UnlearnSettings, inputs: Inputs) -> str:
    """What the result depends on: settings without the places of things, content of model and data, processes, version.

    The effective batch grows with the number of processes, so a run is not taken up, or called done, by another number.
    """
    rows = [inputs.forget, inputs.retain.train, inputs.retain.held_out, *inputs.alternates.values()]
    model = [state_hash(inputs.model), model_settings(inputs.model)]
    return fingerprint([__version__, identity(settings), model, [_rows_hash(each) for each in rows], _processes()])


def _processes() -> int:
    return int(os.environ.get("WORLD_SIZE", "1"))


def _rows_hash(rows: Sequence[Example]) -> str:
    return fingerprint([content_hash(row) for row in rows])


def _pace(settings: UnlearnSettings, inputs: Inputs) -> Pace:
    parameters = sum(p.numel() for p in inputs.model.parameters())
    accumulation = automatic_accumulation(parameters) if settings.accumulation == "auto" else int(settings.accumulation)
    pairs = settings.batch_size * accumulation * _processes()
    epochs = automatic_epochs(len(inputs.forget), pairs) if settings.epochs == "auto" else float(settings.epochs)
    return Pace(_learning_rate(settings, parameters), accumulation, epochs)


def _learning_rate(settings: UnlearnSettings, parameters: int) -> float:
    if settings.learning_rate != "auto":
        try:
            return float(settings.learning_rate)
        except ValueError:
            raise ConfigError([f"learning_rate should be a number or auto, not {settings.learning_rate!r}"]) from None
    return automatic_learning_rate(parameters, lora=settings.lora)


def _announcement(settings: UnlearnSettings, inputs: Inputs, method: Method, pace: Pace) -> str:
    how = "chosen from the model's size" if settings.learning_rate == "auto" else "as given"
    return (
        f"{len(inputs.forget)} rows to forget, {len(inputs.retain.train)} to keep, {len(inputs.retain.held_out)} retained rows "
        f"set aside; {method}; learning rate {pace.learning_rate:g} ({how}{', LoRA' if settings.lora else ''}), "
        f"{settings.batch_size} x {pace.accumulation} pairs an update, {pace.epochs:g} epochs"
    )


def _arguments(settings: UnlearnSettings, model: PreTrainedModel, workspace: Path, pace: Pace) -> UnlearnConfig:
    checkpointing: dict[str, Any] = {CHECKPOINTING: settings.gradient_checkpointing}
    return UnlearnConfig(
        output_dir=str(workspace / CHECKPOINTS),
        reference_cache=str(workspace / "reference"),
        learning_rate=pace.learning_rate,
        num_train_epochs=pace.epochs,
        per_device_train_batch_size=settings.batch_size,
        gradient_accumulation_steps=pace.accumulation,
        max_length=min(settings.max_length, context_length(model) or settings.max_length),
        seed=settings.seed,
        bf16=settings.bf16,
        use_cpu=pick_device().type == "cpu",
        **checkpointing,
        exclude_padded_rows=settings.exclude_padded_rows,
        eval_strategy="epoch" if settings.keep == "best" else "no",
        report_to=settings.report_to,
        disable_tqdm=not sys.stderr.isatty(),
    )


def _adapter(settings: UnlearnSettings) -> Any:
    if not settings.lora:
        return None
    from peft import LoraConfig

    return LoraConfig(
        r=settings.lora_rank,
        lora_alpha=2 * settings.lora_rank,
        target_modules="all-linear",
        task_type="CAUSAL_LM",
    )


def _save(model: Any, inputs: Inputs, folder: Path) -> None:
    """A plain model folder; a trained adapter is merged into the weights and kept beside them in `adapter/`."""
    if hasattr(model, "merge_and_unload"):
        model.save_pretrained(folder / "adapter")
        model = model.merge_and_unload()
    model.to(inputs.saved_dtype).save_pretrained(folder)
    inputs.tokenizer.save_pretrained(folder)


def _numbers(values: Mapping[str, float]) -> dict[str, float | None]:
    """The values, null where one is not a number: the model was broken at that time."""
    return {name: value if math.isfinite(value) else None for name, value in values.items()}


def _manifest(
    settings: UnlearnSettings,
    inputs: Inputs,
    method: Method,
    pace: Pace,
    key: str,
    trainer: UnlearnTrainer,
    seconds: float,
) -> dict[str, Any]:
    best = trainer.state.best_model_checkpoint
    return manifest(
        "unlearn",
        key,
        settings=asdict(settings),
        method={"name": settings.method, **asdict(method)},  # type: ignore[call-overload]
        learning_rate=pace.learning_rate,
        accumulation=pace.accumulation,
        epochs=pace.epochs,
        data={
            "forget": {"source": settings.forget, "rows": len(inputs.forget), "sha256": _rows_hash(inputs.forget)},
            "retain": {
                "source": settings.retain,
                "rows_trained_on": len(inputs.retain.train),
                "rows_held_out": len(inputs.retain.held_out),
                "sha256": _rows_hash(inputs.retain.train),
            },
            **{
                role: {"source": settings.alternate, "rows": len(rows), "sha256": _rows_hash(rows)}
                for role, rows in inputs.alternates.items()
            },
        },
        held_out=[content_hash(row) for row in inputs.retain.held_out],
        training={
            "seconds": round(seconds, 1),
            "processes": _processes(),
            "steps": trainer.state.global_step,
            "kept_checkpoint": f"checkpoint-{trainer.state.global_step}" if best is None else Path(best).name,
            "kept_by": KEPT_BY[settings.keep],
            "before": _numbers(asdict(trainer.before)),
            "history": [_numbers(log) for log in trainer.state.log_history if "eval_selection" in log],
        },
    )
