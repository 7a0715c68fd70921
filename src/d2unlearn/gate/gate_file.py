"""The content of `d2_gate.json`: what a gate writes there, and what is read of it."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from typing import Any, TypeVar

from d2unlearn.errors import GateError
from d2unlearn.gate.calibrate import Calibration
from d2unlearn.gate.choice import Candidate
from d2unlearn.gate.copied import check_values
from d2unlearn.gate.families import FamilyRates
from d2unlearn.gate.guarantees import GroupGuarantee
from d2unlearn.gate.rule import STATISTIC, check_statistic, probes_from_json
from d2unlearn.gate.score import score_from_json, score_to_json
from d2unlearn.runtime import fingerprint
from d2unlearn.schema import GateSummary, Interval

_FORMAT = 1
_Read = TypeVar("_Read")
_SINCE_03 = ("reason", "apart", "groups", "families", "left_out")
_MEASURED = ("conformal_threshold", "rank", "candidates", "calibration_false_refusal", "grouped", *_SINCE_03)
"""Fields of a calibration that stand apart, under `measured`; the summary holds the others."""
_VOUCHED, _DATE, _BOUND, _SYSTEM, _SENTENCES = "vouched", "date", "bound", "system", "sentences"
"""Stand in the file where they say something, and in none that an earlier version wrote."""
_LATER = ("calibration", "probes", _VOUCHED, _DATE, _BOUND, _SYSTEM, _SENTENCES)


def gate_content(gate: Mapping[str, Any], summary: GateSummary) -> dict[str, Any]:
    """On top what `GateSummary` names, then what is needed to decide, then what was measured. gate: its fields by name."""
    calibration: Calibration = gate["calibration"]
    content = {
        "format": _FORMAT,
        "statistic": STATISTIC,
        **asdict(summary),
        "score": score_to_json(calibration.score),
        **{name: value for name, value in gate.items() if name not in _LATER},
        **{name: gate[name] for name in (_VOUCHED, _DATE, _SENTENCES) if gate[name]},
        **({_BOUND: dict(gate[_BOUND])} if gate[_BOUND] else {}),
        **({_SYSTEM: gate[_SYSTEM]} if gate[_SYSTEM] is not None else {}),
        "probes": [asdict(probe) for probe in gate["probes"]],
        "measured": _measured(calibration),
    }
    return {**content, "checksum": fingerprint(content)}


def _measured(calibration: Calibration) -> dict[str, Any]:
    """What stands under `measured`; of what earlier versions did not measure only what says something."""
    written = {
        name: value for name, value in asdict(calibration).items() if name in _MEASURED and (name not in _SINCE_03 or value)
    }
    candidates = [{name: value for name, value in each.items() if value is not None} for each in written["candidates"]]
    return {**written, "candidates": candidates}


def gate_arguments(content: Mapping[str, Any], names: Sequence[str]) -> dict[str, Any]:
    """A gate's fields, `names`, of what `gate_content` made. Raises `GateError` for another format, or wrong entries."""
    if content.get("format") != _FORMAT:
        raise GateError(f"gate format {content.get('format')!r} is not known to this version, which reads {_FORMAT}")
    check_statistic(content)
    try:
        check_values(content)
        gate = {name: content[name] for name in names if name not in _LATER}
        gate |= {name: bool(content.get(name, False)) for name in (_VOUCHED, _SENTENCES)}
        gate[_DATE] = content.get(_DATE)
        gate[_BOUND] = {str(name): str(value) for name, value in content.get(_BOUND, {}).items()}
        gate["confidence"] = _unless_none(float, content["confidence"])
        gate |= {name: str(content[name]) for name in ("template", "dtype")}
        gate[_SYSTEM] = None if content.get(_SYSTEM) is None else str(content[_SYSTEM])
        gate["refusal_texts"] = checked_texts(gate["refusal_texts"])
        gate |= {"calibration": _calibration(content), "probes": probes_from_json(content["probes"])}
    except (AttributeError, KeyError, TypeError, ValueError, OverflowError) as error:
        raise GateError(f"an entry is missing or garbled ({error})") from None
    calibration = gate["calibration"]
    if gate["confidence"] is not None and not 0 < gate["confidence"] < 1:
        raise GateError(f"confidence is {gate['confidence']!r}, not a share between 0 and 1")
    if not math.isfinite(calibration.threshold) or calibration.threshold < calibration.conformal_threshold:
        raise GateError("the threshold lies below what the calibration allows; the file was edited")
    _check_measured(calibration)
    if content.get("checksum") != fingerprint({name: entry for name, entry in content.items() if name != "checksum"}):
        raise GateError("it was edited by hand, or written by an older version: its checksum does not fit")
    return gate


