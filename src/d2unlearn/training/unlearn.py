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
from d2unlearn.data.identity import folded_key, row_key
from d2unlearn.data.long_rows import LongRows, fit_sets, long_rows_told
from d2unlearn.data.records import content_hash, read_examples, source_names
from d2unlearn.data.template import Template
from d2unlearn.errors import ConfigError, DataError
from d2unlearn.fields import typed
from d2unlearn.loaded_files import weight_files
from d2unlearn.methods import METHODS, Method
from d2unlearn.models import (
    context_length,
    context_of,
    load_model,
    load_tokenizer,
    low_rank_config,
    merged_adapter,
    state_hash,
    weights_hash,
)
from d2unlearn.observation import causal_model
from d2unlearn.quantization import check_quantization
from d2unlearn.runtime import fingerprint, pick_device, remove, say, seed_everything, torch_dtype, write_json
from d2unlearn.schema import MANIFEST_FILE, Example, Kind, Role
from d2unlearn.training.alternates import read_alternates
from d2unlearn.training.arguments import CHECKPOINTING, UnlearnConfig, vocabulary_rows
from d2unlearn.training.checkpoints import last_complete_checkpoint
from d2unlearn.training.frozen import model_settings
from d2unlearn.training.lineage import earlier_sources, forgotten_before, parent_of
from d2unlearn.training.measured import STEERING_ROWS, MeasuredChoices
from d2unlearn.training.recipe import Pace, automatic_accumulation, automatic_epochs, automatic_learning_rate
from d2unlearn.training.renderings import reworded_rows
from d2unlearn.training.rounds import check_rounds, memory_line, run_rounds
from d2unlearn.training.rows import Rows, Watched
from d2unlearn.training.steered_run import ended, is_measured, loaded_retain_model, steer_run
from d2unlearn.training.trainer import UnlearnTrainer
from d2unlearn.version import __version__

KEPT_BY = {
    "best": "largest selection = harmonic mean of erased, kept and AUROC; kept: tokens right and KL, on rows set aside and on "
    "near ones (d2unlearn.training.monitor.Snapshot)",
    "last": "none: the weights that training ended with",
}
"""By what the checkpoint is chosen whose weights the artifact holds."""
NEAR_CHOSEN = "of the retained rows set aside those nearest to the forget rows by the model's own hidden states"
STILL_KNOWN, STILL_KEPT = 0.1, 0.9
"""Answer probability above which forget rows count as known; share of the tokens that the original had right, of rows that
should stay, below which too much is lost."""


class DestroyedModelError(ConfigError):
    """Training gave a model that is none: its weights, or what it says of every row, are no numbers."""


@dataclass(frozen=True)
class _Run:
    """What a run is told and what it reads, loaded."""

    settings: UnlearnSettings
    method: Method
    forget: list[Example]
    retain: HeldOut
    near: list[Example] | None
    alternates: Mapping[Role, list[Example]]
    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    saved_dtype: torch.dtype
    validation: list[Example]
    long: Mapping[str, LongRows]
    parent: Mapping[str, Any] | None
    measured: bool = False
    retain_model: PreTrainedModel | None = None

    @property
    def key(self) -> str:
        """What the result depends on: settings without the places of things, content of model and data, processes, version.

        The effective batch grows with the number of processes, so a run is not taken up, or called done, by another number.
        """
        rows = [self.forget, self.retain.train, self.retain.held_out, *self.alternates.values()]
        rows += [] if self.near is None else [self.near]
        hashes = [_rows_hash(part) for part in rows]
        model = [state_hash(self.model), model_settings(self.model)]
        model += [] if self.retain_model is None else [state_hash(self.retain_model)]
        return fingerprint([__version__, identity(self.settings), model, hashes, _processes()])


def run_unlearn(settings: UnlearnSettings) -> Path:
    """Make the artifact that the settings describe and return its folder; at once when it is there already.

    An interrupted run goes on from its last complete checkpoint. Raises a `D2Error` for input that cannot be used.
    """
    run = _loaded(settings)
    output, pace, key = Path(settings.output), _pace(run), run.key
    if is_done(output, key, settings):
        clear(output)
        return output
    with workspace_of(output, key) as workspace:
        _train_and_publish(run, pace, key, workspace, output)
    return output


