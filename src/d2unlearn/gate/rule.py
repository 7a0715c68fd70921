"""What it takes to decide on a request, and nothing about how it was calibrated: the part of a gate that travels.

`d2_gate.json` is the one source of truth. `config.json` carries a copy of this part, made from it, under `d2_gate`: for code
that runs where this package is not installed, or beside an engine that reads the configuration alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

from transformers import PreTrainedModel

from d2unlearn.errors import GateError
from d2unlearn.gate.probes import Probe, check_probes
from d2unlearn.gate.score import Score, score_from_json, score_to_json

STATISTIC = "energies of the last prompt position and of the answer's positions"
"""What scores and thresholds are made of. A threshold of anything else means nothing here."""


@dataclass(frozen=True)
class Words:
    """The tokens that a refusal is made of. `ends`: ids that end an answer where the configuration of a generation names none.

    `pad`: the id to fill up with where it names none. `line_break` comes before a refusal in the middle of an answer.
    """

    refusals: tuple[tuple[int, ...], ...]
    line_break: tuple[int, ...]
    ends: tuple[int, ...]
    pad: int


@dataclass(frozen=True)
class Rule:
    """A request whose score exceeds `threshold` is refused. The fields are those of `EnergyGate`."""

    score: Score
    threshold: float
    temperature: float
    vocab_rows: int | None
    max_false_refusal: float
    max_new_tokens: int
    dtype: str
    probes: tuple[Probe, ...]
    probe_tolerance: float
    seed: int

    def check_probes(self, model: PreTrainedModel) -> None:
        """Raises `GateError` unless the model gives the stored probe prompts the energies they had."""
        check_probes(model, self.probes, self.probe_tolerance, self.dtype, self.temperature, self.vocab_rows)


def rule_to_json(rule: Rule, words: Words) -> dict[str, Any]:
    """The copy, as plain JSON values."""
    plain = {field.name: getattr(rule, field.name) for field in fields(rule) if field.name not in ("score", "probes")}
    return {
        "statistic": STATISTIC,
        "score": score_to_json(rule.score),
        **plain,
        "probes": [asdict(probe) for probe in rule.probes],
        "words": asdict(words),
    }


def rule_from_json(value: Mapping[str, Any]) -> tuple[Rule, Words]:
    """The rule and the words that `rule_to_json` wrote. Raises `GateError` for anything else, and for another statistic."""
    check_statistic(value)
    try:
        plain = {f.name: value[f.name] for f in fields(Rule) if f.name not in ("score", "probes")}
        probes = tuple(Probe(tuple(int(i) for i in p["token_ids"]), float(p["energy"])) for p in value["probes"])
        words = value["words"]
        refusals = tuple(tuple(int(i) for i in refusal) for refusal in words["refusals"])
        return (
            Rule(score=score_from_json(value["score"]), probes=probes, **plain),
            Words(refusals, tuple(words["line_break"]), tuple(words["ends"]), int(words["pad"])),
        )
    except (KeyError, TypeError, ValueError) as error:
        raise GateError(f"the copy of the gate in config.json is garbled ({error}); run `d2unlearn calibrate` again") from None


def check_statistic(value: Mapping[str, Any]) -> None:
    """Raises `GateError` when a stored threshold belongs to another statistic. Format 1 without a name knew only this one."""
    found = value.get("statistic", STATISTIC)
    if found != STATISTIC:
        raise GateError(f"the threshold belongs to another statistic ({found}) than this version compares with it; recalibrate")
