"""What an `unlearn` run is told and what it reads: settings checked, rows read and set apart, the model loaded."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, get_type_hints

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from d2unlearn.config import UnlearnSettings, identity
from d2unlearn.data.holdout import HeldOut, hold_out, split_validation
from d2unlearn.data.identity import folded_key
from d2unlearn.data.long_rows import LongRows, fit_sets
from d2unlearn.data.records import content_hash, read_examples, source_names
from d2unlearn.data.template import Template
from d2unlearn.errors import ConfigError, DataError
from d2unlearn.fields import typed
from d2unlearn.methods import METHOD_FAMILY, Method, method_named
from d2unlearn.models import (
    context_of,
    load_model,
    load_tokenizer,
    state_hash,
    unread_model,
    weights_folder,
    weights_hash,
)
from d2unlearn.plugins import plugin_origin
from d2unlearn.quantization import check_quantization
from d2unlearn.runtime import fingerprint, say, torch_dtype
from d2unlearn.schema import Example, Kind, Role
from d2unlearn.training.alternates import read_alternates
from d2unlearn.training.frozen import model_settings
from d2unlearn.training.lineage import parent_of
from d2unlearn.training.recipe import Pace, automatic_accumulation, automatic_epochs, automatic_learning_rate
from d2unlearn.training.rounds import check_rounds
from d2unlearn.training.sharded import check_fsdp_run, is_unread
from d2unlearn.training.steered_run import is_measured, loaded_retain_model
from d2unlearn.version import __version__


@dataclass(frozen=True)
class RunInput:
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

        The effective batch grows with the number of processes, so a run is not taken up, or called done, by another number; one
        with FSDP2 is where a step has as many pairs.
        """
        rows = [self.forget, self.retain.train, self.retain.held_out, *self.alternates.values()]
        rows += [] if self.near is None else [self.near]
        hashes = [rows_hash(part) for part in rows]
        model = [self.model_hash, model_settings(self.model)]
        model += [] if self.retain_model is None else [state_hash(self.retain_model)]
        origin = [self.origin] if self.origin else []
        told, how_many = identity(self.settings), processes()
        if self.settings.fsdp:
            how_many *= told.pop("batch_size") * run_pace(self).accumulation
            told.pop("accumulation")
        return fingerprint([__version__, told, model, hashes, how_many, *origin])

    @property
    def model_hash(self) -> str:
        """sha256 of the weights: as they were loaded, or of the files that they are still to be read from."""
        return weights_hash(weights_folder(self.settings.model)) if is_unread(self.model) else state_hash(self.model)

    @property
    def origin(self) -> dict[str, str]:
        """{distribution: version} of another package's method; empty for one of ours."""
        return plugin_origin(METHOD_FAMILY, self.settings.method)


def read_run(settings: UnlearnSettings) -> RunInput:
    """All that a run needs, checked. Raises a `D2Error` for what cannot be used.

    Full training of 16-bit weights happens in float32 (small updates vanish otherwise) and is saved as it came.
    """
    method = build_method(settings.method, settings.method_parameters)
    measured = is_measured(settings)
    check_reporting(settings.report_to)
    check_quantization(settings.quantization, lora=settings.lora, merge=settings.merge)
    if settings.fsdp:
        check_fsdp_run(method, processes=processes(), quantization=settings.quantization, targets=measured)
    check_rounds(settings.method, method, lora=settings.lora, processes=processes())
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
    return RunInput(
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
        measured,
        loaded_retain_model(settings, tokenizer),
    )


def loaded_model(settings: UnlearnSettings) -> tuple[PreTrainedModel, torch.dtype]:
    """The model as it is trained, and the dtype that it is saved in; with FSDP2 its weights are not read yet, if that can be.

    Raises `ConfigError` where a quantised one is to be trained.
    """
    dtype = torch_dtype(settings.dtype)
    unread = unread_model(settings.model, dtype=dtype) if settings.fsdp else None
    if settings.fsdp and unread is None:
        say(f"every process reads the whole of {settings.model} first: its files cannot be read in parts")
    model = unread or load_model(settings.model, dtype=dtype, quantization=settings.quantization)
    saved_dtype = model.dtype
    if getattr(model, "is_quantized", False) and not settings.lora:
        raise ConfigError([f"{settings.model} is quantised, and such weights cannot be trained: train an adapter, --lora"])
    if settings.dtype == "auto" and not settings.lora:
        model = model.float()  # type: ignore[no-untyped-call]
    return model, saved_dtype


def build_method(name: str, parameters: dict[str, Any]) -> Method:
    """A method by its name and parameters. Raises `ConfigError` for names or parameters that do not exist."""
    made = method_named(name)
    given, mistakes = typed(parameters, get_type_hints(made))
    if mistakes:
        raise ConfigError([f"method {name}: {mistake}" for mistake in mistakes])
    return made(**given)


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


def run_pace(run: RunInput) -> Pace:
    """The pace of a run on as many processes as there are."""
    return pace_of(run.settings, sum(p.numel() for p in run.model.parameters()), len(run.forget), processes())


def processes() -> int:
    """How many train together, as the launcher says; 1 without one."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def rows_hash(rows: Sequence[Example]) -> str:
    """Of the rows' content and order, whatever file they came from."""
    return fingerprint([content_hash(row) for row in rows])


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
