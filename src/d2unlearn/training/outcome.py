"""What an `unlearn` run says of itself: before it, how it ended, and what its manifest holds."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from d2unlearn.artifact import manifest
from d2unlearn.config import UnlearnSettings
from d2unlearn.data.identity import row_key
from d2unlearn.data.long_rows import long_rows_told
from d2unlearn.data.template import Template
from d2unlearn.outputs import kept_settings
from d2unlearn.schema import Example
from d2unlearn.training.lineage import earlier_sources, forgotten_before
from d2unlearn.training.recipe import Pace
from d2unlearn.training.run_input import RunInput, processes, rows_hash
from d2unlearn.training.trainer import UnlearnTrainer

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


def told_before(run: RunInput) -> Iterator[str]:
    """What was forgotten before, and what of the rows is not read as it stands."""
    if run.parent is not None:
        yield forgotten_before(run.parent)
    for name, found in run.long.items():
        yield from long_rows_told(found, name, "unlearned" if name == "forget" else "trained on")


def announcement(run: RunInput, pace: Pace) -> str:
    """How many rows, which method and what pace, before training begins."""
    how = "chosen from the model's size" if run.settings.learning_rate == "auto" else "as given"
    together = f" x {processes()} processes" if processes() > 1 else ""
    return (
        f"{len(run.forget)} rows to forget, {len(run.retain.train)} to keep, {len(run.retain.held_out)} retained rows "
        f"set aside; {run.method}; learning rate {pace.learning_rate:g} ({how}{', LoRA' if run.settings.lora else ''}), "
        f"{run.settings.batch_size} x {pace.accumulation}{together} pairs an update, {pace.epochs:g} epochs"
    )


def neighbours_told(trainer: UnlearnTrainer, settings: UnlearnSettings) -> str:
    """Which rows stand for the neighbours of what is forgotten, and of how many rows something can be lost at all."""
    near = trainer.watched["near"]
    stay = dict.fromkeys([*trainer.watched["retain"], *near])
    known = sum(row in trainer.original.hidden for row in stay)
    named = f"rows of {settings.near}" if settings.near else f"rows, {NEAR_CHOSEN}; --near FILE names others"
    return (
        f"neighbours that have to stay: {len(near)} {named}. The model itself knows the answers of {known} of {len(stay)} rows "
        "looked at that should stay; what is kept is measured on those"
    )


def outcome_lines(trainer: UnlearnTrainer, settings: UnlearnSettings, parent: Mapping[str, Any] | None = None) -> Iterator[str]:
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


def run_manifest(
    run: RunInput, pace: Pace, key: str, trainer: UnlearnTrainer, seconds: float, recipe: Mapping[str, Any]
) -> dict[str, Any]:
    """What is kept with the artifact: settings, rows, the model before, every evaluation, which checkpoint was kept and why."""
    settings = run.settings
    best = trainer.state.best_model_checkpoint
    return manifest(
        "unlearn",
        key,
        settings=kept_settings(settings),
        method={"name": settings.method, **asdict(run.method)},  # type: ignore[call-overload]
        **({"plugins": run.origin} if run.origin else {}),
        **pace._asdict(),
        template_date=Template(run.tokenizer).date,
        **recipe,
        data={
            "forget": _described(settings.forget, run.forget),
            "retain": {
                "source": settings.retain,
                "rows_trained_on": len(run.retain.train),
                "rows_held_out": len(run.retain.held_out),
                "sha256": rows_hash(run.retain.train),
            },
            "near": _near_described(run, trainer),
            **{role: _described(settings.alternate, rows) for role, rows in run.alternates.items()},
        },
        long_rows={name: asdict(found) for name, found in run.long.items()},
        parent=run.parent,
        held_out=[row_key(row) for row in run.retain.held_out],
        training={
            "seconds": round(seconds, 1),
            "processes": processes(),
            "steps": trainer.state.global_step,
            "kept_checkpoint": f"checkpoint-{trainer.state.global_step}" if best is None else Path(best).name,
            "kept_by": KEPT_BY[settings.keep],
            "before": _numbers(trainer.before.numbers()),
            "history": [_numbers(log) for log in trainer.state.log_history if "eval_selection" in log],
        },
    )


def _described(source: str | list[str] | None, rows: Sequence[Example]) -> dict[str, Any]:
    return {"source": source, "rows": len(rows), "sha256": rows_hash(rows)}


def _near_described(run: RunInput, trainer: UnlearnTrainer) -> dict[str, Any]:
    """The neighbours that were looked at: a file's, or which retained rows were taken, by their ids."""
    if run.near is not None:
        return _described(run.settings.near, run.near)
    return {"source": NEAR_CHOSEN, "rows": len(trainer.watched["near"]), "ids": [t.example_id for t in trainer.watched["near"]]}


def _numbers(values: Mapping[str, float]) -> dict[str, float | None]:
    """The values, null where one is not a number: the model was broken at that time."""
    return {name: value if math.isfinite(value) else None for name, value in values.items()}


def _options(flag: str, source: str | list[str]) -> str:
    return " ".join(f"{flag} {each}" for each in dict.fromkeys(_listed(source)))


def _listed(source: str | list[str]) -> list[str]:
    return [source] if isinstance(source, str) else source
