"""The gate's file: changed anywhere, it is no gate; with a checksum made again, none whose parts mean nothing."""

from __future__ import annotations

import copy
import json
import math
from collections.abc import Iterator
from dataclasses import fields
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as draw

from d2unlearn.errors import GateError
from d2unlearn.gate import EnergyGate
from d2unlearn.gate.gate_file import gate_arguments, gate_content
from d2unlearn.runtime import fingerprint

from .values import json_values

NAMES = [field.name for field in fields(EnergyGate)]
Place = tuple[str | int, ...]


@pytest.fixture(scope="module")
def content(gate: EnergyGate) -> dict[str, Any]:
    """What the file of a gate says."""
    found: dict[str, Any] = json.loads(json.dumps(gate_content(vars(gate), gate.summary())))
    return found


def places(value: Any, here: Place = ()) -> Iterator[Place]:
    """Everything in a value of JSON that could be another, whole parts included."""
    for key, inner in value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ():
        yield (*here, key)
        yield from places(inner, (*here, key))


def changed(content: dict[str, Any], place: Place, value: Any) -> dict[str, Any]:
    found = copy.deepcopy(content)
    holder: Any = found
    for part in place[:-1]:
        holder = holder[part]
    holder[place[-1]] = value
    return found


def loaded(content: dict[str, Any]) -> EnergyGate | None:
    """The gate of a file that says this; None for a `GateError`."""
    try:
        return EnergyGate(**gate_arguments(content, NAMES))
    except GateError:
        return None


def test_the_file_as_it_was_written_is_the_gate(gate: EnergyGate, content: dict[str, Any]) -> None:
    assert loaded(content) == gate


@given(data=draw.data(), value=json_values)
def test_a_changed_file_is_no_gate(content: dict[str, Any], data: draw.DataObject, value: Any) -> None:
    edited = changed(content, data.draw(draw.sampled_from(list(places(content)))), value)
    found = loaded(edited)
    assert found is None or fingerprint(edited) == fingerprint(content)


@given(data=draw.data(), value=json_values)
def test_a_gate_whose_checksum_was_made_again_decides_or_is_none(
    content: dict[str, Any], data: draw.DataObject, value: Any
) -> None:
    edited = changed(content, data.draw(draw.sampled_from(list(places(content)))), value)
    edited["checksum"] = fingerprint({name: entry for name, entry in edited.items() if name != "checksum"})
    found = loaded(edited)
    if found is not None:
        decides(found)


@pytest.mark.parametrize(
    "place", [("threshold",), ("seed",), ("max_new_tokens",), ("temperature",), ("max_false_refusal",), ("confidence",)]
)
@given(value=draw.floats() | draw.integers())
@example(value=10**400)
@example(value=-(10**400))
@example(value=0.5)
def test_numbers_that_mean_nothing_are_no_gate_s(content: dict[str, Any], place: Place, value: float) -> None:
    edited = changed(content, place, value)
    edited["checksum"] = fingerprint({name: entry for name, entry in edited.items() if name != "checksum"})
    found = loaded(edited)
    if found is not None:
        decides(found)


@pytest.mark.parametrize("place", ["confidence", "false_refusal", "miss_rate"])
@pytest.mark.parametrize("value", [[], [1, 2, 3, []], [[]] * 4, "a", {"a": 1}, 10**400, 1.5, True])
def test_measured_values_of_another_kind_are_no_gate_s(content: dict[str, Any], place: str, value: Any) -> None:
    """They would be found out only where a page shows them."""
    edited = changed(content, (place,), value)
    edited["checksum"] = fingerprint({name: entry for name, entry in edited.items() if name != "checksum"})
    assert loaded(edited) is None


def decides(gate: EnergyGate) -> None:
    """All that a gate is asked for while requests are answered and pages are made is there and makes sense."""
    assert math.isfinite(gate.threshold)
    assert gate.threshold >= gate.calibration.conformal_threshold
    assert gate.max_new_tokens >= 1
    assert 0 < gate.temperature < math.inf
    assert 0 < gate.max_false_refusal < 1
    assert gate.refusal([1, 2, 3]) in gate.refusal_texts
    assert isinstance(gate.guarantee, str)
    assert all(isinstance(line, str) for line in gate.describe())
    assert json.loads(json.dumps(gate_content(vars(gate), gate.summary()), allow_nan=False))["threshold"] == gate.threshold
