"""`unlearn` from settings to artifact: train, keep the best checkpoint, publish."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel

from d2unlearn.artifact import CHECKPOINTS, STAGED, clear, is_done, publish, workspace_of
from d2unlearn.config import UnlearnSettings
from d2unlearn.errors import ConfigError
from d2unlearn.loaded_files import weight_files
from d2unlearn.models import (
    context_length,
    load_model,
    low_rank_config,
    merged_adapter,
    weights_hash,
)
from d2unlearn.observation import causal_model
from d2unlearn.outputs import output_place
from d2unlearn.runtime import pick_device, remove, say, seed_everything, write_json
from d2unlearn.schema import MANIFEST_FILE
from d2unlearn.sharding import is_sharded, own_part
from d2unlearn.training.arguments import CHECKPOINTING, UnlearnConfig, vocabulary_rows
from d2unlearn.training.checkpoints import last_complete_checkpoint
from d2unlearn.training.gathered import save_merged, save_state
from d2unlearn.training.measured import STEERING_ROWS, MeasuredChoices
from d2unlearn.training.outcome import announcement, neighbours_told, outcome_lines, run_manifest, told_before
from d2unlearn.training.recipe import Pace
from d2unlearn.training.renderings import reworded_rows
from d2unlearn.training.rounds import memory_line, run_rounds
from d2unlearn.training.rows import Rows, Watched
from d2unlearn.training.run_input import RunInput, read_run, run_pace
from d2unlearn.training.steered_run import ended, steer_run
from d2unlearn.training.trainer import UnlearnTrainer


class DestroyedModelError(ConfigError):
    """Training gave a model that is none: its weights, or what it says of every row, are no numbers."""


def run_unlearn(settings: UnlearnSettings) -> Path:
    """Make the artifact that the settings describe and return its folder; at once when it is there already.

    An interrupted run goes on from its last complete checkpoint. Raises a `D2Error` for input that cannot be used.
    """
    output = output_place(settings.output)
    run = read_run(settings)
    pace, key = run_pace(run), run.key
    if is_done(output, key, settings):
        clear(output)
        return output
    with workspace_of(output, key, force=settings.force) as workspace:
        _train_and_publish(run, pace, key, workspace, output)
    return output


def _train_and_publish(run: RunInput, pace: Pace, key: str, workspace: Path, output: Path) -> None:
    settings = run.settings
    seed_everything(settings.seed)
    original = _original_hash(run)
    for line in told_before(run):
        say(line)
    say(announcement(run, pace))
    if settings.keep == "best":
        say(
            "each epoch, forget / retained: energy should rise / stay, answer probability fall / stay; selection keeps the "
            "best. An energy that rises by level shift alone, as the mean logit falls, shows nothing"
        )
    watched: dict[Watched, Rows] = {"forget": run.forget, "retain": run.validation or run.retain.train}
    watched |= {} if run.near is None else {"near": run.near}
    watched |= {"reworded": reworded_rows(run.forget, seed=settings.seed)} if run.measured else {}
    trainer = UnlearnTrainer(
        run.model,
        _arguments(run, workspace, pace),
        run.method,
        run.forget,
        run.retain.train,
        watched,
        processing_class=run.tokenizer,
        peft_config=low_rank_config(settings.lora_rank) if settings.lora else None,
        alternate_dataset=run.alternates.get("alternate"),
        retain_alternate_dataset=run.alternates.get("retain_alternate"),
    )
    if settings.keep == "best":
        say(neighbours_told(trainer, settings))
    choices: MeasuredChoices | None = None
    if run.measured:
        choices = steer_run(trainer, settings, run.retain_model, workspace, key)
        pace = Pace(choices.learning_rate, pace.accumulation, choices.max_steps / trainer.steps_per_epoch)
    started = time.monotonic()
    checkpoint = last_complete_checkpoint(workspace / CHECKPOINTS)
    if checkpoint is not None:
        say(f"going on from {checkpoint.name}")
    trainer.train(resume_from_checkpoint=None if checkpoint is None else str(checkpoint))
    _make_rounds(run, pace, trainer, workspace)
    seconds = time.monotonic() - started
    if not _is_a_model(trainer, settings):
        if trainer.is_world_process_zero():
            remove(workspace / CHECKPOINTS)
        raise DestroyedModelError(
            [f"learning_rate {pace.learning_rate:g} destroys the model: nothing that is left gives numbers; choose a lower one"]
        )
    recipe: dict[str, Any] = {}
    if trainer.is_world_process_zero():
        recipe = {} if choices is None else ended(trainer, choices)
        for line in outcome_lines(trainer, settings, run.parent):
            say(line)
        remove(workspace / STAGED)
    _save(trainer, run, workspace / STAGED)
    if trainer.is_world_process_zero():
        _publish(run, workspace / STAGED, output, run_manifest(run, pace, key, trainer, seconds, recipe), original)
    trainer.accelerator.wait_for_everyone()


def _publish(run: RunInput, staged: Path, output: Path, manifest: dict[str, Any], original: str) -> None:
    weights = {"original": original, "artifact": weights_hash(staged)}
    write_json(staged / MANIFEST_FILE, {**manifest, "weights": weights})
    publish(staged, output, force=run.settings.force)


def _make_rounds(run: RunInput, pace: Pace, trainer: UnlearnTrainer, workspace: Path) -> None:
    """What the method wants after its pass, with the original loaded once more; evaluated at the end as an epoch is."""
    plan, settings, model, args = run.method.deepening, run.settings, trainer.model, trainer.args
    if plan is None or not _is_a_model(trainer, settings):
        return
    assert isinstance(model, PreTrainedModel)
    assert isinstance(args, UnlearnConfig)
    say(memory_line(model, plan))
    run_rounds(
        model,
        load_model(settings.model, dtype=model.dtype),
        run.tokenizer,
        plan,
        run.forget,
        run.retain.train,
        rate=pace.learning_rate,
        seed=settings.seed,
        max_length=args.max_length,
        batch_size=args.per_device_eval_batch_size,
        state=workspace / "rounds.pt",
        cache=workspace / "reference",
        vocab_rows=vocabulary_rows(args, run.tokenizer),
    )
    if settings.keep == "best":
        trainer.evaluate()


def _original_hash(run: RunInput) -> str:
    """sha256 of the original's weights: of its files where it is a folder of its own weights, else as they were loaded."""
    folder = Path(run.settings.model)
    return weights_hash(folder) if folder.is_dir() and weight_files(folder) else run.model_hash


