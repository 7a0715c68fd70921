"""`audit`: every attack on an artifact, beside its original and the model that never knew, and what may be claimed then."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path

from transformers import PreTrainedModel

from d2unlearn.artifact import is_done, locked, new_result
from d2unlearn.attacks.reading import Reading
from d2unlearn.audit.claims import FORGET, NEVER_SEEN
from d2unlearn.audit.guarding import fitted_guard, guard_named, guard_origin, guard_rows
from d2unlearn.audit.judged import READINGS, judge_again, judged
from d2unlearn.audit.judging import judging_hash
from d2unlearn.audit.kept import KeptParts, labels_of
from d2unlearn.audit.making import Making
from d2unlearn.audit.page import write_audit_page
from d2unlearn.audit.parts import LEVELS, AttackPlan, AuditRows, Level, Subject, SubjectName
from d2unlearn.audit.records import Audit, AuditedModel, AuditedRows
from d2unlearn.audit.suite import ATTACKS
from d2unlearn.audit.summary import Readings, control_warnings, not_asked, row_warnings, worst_told
from d2unlearn.audit.verdict import VERDICT_RULES, ClaimMargins
from d2unlearn.config import AuditSettings, identity
from d2unlearn.data.records import content_hash, read_examples
from d2unlearn.data.template import Template
from d2unlearn.errors import ArtifactError, ConfigError, DataError
from d2unlearn.gate.gate import EnergyGate
from d2unlearn.generation.guarded import GuardedModel
from d2unlearn.models import load_tokenizer, weights_name
from d2unlearn.outputs import output_place
from d2unlearn.runtime import fingerprint, hash_file, remove, torch_dtype, write_json
from d2unlearn.schema import AUDIT_FILE, GATE_FILE, Example
from d2unlearn.serialization import record_to_json
from d2unlearn.version import __version__

_FORMAT = 1
_COMPARED = 16
"""Forget rows whose tokens all models have to agree on."""
NO_GATE = "the artifact has no gate: nothing is refused, and nothing about refusals is shown"


def run_audit(settings: AuditSettings) -> Path:
    """Audit and write `OUTPUT/audit.json` with a manifest, at once when it is there already, and its page; the record's path.

    Raises `ConfigError` for an attack that there is not and for models that cannot be compared, `ModelError` and `DataError`
    for what cannot be read, for facts called never seen that stand among the other rows, and for rows both to go and to stay.
    """
    output = output_place(settings.output)
    plans, rows = chosen_attacks(settings.attack), read_rows(settings)
    fitted_on = guard_rows(settings, rows)
    gate = EnergyGate.from_pretrained(settings.model) if (Path(settings.model) / GATE_FILE).is_file() else None
    weights = {name: weights_name(folder) for name, folder in folders(settings).items()}
    _check_controls(weights, rows)
    readers = {name: reader_of(folder) for name, folder in folders(settings).items()}
    depends: list[object] = [
        weights,
        readers,
        None if gate is None else gate.fingerprint,
        _contents(rows),
        judging_hash(),
        identity(settings),
    ]
    if settings.guard is not None:
        guard = [settings.guard, settings.guard_parameters, settings.max_false_refusal]
        origin = guard_origin(settings)
        depends.append([guard, [content_hash(row) for row in fitted_on], *([origin] if origin else [])])
    key = fingerprint([_FORMAT, __version__, depends])
    if not is_done(output, key, settings):
        workspace = output.with_name(f"{output.name}.partial")
        workspace.mkdir(parents=True, exist_ok=True)
        with locked(workspace / "lock", ArtifactError(f"another process is at work in {workspace}; wait for it")):
            record, readings = audit(plans, rows, weights, settings, workspace, fitted_on)
            with new_result(output, "audit", key, settings, guard_origin(settings)) as staged:
                _write(staged, record, readings)
            remove(workspace)
    judge_again(output / AUDIT_FILE, ATTACKS)
    write_audit_page(output / AUDIT_FILE)
    return output / AUDIT_FILE


def audit(
    plans: Sequence[AttackPlan],
    rows: AuditRows,
    weights: Mapping[SubjectName, str],
    settings: AuditSettings,
    workspace: Path,
    fitted_on: Sequence[Example] = (),
) -> tuple[Audit, list[Readings]]:
    """Make the attacks and judge. What `workspace` or the cache holds is not done again. fitted_on: rows for a guard."""
    kept = KeptParts(
        workspace, weights.get("original", ""), settings.dtype, settings.seed, texts=not settings.redact, labels=labels_of(rows)
    )
    subjects = _subjects(settings, weights)
    guard = fitted_guard(settings, subjects["artifact"].guarded, rows.forget, fitted_on)
    subjects["artifact"] = replace(subjects["artifact"], guard=guard)
    _check_tokenizers(subjects, rows)
    making = Making(plans, rows, subjects, level_of(settings), settings.seed, kept)
    readings = making.readings()
    return _record(making, readings, weights, settings), readings


def chosen_attacks(names: Sequence[str]) -> list[AttackPlan]:
    """The plans of these names; all for none. Raises `ConfigError` for a name that no attack has."""
    unknown = [name for name in names if name not in ATTACKS]
    if unknown:
        raise ConfigError([f"--attack {name}: there is {', '.join(ATTACKS)}" for name in unknown])
    return [plan for name, plan in ATTACKS.items() if not names or name in names]


def level_of(settings: AuditSettings) -> Level:
    """The level that was asked for."""
    return next((level for level in LEVELS if getattr(settings, level)), "quick")


def folders(settings: AuditSettings) -> dict[SubjectName, str]:
    """Where each model lies."""
    given: dict[SubjectName, str | None] = {
        "artifact": settings.model,
        "original": settings.original,
        "oracle": settings.oracle,
    }
    return {name: folder for name, folder in given.items() if folder is not None}


def reader_of(folder: str) -> str:
    """How a model reads and answers beside its weights: template, tokenizer's ids of a fixed prompt, configuration."""
    files = [Path(folder) / name for name in ("config.json", "generation_config.json", "tokenizer.json")]
    return fingerprint([Template(load_tokenizer(folder)).fingerprint, [hash_file(file) for file in files if file.is_file()]])