def _train_and_publish(run: _Run, pace: Pace, key: str, workspace: Path, output: Path) -> None:
    settings = run.settings
    seed_everything(settings.seed)
    original = _original_hash(run)
    for line in _told_before(run):
        say(line)
    say(_announcement(run, pace))
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
        say(_neighbours_told(trainer, settings))
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
    if trainer.is_world_process_zero():
        recipe = {} if choices is None else ended(trainer, choices)
        for line in _outcome(trainer, settings, run.parent):
            say(line)
        staged = workspace / STAGED
        remove(staged)
        _save(trainer.model, run, staged)
        weights = {"original": original, "artifact": weights_hash(staged)}
        write_json(staged / MANIFEST_FILE, {**_manifest(run, pace, key, trainer, seconds, recipe), "weights": weights})
        publish(staged, output)
    trainer.accelerator.wait_for_everyone()


def _make_rounds(run: _Run, pace: Pace, trainer: UnlearnTrainer, workspace: Path) -> None:
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


def _original_hash(run: _Run) -> str:
    """sha256 of the original's weights: of its files where it is a folder of its own weights, else as they were loaded."""
    folder = Path(run.settings.model)
    return weights_hash(folder) if folder.is_dir() and weight_files(folder) else state_hash(run.model)


def _told_before(run: _Run) -> Iterator[str]:
    """What was forgotten before, and what of the rows is not read as it stands."""
    if run.parent is not None:
        yield forgotten_before(run.parent)
    for name, found in run.long.items():
        yield from long_rows_told(found, name, "unlearned" if name == "forget" else "trained on")


def _outcome(trainer: UnlearnTrainer, settings: UnlearnSettings, parent: Mapping[str, Any] | None = None) -> Iterator[str]:
    """What was kept and how it stands, and what to do next; nothing of a run that was not evaluated."""
    looks = [log for log in trainer.state.log_history if "eval_selection" in log]
    if settings.keep != "best" or not looks:
        return
    best = Path(str(trainer.state.best_model_checkpoint)).name
    log = next(log for log in looks if f"checkpoint-{log['step']}" == best) if trainer.method.deepening is None else looks[-1]
    before, left = trainer.before, log["eval_forget_probability"]
    sides = {"retained": (before.retain_right, log["eval_retain_right"]), "near": (before.near_right, log["eval_near_right"])}
    looked_at = {name: side for name, side in sides.items() if not math.isnan(side[1])}
    right = ", ".join(f"{name} {old:.3f} -> {new:.3f}" for name, (old, new) in looked_at.items())
    stayed = f"tokens right without the end token: {right}; KL to the original {log['eval_retain_kl']:.3f} nats a token"
    when = "epoch" if trainer.method.deepening is None else "rounds after epoch"
    yield (
        f"kept: {when} {log['epoch']:.0f}; answer probability forget {before.forget_probability:.3f} -> {left:.3f}; "
        f"{stayed if looked_at else 'of rows that should stay the original knew none'}"
    )
    if left > STILL_KNOWN:
        yield f"warning: above {STILL_KNOWN} the forget rows are not gone: more --epochs, or a higher --learning-rate"
    for name, (old, new) in looked_at.items():
        if new < STILL_KEPT * old:
            yield (
                f"warning: {1 - new / old:.0%} of what the original had right of {name} rows is lost: a lower --learning-rate, "
                "or more retain rows"
            )
    if left <= STILL_KNOWN and settings.quantization and not settings.merge:
        yield "a gate is bound to weights that lie in one folder: for `calibrate` run this again with --merge"
    elif left <= STILL_KNOWN:
        forgotten = [*earlier_sources(parent), *_listed(settings.forget)]
        given = f"--model {settings.output} {_options('--retain', settings.retain)} {_options('--forget', forgotten)}"
        yield f"next: d2unlearn calibrate {given}"


def _neighbours_told(trainer: UnlearnTrainer, settings: UnlearnSettings) -> str:
    """Which rows stand for the neighbours of what is forgotten, and of how many rows something can be lost at all."""
    near = trainer.watched["near"]
    stay = dict.fromkeys([*trainer.watched["retain"], *near])
    known = sum(row in trainer.original.hidden for row in stay)
    named = f"rows of {settings.near}" if settings.near else f"rows, {NEAR_CHOSEN}; --near FILE names others"
    return (
        f"neighbours that have to stay: {len(near)} {named}. The model itself knows the answers of {known} of {len(stay)} rows "
        "looked at that should stay; what is kept is measured on those"
    )


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


