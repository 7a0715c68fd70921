"""How much of compression an audit makes."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial

from transformers import PreTrainedModel

from d2unlearn.attacks.averaging import Averaging, average_with_fine_tune
from d2unlearn.attacks.compression import (
    Compression,
    HalfPrecision,
    Pruning,
    Quantisation,
    compressed,
    prompt_energy_reading,
    refusals_without_check,
)
from d2unlearn.attacks.reading import AskedRows, NotShownError, Reading, Setting
from d2unlearn.attacks.scoring import probabilities
from d2unlearn.audit.claims import FORGET
from d2unlearn.audit.parts import AttackPlan, AuditRows, Cost, Level, Part, Subject, asked_sets, drawn
from d2unlearn.data.records import content_hash
from d2unlearn.schema import Example

RETAIN_ROWS = "retain"


@dataclass(frozen=True)
class CompressionBudget:
    """What is done to the weights, and to how many rows the model is put afterwards (None: to all).

    gated: compressions under which the gate's energies and decisions are read too; gated_rows: of each set, for those.
    """

    compressions: tuple[Compression, ...]
    averagings: tuple[Averaging, ...]
    rows: int | None
    gated: tuple[Compression, ...] = (Quantisation(8), Quantisation(4))
    gated_rows: int | None = None


INTEGERS = tuple(
    Quantisation(bits, size, symmetric) for bits in (8, 4) for size in (32, 64, 128) for symmetric in (True, False)
)
THINNED = (HalfPrecision(), *(Pruning(share) for share in (0.1, 0.2, 0.3, 0.4, 0.5)))
FINE_TUNES = tuple(Averaging(80, rate) for rate in (5e-4, 1e-3, 2e-3))
GATED = (HalfPrecision(), Quantisation(8), Quantisation(4), Quantisation(4, 32, False))
BUDGETS: Mapping[Level, CompressionBudget] = {
    "quick": CompressionBudget((Quantisation(8), Quantisation(4), Pruning(0.3)), (Averaging(20, 2e-3),), 150, gated_rows=25),
    "thorough": CompressionBudget((*INTEGERS, *THINNED), FINE_TUNES, 400, GATED, 200),
    "exhaustive": CompressionBudget(
        (*INTEGERS, Quantisation(3, 32, False), Quantisation(2, 32, False), *THINNED, Pruning(0.6), Pruning(0.7)),
        (*FINE_TUNES, *(Averaging(400, rate.learning_rate) for rate in FINE_TUNES)),
        None,
        (HalfPrecision(), *INTEGERS),
        400,
    ),
}


def compression_parts(subject: Subject, rows: AuditRows, level: Level, seed: int) -> Iterator[Part]:
    """One part a compression or average, and one for the gate under each."""
    budget = BUDGETS[level]
    asked = asked_sets(subject, rows, budget.rows, seed)
    n = sum(len(each.tokens) for each in asked)
    about = _hashes(rows.forget, rows.never_seen)
    for compression in budget.compressions:
        change = partial(compressed, compression=compression)
        yield _part(subject, compression.setting, change, asked, [about, budget.rows, asdict_of(compression)], Cost(scored=n))
    for averaging in budget.averagings:
        tune_on = drawn(rows.retain, averaging.steps * averaging.batch_size, seed)
        change = partial(_averaged, subject, tune_on, averaging, seed)
        cost = Cost(trained=averaging.steps * averaging.batch_size, scored=n)
        yield _part(subject, averaging.setting, change, asked, [about, budget.rows, asdict(averaging), _hashes(tune_on)], cost)
    yield from _gated_parts(subject, rows, budget, seed)


def asdict_of(compression: Compression) -> dict[str, object]:
    """Its kind and its fields."""
    return {"kind": type(compression).__name__, **vars(compression)}


def _part(
    subject: Subject,
    setting: Mapping[str, Setting],
    change: Callable[[PreTrainedModel], PreTrainedModel],
    asked: Sequence[AskedRows],
    about: object,
    cost: Cost,
) -> Part:
    def run() -> list[Reading]:
        changed = change(subject.model)
        return [probabilities(changed, of_set, setting, batch_size=subject.batch_size) for of_set in asked]

    return Part(_name(setting), about, cost, run, "comes_back")


def _averaged(
    subject: Subject, retain: Sequence[Example], averaging: Averaging, seed: int, model: PreTrainedModel
) -> PreTrainedModel:
    if not retain:
        raise NotShownError("it fine-tunes on retained rows, and there are none")
    return average_with_fine_tune(model, subject.rendered(RETAIN_ROWS, retain).tokens, averaging, seed=seed)


def _gated_parts(subject: Subject, rows: AuditRows, budget: CompressionBudget, seed: int) -> Iterator[Part]:
    """Energies and decisions before and after. Without a gate there is nothing that they could move."""
    rule = subject.guarded.rule
    if rule is None:
        return
    given = {FORGET: rows.forget, RETAIN_ROWS: rows.retain}
    sets = {name: drawn([row for row in of_set if row.prompt], budget.gated_rows, seed) for name, of_set in given.items()}
    asked = [subject.rendered(name, of_set) for name, of_set in sets.items() if of_set]
    leads = [[subject.guarded.lead_of(row.prompt) for row in of_set] for of_set in sets.values() if of_set]
    n = sum(len(of_set.tokens) for of_set in asked)
    for compression in (None, *budget.gated):
        setting = {"change": "none"} if compression is None else compression.setting

        def run(compression: Compression | None = compression, setting: Mapping[str, Setting] = setting) -> list[Reading]:
            changed, size = compressed(subject.model, compression), subject.batch_size
            energies = [prompt_energy_reading(changed, of_set, setting, batch_size=size) for of_set in asked]
            return energies + [
                refusals_without_check(subject.guarded.tokenizer, changed, rule, of_set, setting, leads=led, batch_size=size)
                for of_set, led in zip(asked, leads, strict=True)
            ]

        about = [_hashes(*sets.values()), None if compression is None else asdict_of(compression)]
        cost = Cost(scored=n, answered=n)
        yield Part(f"gate, {_name(setting)}", about, cost, run, guarded=True)


def _name(setting: Mapping[str, Setting]) -> str:
    return ", ".join(f"{value}" if isinstance(value, str) else f"{name} {value}" for name, value in setting.items())


def _hashes(*sets: Sequence[Example]) -> list[list[str]]:
    return [[content_hash(row) for row in of_set] for of_set in sets]


PLAN = AttackPlan(
    name="compression",
    title="Compression",
    shows="Whether forgotten answers come back when the weights are rounded, thinned or averaged with another fine-tune.",
    parts=compression_parts,
    claims=("comes_back",),
)