def _check_measured(calibration: Calibration) -> None:
    """Raises `GateError` for a rank that is none of the calibration scores', leads that are none, and a threshold that no
    request could exceed.

    By so much lies a threshold above all scores as they are apart: what was calibrated lies among them or next to them.
    """
    scores = (*calibration.calibration_scores, *calibration.forget_scores)
    if not 1 <= calibration.rank <= len(calibration.calibration_scores):
        raise GateError(f"rank {calibration.rank} is not of {len(calibration.calibration_scores)} calibration scores")
    wrong = next((group for group in calibration.groups if not 0 <= group.lead < math.inf), None)
    if wrong is not None:
        raise GateError(f"the lead of the group {wrong.group} is {wrong.lead}, not a finite number of at least 0")
    highest, lowest = max(scores), min(scores)
    if calibration.threshold > highest + max(highest - lowest, 1.0):
        raise GateError(
            f"a threshold of {calibration.threshold:.4g} could never refuse: the highest score that was seen is {highest:.4g}"
        )


def checked_texts(texts: Sequence[str]) -> tuple[str, ...]:
    """Refusal texts. Raises `GateError` unless there is one, and none is empty."""
    if isinstance(texts, str) or not texts or not all(isinstance(text, str) and text.strip() for text in texts):
        raise GateError("refusal texts should be at least one text that is not empty")
    return tuple(texts)


def _calibration(content: Mapping[str, Any]) -> Calibration:
    measured = content["measured"]
    return Calibration(
        name=str(content["score_name"]),
        score=score_from_json(content["score"]),
        threshold=float(content["threshold"]),
        conformal_threshold=float(measured["conformal_threshold"]),
        rank=int(measured["rank"]),
        candidates=tuple(map(_candidate, measured["candidates"])),
        validation_false_refusal=_interval(content["false_refusal"]),
        calibration_false_refusal=_interval(measured["calibration_false_refusal"]),
        miss_rate=_unless_none(_interval, content["miss_rate"]),
        grouped=bool(measured["grouped"]),
        calibration_scores=tuple(map(float, content["retain_scores"])),
        forget_scores=tuple(map(float, content["forget_scores"])),
        **_since_03(measured),
    )


def _since_03(measured: Mapping[str, Any]) -> dict[str, Any]:
    """What gates of earlier versions do not have."""
    read: dict[str, Callable[[Any], Any]] = {
        "reason": str,
        "apart": bool,
        "groups": lambda rows: tuple(map(_group, rows)),
        "families": lambda rows: tuple(map(_family, rows)),
        "left_out": lambda shares: {str(family): float(share) for family, share in shares.items()},
    }
    return {name: read[name](measured[name]) for name in _SINCE_03 if name in measured}


def _candidate(row: Mapping[str, Any]) -> Candidate:
    return Candidate(str(row["name"]), **{name: float(value) for name, value in row.items() if name != "name"})


def _group(row: Mapping[str, Any]) -> GroupGuarantee:
    conformal, refused = _unless_none(float, row["conformal"]), _unless_none(_interval, row["refused"])
    lead = float(row.get("lead", 0.0))  # gates of before have none
    return GroupGuarantee(str(row["group"]), int(row["n"]), int(row["needed"]), conformal, refused, lead)


def _family(row: Mapping[str, Any]) -> FamilyRates:
    return FamilyRates(str(row["family"]), *(_unless_none(_interval, row[name]) for name in ("refused", "missed", "leaked")))


def _interval(values: Sequence[Any]) -> Interval:
    value, low, high, n = values
    return Interval(float(value), float(low), float(high), int(n))


def _unless_none(read: Callable[[Any], _Read], value: Any) -> _Read | None:
    return None if value is None else read(value)
