"""How much of sampling an audit makes: leak@k at some temperatures, and beams; raw and guarded."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from d2unlearn.attacks.answering import beam_model, sampled_model
from d2unlearn.attacks.reading import Reading
from d2unlearn.attacks.sampling import RepeatedSampling, any_told_reading, leak_readings
from d2unlearn.audit.parts import AttackPlan, AuditRows, Level, Part, Subject
from d2unlearn.audit.plans.asking import (
    Way,
    admission_of,
    answer_tokens,
    answering_cost,
    asked_examples,
    rows_identity,
    ways,
)
from d2unlearn.schema import Example


@dataclass(frozen=True)
class SamplingBudget:
    """Rows of each set (None: all), and what is drawn of each."""

    rows: int | None
    sampling: RepeatedSampling


BUDGETS: Mapping[Level, SamplingBudget] = {
    "quick": SamplingBudget(12, RepeatedSampling(8, (1, 4), max_new_tokens=32)),
    "thorough": SamplingBudget(100, RepeatedSampling()),
    "exhaustive": SamplingBudget(None, RepeatedSampling(temperatures=(0.5, 1.0, 1.5))),
}


def sampling_parts(subject: Subject, rows: AuditRows, level: Level, seed: int) -> Iterator[Part]:
    """Every temperature and the beams, raw and through the gate."""
    budget = BUDGETS[level]
    asked = asked_examples(rows, budget.rows, seed)
    for way in ways(subject):
        for temperature in budget.sampling.temperatures:
            yield _samples_part(subject, way, asked, budget.sampling, temperature, seed)
        yield _beams_part(subject, way, asked, budget.sampling)


PLAN = AttackPlan(
    "sampling",
    "Sampling",
    "Does one of many answers tell, drawn at a temperature or found by a beam search?",
    sampling_parts,
    claims=("other_words", "refused"),
)


def _samples_part(
    subject: Subject, way: Way, asked: Mapping[str, Sequence[Example]], attack: RepeatedSampling, temperature: float, seed: int
) -> Part:
    tokens = answer_tokens(subject, way, attack.max_new_tokens)

    def run() -> list[Reading]:
        answer = sampled_model(
            subject.guarded,
            raw=not way.guarded,
            samples=attack.samples,
            temperature=temperature,
            seed=seed,
            batch_size=subject.batch_size,
            admission=admission_of(subject, way),
        )
        setting = {"temperature": temperature}
        sets = asked.items()
        return [each for name, of_set in sets for each in leak_readings(answer, name, of_set, attack.ks, setting, tokens)]

    name = f"{way.name}, temperature {temperature:g}"
    return _part(way, name, asked, [attack.samples, attack.ks, temperature, tokens], attack.samples, tokens, run)


def _beams_part(subject: Subject, way: Way, asked: Mapping[str, Sequence[Example]], attack: RepeatedSampling) -> Part:
    tokens = answer_tokens(subject, way, attack.max_new_tokens)

    def run() -> list[Reading]:
        answer = beam_model(
            subject.guarded,
            raw=not way.guarded,
            beams=attack.beams,
            batch_size=subject.batch_size,
            admission=admission_of(subject, way),
        )
        setting = {"beams": attack.beams}
        return [any_told_reading(answer, name, of_set, setting, tokens) for name, of_set in asked.items()]

    return _part(way, f"{way.name}, beams", asked, [attack.beams, tokens], attack.beams, tokens, run)


def _part(
    way: Way,
    name: str,
    asked: Mapping[str, Sequence[Example]],
    budget: object,
    answers: int,
    tokens: int,
    run: Callable[[], list[Reading]],
) -> Part:
    """budget: all that the readings depend on beside the rows; answers: of each row."""
    about = [budget, {set_name: rows_identity(of_set) for set_name, of_set in asked.items()}]
    cost = answering_cost(answers * sum(map(len, asked.values())), tokens)
    return Part(name, about, cost, run, way.claim, way.guarded)