def _loaded(settings: UnlearnSettings) -> _Run:
    """Full training of 16-bit weights happens in float32 (small updates vanish otherwise) and is saved as it came."""
    method = build_method(settings.method, settings.method_parameters)
    is_measured(settings)
    check_reporting(settings.report_to)
    check_quantization(settings.quantization, lora=settings.lora, merge=settings.merge)
    check_rounds(settings.method, method, lora=settings.lora, processes=_processes())
    forget = _read_rows(settings, settings.forget)
    retain = hold_out(_read_rows(settings, settings.retain), seed=settings.seed)
    near = None if settings.near is None else _read_rows(settings, settings.near)
    forget_source, retain_source = source_names(settings.forget), source_names(settings.retain)
    _check_apart(forget, [*retain.train, *retain.held_out], forget_source, retain_source)
    if near is not None:
        _check_apart(forget, near, forget_source, str(settings.near))
        _check_apart(retain.train, near, retain_source, str(settings.near))
    alternates = _read_alternates(settings, method, {"alternate": forget, "retain_alternate": retain.train})
    tokenizer = load_tokenizer(settings.model)
    validation, _ = split_validation(retain.held_out, seed=settings.seed)
    kept: dict[str, tuple[Sequence[Example], Kind]] = {"retain": (retain.train, "retain"), "validation": (validation, "retain")}
    kept |= {} if near is None else {"near": (near, "retain")}
    longest = min(settings.max_length, context_of(settings.model) or settings.max_length)
    read, long = fit_sets({"forget": (forget, "forget"), **kept}, Template(tokenizer), longest, settings.long)
    model, saved_dtype = loaded_model(settings)
    return _Run(
        settings,
        method,
        read["forget"],
        retain._replace(train=read["retain"]),
        read.get("near"),
        alternates,
        model,
        tokenizer,
        saved_dtype,
        read["validation"],
        long,
        parent_of(settings.model),
        is_measured(settings),
        loaded_retain_model(settings, tokenizer),
    )


def loaded_model(settings: UnlearnSettings) -> tuple[PreTrainedModel, torch.dtype]:
    """The model as it is trained, and the dtype that it is saved in. Raises `ConfigError` where a quantised one is to be."""
    model = load_model(settings.model, dtype=torch_dtype(settings.dtype), quantization=settings.quantization)
    saved_dtype = model.dtype
    if getattr(model, "is_quantized", False) and not settings.lora:
        raise ConfigError([f"{settings.model} is quantised, and such weights cannot be trained: train an adapter, --lora"])
    if settings.dtype == "auto" and not settings.lora:
        model = model.float()  # type: ignore[no-untyped-call]
    return model, saved_dtype


def _options(flag: str, source: str | list[str]) -> str:
    return " ".join(f"{flag} {each}" for each in dict.fromkeys(_listed(source)))


def _listed(source: str | list[str]) -> list[str]:
    return [source] if isinstance(source, str) else source


def _read_rows(settings: UnlearnSettings, source: str | list[str]) -> list[Example]:
    return read_examples(source, group_size=settings.group_size, columns=settings.columns)


def _check_apart(rows: Sequence[Example], others: Sequence[Example], source: str, other_source: str) -> None:
    """Raises `DataError` for rows of two files that may have none in common, letter case and spacing aside."""
    there = {folded_key(row) for row in others}
    shared = [row.source for row in rows if folded_key(row) in there]
    if shared:
        raise DataError(
            f"{len(shared)} rows are both in {source} and in {other_source} ({', '.join(shared[:3])}, ...); "
            "take them out of one (`d2unlearn data check` lists them)"
        )


def _read_alternates(
    settings: UnlearnSettings, method: Method, questions: Mapping[Role, list[Example]]
) -> dict[Role, list[Example]]:
    """Other answers from the file that the settings name, for the roles that the method reads; none without a file."""
    if settings.alternate is None:
        return {}
    read = {role: examples for role, examples in questions.items() if role in method.needs}
    if not read:
        raise ConfigError([f"method {settings.method} reads no other answers: leave --alternate out"])
    return {role: read_alternates(settings.alternate, examples, seed=settings.seed) for role, examples in read.items()}