def _is_a_model(trainer: UnlearnTrainer, settings: UnlearnSettings) -> bool:
    """Whether what is kept can be used: some evaluation gave numbers; without evaluations, that all weights are numbers."""
    if settings.keep == "best":
        return trainer.state.best_model_checkpoint is not None
    assert trainer.model is not None
    broken = sum((~own_part(weights.detach()).isfinite()).sum() for weights in trainer.model.parameters())
    return int(trainer.accelerator.reduce(torch.as_tensor(broken, device=trainer.args.device), "sum")) == 0


def _arguments(run: RunInput, workspace: Path, pace: Pace) -> UnlearnConfig:
    settings = run.settings
    sharing: dict[str, Any] = {CHECKPOINTING: settings.gradient_checkpointing, "fsdp": settings.fsdp}
    return UnlearnConfig(
        output_dir=str(workspace / CHECKPOINTS),
        reference_cache=str(workspace / "reference"),
        learning_rate=pace.learning_rate,
        num_train_epochs=pace.epochs,
        per_device_train_batch_size=settings.batch_size,
        gradient_accumulation_steps=pace.accumulation,
        max_length=min(settings.max_length, context_length(run.model) or settings.max_length),
        seed=settings.seed,
        bf16=settings.bf16,
        use_cpu=pick_device().type == "cpu",
        **sharing,
        exclude_padded_rows=settings.exclude_padded_rows,
        eval_strategy="epoch" if settings.keep == "best" else "no",
        report_to=settings.report_to,
        **({"eval_rows": STEERING_ROWS} if run.measured else {}),  # type: ignore[arg-type]
        disable_tqdm=not sys.stderr.isatty(),
    )


def _save(trainer: UnlearnTrainer, run: RunInput, folder: Path) -> None:
    """A plain model folder; a trained adapter is merged into the weights and kept beside them in `adapter/`.

    Every process calls it, since what is spread is gathered together; the first writes.
    """
    first, model = trainer.is_world_process_zero(), trainer.model
    assert model is not None
    if is_sharded(model):
        if run.settings.lora:
            save_state(model, folder / "adapter", first=first)
        save_merged(model, folder, dtype=run.saved_dtype, first=first)
        if first:
            run.tokenizer.save_pretrained(folder)
    elif first:
        _save_whole(model, run, folder)


def _save_whole(model: Any, run: RunInput, folder: Path) -> None:
    """As one process has it.

    Of a quantised base the adapter alone is kept, with the configuration that says how the base is held, unless it is to be
    merged.
    """
    settings = run.settings
    if settings.quantization is not None and not settings.merge:
        model.save_pretrained(folder)
        causal_model(model).config.save_pretrained(folder)  # type: ignore[operator, union-attr]
        run.tokenizer.save_pretrained(folder)
        return
    if settings.quantization is not None:
        model.save_pretrained(folder / "adapter")
        dtype = run.saved_dtype
        model = merged_adapter(settings.model, folder / "adapter", quantization=settings.quantization, dtype=dtype)
    if hasattr(model, "merge_and_unload"):
        model.save_pretrained(folder / "adapter")
        model = model.merge_and_unload()
    model.to(run.saved_dtype).save_pretrained(folder)
    run.tokenizer.save_pretrained(folder)