def read_rows(settings: AuditSettings) -> AuditRows:
    """All rows that the settings name."""

    def read(source: str | Sequence[str] | None) -> list[Example]:
        return [] if source is None else read_examples(source, group_size=settings.group_size, columns=settings.columns)

    return AuditRows(
        forget=read(settings.forget),
        retain=read(settings.retain),
        near=read(settings.near),
        paraphrased=read(settings.paraphrased),
        never_seen=read(settings.never_seen),
    )


def _check_controls(weights: Mapping[SubjectName, str], rows: AuditRows) -> None:
    """Raises for a control that would clear anything, a model or rows held against itself, and for rows to go and stay."""
    oracle = weights.get("oracle")
    for known, option in ((weights["artifact"], "--model"), (weights.get("original"), "--original")):
        if oracle is not None and oracle == known:
            raise ConfigError([f"--oracle has the very weights of {option}; name a model that never saw the forget rows"])
    sets = {f"--{name.replace('_', '-')}": of_set for name, of_set in vars(rows).items()}
    for option in ("--forget", "--retain", "--near", "--paraphrased"):
        _check_apart("--never-seen", option, sets, "give facts that the model never saw")
    for option in ("--retain", "--near"):
        _check_apart(option, "--forget", sets, "what is refused there would count as a false refusal: leave them out of one")


def _check_apart(option: str, other: str, sets: Mapping[str, Sequence[Example]], remedy: str) -> None:
    """Raises `DataError` where rows of one set stand in another; sets: by the option that names them."""
    ours = {content_hash(row): row for row in sets[option]}
    both = [ours[key] for key in map(content_hash, sets[other]) if key in ours]
    if both:
        raise DataError(f"{both[0].source}: rows of {option} stand in {other} too ({len(both)} of them); {remedy}")


def _check_tokenizers(subjects: Mapping[SubjectName, Subject], rows: AuditRows) -> None:
    """Raises `ConfigError` where models cut answers into other tokens: probabilities by token could not be compared."""
    answers = {
        name: [
            [token for token, is_answer in zip(row.input_ids, row.answer_mask, strict=True) if is_answer]
            for row in subject.rendered(FORGET, rows.forget[:_COMPARED]).tokens
        ]
        for name, subject in subjects.items()
    }
    for name, of_model in answers.items():
        if of_model != answers["artifact"]:
            raise ConfigError(
                [f"--{name} has another tokenizer or chat template than --model: their numbers cannot be compared"]
            )


def _contents(rows: AuditRows) -> dict[str, object]:
    """All that readings and their groups depend on."""
    return {
        name: [[content_hash(row), row.example_id, row.group, dict(row.extra)] for row in of_set]
        for name, of_set in vars(rows).items()
    }


