"""The copy of a gate in `config.json`, and the values of any gate: whether they are whole, and could refuse at all.

A copy holds a checksum of itself and that of `d2_gate.json`. Code that has only the configuration checks the first, and where
the gate's own file lies beside it also that both say the same. Neither helps against somebody who writes both.
"""

from __future__ import annotations

import json
import math
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from d2unlearn.errors import GateError
from d2unlearn.runtime import fingerprint
from d2unlearn.schema import GATE_COPY, GATE_FILE

MOST_TOKENS = 65536
"""Longer answers, and looks further into them, are no count that somebody meant."""
MOST_TOLERANCE = 10.0
"""nats. Energies of one model differ by less, in any dtype and batch; more would take every model for the calibrated one."""
MOST_TEMPERATURE = 1000.0
"""Energies of a higher one are those of a uniform distribution, whatever was asked."""


def sealed(copy: Mapping[str, Any], gate: str) -> dict[str, Any]:
    """The copy with the checksum of the gate's file, `gate`, and its own."""
    told = {**copy, "gate": gate}
    return {**told, "checksum": fingerprint(told)}


def check_copy(copy: Mapping[str, Any], folder: str | Path | None) -> None:
    """Raises `GateError` unless the copy is as `sealed` made it, and as the gate's file in `folder`, if one is there.

    Warns of a copy that an earlier version made, which has no checksum.
    """
    again = "run `d2unlearn calibrate` again"
    if "checksum" not in copy:
        warnings.warn(
            f"the copy of the gate in config.json is of an earlier version, without a checksum: {again}", stacklevel=2
        )
    elif copy["checksum"] != fingerprint({name: value for name, value in copy.items() if name != "checksum"}):
        raise GateError(f"the copy of the gate in config.json ({GATE_COPY}) was edited, or cut short: {again}")
    path = None if folder is None else Path(folder) / GATE_FILE
    if path is None or not path.is_file():
        return
    try:
        gate = json.loads(path.read_text(encoding="utf-8"))
        whole = gate["checksum"] == fingerprint({name: value for name, value in gate.items() if name != "checksum"})
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise GateError(f"{path} cannot be read ({error}): {again}") from None
    differ = sorted(name for name in copy.keys() & gate.keys() - {"checksum"} if copy[name] != gate[name])
    if not whole or differ or copy.get("gate", gate["checksum"]) != gate["checksum"]:
        which = f" ({', '.join(differ)})" if differ else ""
        raise GateError(f"{path} and its copy in config.json do not say the same{which}: {again}")


def check_values(gate: Mapping[str, Any]) -> None:
    """Raises `GateError` for values, of `d2_gate.json` or of its copy, with which a gate could refuse or recognise nothing.

    Not finite numbers; a threshold that is none; a temperature, a tolerance or a count out of bounds; token ids that are none.
    """
    for place, value in _leaves(gate):
        if isinstance(value, float) and not math.isfinite(value):
            raise GateError(f"{place} is {value}, not a finite number")
    _number(gate, "threshold", -math.inf, math.inf)
    _number(gate, "temperature", 0.0, MOST_TEMPERATURE)
    _number(gate, "max_false_refusal", 0.0, 1.0)
    _number(gate, "probe_tolerance", 0.0, MOST_TOLERANCE)
    _count(gate, "max_new_tokens", 1)
    _count(gate, "seed", 0, most=None)
    if gate["vocab_rows"] is not None:
        _count(gate, "vocab_rows", 1, most=None)
    _check_score(gate["score"])
    for probe in gate["probes"]:
        _number(probe, "energy", -math.inf, math.inf)
        if not probe["token_ids"] or not all(_is_id(token) for token in probe["token_ids"]):
            raise GateError(f"a probe prompt's token ids {probe['token_ids']} are no ids")


def check_words(words: Mapping[str, Any]) -> None:
    """Raises `GateError` for tokens of refusals that no refusal can be made of. `words`: the copy's."""
    refusals, others = words["refusals"], [*words["line_break"], *words["ends"], words["pad"]]
    if not refusals or not all(refusals):
        raise GateError("the copy of the gate holds no refusal, or an empty one")
    if not all(_is_id(token) for token in [*others, *(token for refusal in refusals for token in refusal)]):
        raise GateError("a refusal's token ids are no ids")


def _check_score(score: Mapping[str, Any]) -> None:
    for part in score.get("parts", ()):
        _check_score(part)
    for name in ("count", "width"):
        if name in score:
            _count(score, name, 1)
    if "last" in score:
        _count(score, "last", 0)
        _count(score, "first", 0, most=score["last"])
    if not all(scale > 0 for scale in score.get("scale", ())):
        raise GateError("scale of the score is not above 0")


def _number(values: Mapping[str, Any], name: str, above: float, most: float) -> None:
    value = values[name]
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not above < value <= most:
        bounds = f" above {above:g} and at most {most:g}" if math.isfinite(above) else ""
        raise GateError(f"{name} is {value!r}, not a number{bounds}")


def _count(values: Mapping[str, Any], name: str, least: int, most: int | None = MOST_TOKENS) -> None:
    value = values[name]
    if isinstance(value, bool) or not isinstance(value, int) or value < least or (most is not None and value > most):
        upper = "" if most is None else f" and at most {most}"
        raise GateError(f"{name} is {value!r}, not a whole number of at least {least}{upper}")


def _is_id(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _leaves(value: Any, place: str = "gate") -> Iterator[tuple[str, Any]]:
    if isinstance(value, Mapping):
        for name, item in value.items():
            yield from _leaves(item, str(name))
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from _leaves(item, place)
    else:
        yield place, value