def _processes() -> int:
    return int(os.environ.get("WORLD_SIZE", "1"))


def _rows_hash(rows: Sequence[Example]) -> str:
    return fingerprint([content_hash(row) for row in rows])


def _pace(run: _Run) -> Pace:
    return pace_of(run.settings, sum(p.numel() for p in run.model.parameters()), len(run.forget), _processes())


def pace_of(settings: UnlearnSettings, parameters: int, forget_rows: int, processes: int) -> Pace:
    """What the settings say of the pace, with what they leave open filled in from the sizes. Raises `ConfigError`."""
    accumulation = automatic_accumulation(parameters) if settings.accumulation == "auto" else int(settings.accumulation)
    pairs = settings.batch_size * accumulation * processes
    epochs = automatic_epochs(forget_rows, pairs) if settings.epochs == "auto" else float(settings.epochs)
    if settings.learning_rate == "auto":
        return Pace(automatic_learning_rate(parameters, lora=settings.lora), accumulation, epochs)
    try:
        return Pace(float(settings.learning_rate), accumulation, epochs)
    except ValueError:
        raise ConfigError([f"learning_rate should be a number or auto, not {settings.learning_rate!r}"]) from None


def _announcement(run: _Run, pace: Pace) -> str:
    how = "chosen from the model's size" if run.settings.learning_rate == "auto" else "as given"
    return (
        f"{len(run.forget)} rows to forget, {len(run.retain.train)} to keep, {len(run.retain.held_out)} retained rows "
        f"set aside; {run.method}; learning rate {pace.learning_rate:g} ({how}{', LoRA' if run.settings.lora else ''}), "
        f"{run.settings.batch_size} x {pace.accumulation} pairs an update, {pace.epochs:g} epochs"
    )


def _arguments(run: _Run, workspace: Path, pace: Pace) -> UnlearnConfig:
    settings = run.settings
    checkpointing: dict[str, Any] = {CHECKPOINTING: settings.gradient_checkpointing}
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
        **checkpointing,
        exclude_padded_rows=settings.exclude_padded_rows,
        eval_strategy="epoch" if settings.keep == "best" else "no",
        report_to=settings.report_to,
        **({"eval_rows": STEERING_ROWS} if run.measured else {}),  # type: ignore[arg-type]
        disable_tqdm=not sys.stderr.isatty(),
    )


def _save(model: Any, run: _Run, folder: Path) -> None:
    """A plain model folder; a trained adapter is merged into the weights and kept beside them in `adapter/`.

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


def _numbers(values: Mapping[str, float]) -> dict[str, float | None]:
    """The values, null where one is not a number: the model was broken at that time."""
    return {name: value if math.isfinite(value) else None for name, value in values.items()}


def _manifest(
    run: _Run, pace: Pace, key: str, trainer: UnlearnTrainer, seconds: float, recipe: Mapping[str, Any]
) -> dict[str, Any]:
    settings = run.settings
    best = trainer.state.best_model_checkpoint
    return manifest(
        "unlearn",
        key,
        settings=asdict(settings),
        method={"name": settings.method, **asdict(run.method)},  # type: ignore[call-overload]
        **pace._asdict(),
        template_date=Template(run.tokenizer).date,
        **recipe,
        data={
            "forget": _described(settings.forget, run.forget),
            "retain": {
                "source": settings.retain,
                "rows_trained_on": len(run.retain.train),
                "rows_held_out": len(run.retain.held_out),
                "sha256": _rows_hash(run.retain.train),
            },
            "near": _near_described(run, trainer),
            **{role: _described(settings.alternate, rows) for role, rows in run.alternates.items()},
        },
        long_rows={name: asdict(found) for name, found in run.long.items()},
        parent=run.parent,
        held_out=[row_key(row) for row in run.retain.held_out],
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


def _described(source: str | list[str] | None, rows: Sequence[Example]) -> dict[str, Any]:
    return {"source": source, "rows": len(rows), "sha256": _rows_hash(rows)}


def _near_described(run: _Run, trainer: UnlearnTrainer) -> dict[str, Any]:
    """The neighbours that were looked at: a file's, or which retained rows were taken, by their ids."""
    if run.near is not None:
        return _described(run.settings.near, run.near)
    return {"source": NEAR_CHOSEN, "rows": len(trainer.watched["near"]), "ids": [t.example_id for t in trainer.watched["near"]]}