def _subjects(settings: AuditSettings, weights: Mapping[SubjectName, str]) -> dict[SubjectName, Subject]:
    """The models, loaded. The original is one of them, and stands by for attacks on the others that need it."""
    dtype = torch_dtype(settings.dtype)
    loaded = {
        name: GuardedModel.from_pretrained(folder, dtype=dtype, raw=True, use_gate=name == "artifact")
        for name, folder in folders(settings).items()
    }

    @cache
    def original() -> PreTrainedModel:
        return loaded["original"].model

    return {
        name: Subject(name, guarded, weights[name], original, settings.batch_size, reader_of(folders(settings)[name]))
        for name, guarded in loaded.items()
    }


def _record(making: Making, readings: Sequence[Readings], weights: Mapping[SubjectName, str], settings: AuditSettings) -> Audit:
    margins = ClaimMargins(settings.probability_margin, settings.told_margin, settings.refused_margin, settings.picked_margin)
    gate = making.subjects["artifact"].gate
    left_out = {name: "not asked for" for name, plan in ATTACKS.items() if plan not in making.plans} | making.left_out
    rows = making.rows
    described = {name: _described(of_set) for name, of_set in vars(rows).items() if of_set}
    rate = None if gate is None else gate.max_false_refusal
    attacks, claims = judged(
        readings,
        ATTACKS,
        left_out=left_out,
        rate=rate,
        margins=margins,
        groups={name: of_set.groups for name, of_set in described.items()},
        seed=settings.seed,
    )
    return Audit(
        label=settings.label or Path(settings.model).name,
        level=making.level,
        models={name: AuditedModel(folder, weights[name]) for name, folder in folders(settings).items()},
        gate="" if gate is None else gate.fingerprint,
        control="oracle" if settings.oracle else NEVER_SEEN if settings.never_seen else "none",
        rows=described,
        margins=vars(margins),
        judging=judging_hash(),
        claims=tuple(claims),
        attacks=tuple(attacks),
        examples=() if settings.redact else tuple(worst_told(readings, {row.example_id: row for row in rows.forget})),
        left_out=left_out,
        seed=settings.seed,
        redacted=settings.redact,
        guard=guard_named(settings),
        promised=rate,
        rules=VERDICT_RULES,
        unmade=_unmade(making, readings),
        warnings=((NO_GATE,) if gate is None else ()) + (*control_warnings(readings), *row_warnings(vars(rows))),
    )


def _unmade(making: Making, readings: Sequence[Readings]) -> dict[str, tuple[str, ...]]:
    """Of attacks that were made, what the rows did not allow: settings, and single rows in some."""
    made = [plan for plan in making.plans if plan.name not in making.left_out]
    found = {plan.name: list(plan.unmade(making.rows, making.level, making.seed)) if plan.unmade else [] for plan in made}
    for attack, reasons in not_asked(readings).items():
        found.setdefault(attack, []).extend(reasons)
    return {attack: tuple(reasons) for attack, reasons in found.items() if reasons}


def _described(rows: Sequence[Example]) -> AuditedRows:
    groups = {row.example_id if row.group is None else row.group for row in rows}
    return AuditedRows(len(rows), len(groups), fingerprint([content_hash(row) for row in rows]))


def _write(folder: Path, record: Audit, readings: Sequence[Readings]) -> None:
    """The record, and beside it the readings of each attack without texts, which the record's examples show.

    Redacted, groups have numbers for names: what they are called may be what was to be forgotten.
    """
    (folder / READINGS).mkdir(parents=True)
    labels = (group for each in readings for reading in each.readings for group in reading.groups)
    names = {group: f"group {number}" for number, group in enumerate(dict.fromkeys(labels), 1)} if record.redacted else {}
    for attack in dict.fromkeys(each.attack for each in readings):
        of_attack = [_without_texts(each, names) for each in readings if each.attack == attack]
        content = {"readings": [record_to_json(each, "readings") for each in of_attack]}
        write_json(folder / READINGS / f"{attack}.json", content)
    write_json(folder / AUDIT_FILE, record_to_json(record, "audit"))


def _without_texts(each: Readings, names: Mapping[str, str]) -> Readings:
    """names: of groups that are to be called otherwise."""

    def bare(reading: Reading) -> Reading:
        return replace(reading, texts=(), groups=tuple(names.get(group, group) for group in reading.groups))

    return replace(each, readings=tuple(map(bare, each.readings)))
