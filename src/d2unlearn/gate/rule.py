"""What it takes to decide on a request, and nothing about how it was calibrated: the part of a gate that travels.

`d2_gate.json` is the one source of truth. `config.json` carries a copy of this part, made from it, under `d2_gate`: for code
that runs where this package is not installed, or beside an engine that reads the configuration alone.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any

import numpy as np
from transformers import PreTrainedModel

from d2unlearn.errors import GateError
from d2unlearn.gate.copied import check_values, check_words
from d2unlearn.gate.probes import Probe, dtype_name, prompt_energies
from d2unlearn.gate.score import Score, score_from_json, score_to_json

STATISTIC = "energies of the last prompt position and of the answer's positions"
"""What scores and thresholds are made of. A threshold of anything else means nothing here."""


@dataclass(frozen=True)
class RefusalTokens:
    """What a refusal is made of. `ends`: ids that end an answer where the configuration of a generation names none.

    `pad`: the id to fill up with where it names none. `line_break` comes before a refusal in the middle of an answer.
    """

    refusals: tuple[tuple[int, ...], ...]
    line_break: tuple[int, ...]
    ends: tuple[int, ...]
    pad: int


@dataclass(frozen=True)
class GateRule:
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
        """Raises `GateError` unless the model gives the stored probe prompts the energies they had, within the tolerance.

        The tolerance allows what rounding does and not what could move decisions. Measured on a 4M Llama, energies near -27:
        another batch shape moves float32 energies by 2e-5 nats; a cast to bfloat16 moves the worst of 8 probes by 0.07 to 0.15,
        int8 weights by 0.10 to 0.21, a cast to float16 by 0.01 to 0.02. So 0.002 in float32. In bfloat16 the batch shape alone
        moves energies by 0.25: there the tolerance is three times what padding did at calibration, and probes can only tell
        other models, not int8 from bfloat16.
        """
        if not self.probes:
            raise GateError("the gate holds no probe prompts to recognise these weights by; recalibrate")
        prompts = [list(probe.token_ids) for probe in self.probes]
        if max(max(prompt) for prompt in prompts) >= model.config.get_text_config().vocab_size:
            raise GateError("the gate was calibrated on a model with a larger vocabulary; recalibrate on this model")
        energies = prompt_energies(model, prompts, self.temperature, self.vocab_rows)
        moved = float(np.max(np.abs(energies - np.array([probe.energy for probe in self.probes]))))
        if not moved <= self.probe_tolerance:
            raise GateError(
                f"these weights are not those the gate was calibrated on: the energy of a probe prompt differs by {moved:.3g} "
                f"nats (allowed: {self.probe_tolerance:.3g}; calibrated in {self.dtype}, running in {dtype_name(model)}); "
                "recalibrate with the model as it runs"
            )


def refusal_tokens(
    text_ids: Callable[[str], Sequence[int]], refusal_texts: Sequence[str], ends: Sequence[int], pad: int
) -> RefusalTokens:
    """Each refusal text as the ids that `text_ids` gives it."""
    refusals = tuple(tuple(text_ids(text)) for text in refusal_texts)
    return RefusalTokens(refusals, tuple(text_ids("\n")), tuple(ends), pad)


def rule_to_json(rule: GateRule, tokens: RefusalTokens) -> dict[str, Any]:
    """The copy, as plain JSON values."""
    plain = {field.name: getattr(rule, field.name) for field in fields(rule) if field.name not in ("score", "probes")}
    return {
        "statistic": STATISTIC,
        "score": score_to_json(rule.score),
        **plain,
        "probes": [asdict(probe) for probe in rule.probes],
        "words": asdict(tokens),
    }


def rule_from_json(value: Mapping[str, Any]) -> tuple[GateRule, RefusalTokens]:
    """The rule and the tokens that `rule_to_json` wrote. Raises `GateError` for anything else, and for another statistic."""
    check_statistic(value)
    try:
        check_values(value)
        check_words(value["words"])
        plain = {f.name: value[f.name] for f in fields(GateRule) if f.name not in ("score", "probes")}
        probes = probes_from_json(value["probes"])
        words = value["words"]
        refusals = tuple(tuple(int(i) for i in refusal) for refusal in words["refusals"])
        return (
            GateRule(score=score_from_json(value["score"]), probes=probes, **plain),
            RefusalTokens(refusals, tuple(words["line_break"]), tuple(words["ends"]), int(words["pad"])),
        )
    except (KeyError, TypeError, ValueError) as error:
        raise GateError(f"the copy of the gate in config.json is garbled ({error}); run `d2unlearn calibrate` again") from None


def check_ids(tokens: RefusalTokens, vocabulary: int) -> None:
    """Raises `GateError` for refusals of tokens that a model with so many does not have."""
    if max(*tokens.line_break, *tokens.ends, tokens.pad, *(max(refusal) for refusal in tokens.refusals)) >= vocabulary:
        raise GateError("the gate's refusals are of a larger vocabulary than this model has; recalibrate on this model")


def probes_from_json(value: Sequence[Mapping[str, Any]]) -> tuple[Probe, ...]:
    """The probes whose fields these are."""
    return tuple(Probe(tuple(int(i) for i in probe["token_ids"]), float(probe["energy"])) for probe in value)


def check_statistic(value: Mapping[str, Any]) -> None:
    """Raises `GateError` when a stored threshold belongs to another statistic. Format 1 without a name knew only this one."""
    named = value.get("statistic", STATISTIC)
    if named != STATISTIC:
        raise GateError(f"the threshold belongs to another statistic ({named}) than this version compares with it; recalibrate")
