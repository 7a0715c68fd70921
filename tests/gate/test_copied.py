"""The copy in `config.json`, and values with which a gate could never refuse: one sentence, also where the checksum fits."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from transformers import AutoConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from d2unlearn.errors import GateError
from d2unlearn.gate import EnergyGate
from d2unlearn.gate.copied import check_copy, sealed
from d2unlearn.gate.export import is_carried
from d2unlearn.gate.rule import rule_from_json
from d2unlearn.generation.carried_generate import _gated
from d2unlearn.runtime import fingerprint
from d2unlearn.schema import GATE_COPY, GATE_FILE


@pytest.fixture(scope="module")
def folder(
    tmp_path_factory: pytest.TempPathFactory, model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, gate: EnergyGate
) -> Path:
    made = tmp_path_factory.mktemp("copied") / "artifact"
    model.save_pretrained(made)
    tokenizer.save_pretrained(made)
    gate.save(made)
    return made


@pytest.fixture
def stored(folder: Path) -> Any:
    """The gate's file, which comes back as it was."""
    path = folder / GATE_FILE
    text = path.read_text()
    yield json.loads(text)
    path.write_text(text)


def rewrite(folder: Path, content: dict[str, Any]) -> None:
    """With a checksum that fits."""
    told = {name: value for name, value in content.items() if name != "checksum"}
    (folder / GATE_FILE).write_text(json.dumps({**told, "checksum": fingerprint(told)}))


def put(place: str, value: object) -> Callable[[dict[str, Any]], None]:
    def change(content: dict[str, Any]) -> None:
        *above, name = place.split(".")
        for step in above:
            content = content[int(step) if step.isdigit() else step]  # type: ignore[call-overload]
        content[name] = value

    return change


VALUES = [
    ("threshold", float("nan"), "threshold is nan, not a finite number"),
    ("threshold", float("inf"), "threshold is inf, not a finite number"),
    ("threshold", "high", "threshold is 'high', not a number"),
    ("threshold", 1e6, "could never refuse: the highest score that was seen is"),
    ("temperature", 0, "temperature is 0, not a number above 0"),
    ("temperature", -1.0, "temperature is -1.0"),
    ("temperature", 1e300, "at most 1000"),
    ("max_false_refusal", 1.5, "max_false_refusal is 1.5"),
    ("max_new_tokens", 0, "max_new_tokens is 0, not a whole number of at least 1"),
    ("max_new_tokens", 2.5, "max_new_tokens is 2.5"),
    ("probe_tolerance", 1e9, "probe_tolerance is 1000000000.0"),
    ("probe_tolerance", 0.0, "probe_tolerance is 0.0"),
    ("vocab_rows", 0, "vocab_rows is 0"),
    ("vocab_rows", True, "vocab_rows is True"),
    ("seed", -1, "seed is -1"),
    ("score", {"kind": "highest", "count": 10**9}, "count is 1000000000"),
    ("score", {"kind": "trailing_window", "width": 0}, "width is 0"),
    ("score", {"kind": "max_over_looks", "first": 9, "last": 2}, "first is 9"),
    ("score", {"kind": "max_over_looks", "first": 0, "last": 0, "centre": [0.0], "scale": [-1.0]}, "is not above 0"),
    ("probes.0.energy", float("nan"), "energy is nan"),
    ("probes.0.token_ids", [], r"token ids \[\] are no ids"),
    ("probes.0.token_ids", [5, -1], "are no ids"),
    ("measured.rank", 0, "rank 0 is not of 39 calibration scores"),
    ("measured.rank", 40, "rank 40 is not of 39"),
    ("measured.groups.0.lead", float("nan"), "lead is nan, not a finite number"),
    ("measured.groups.0.lead", -1.0, "is -1.0, not a finite number of at least 0"),
    ("measured.conformal_threshold", float("-inf"), "not a finite number"),
]


@pytest.mark.parametrize(("place", "value", "said"), VALUES)
def test_values_that_mean_nothing_are_one_sentence(
    folder: Path, stored: dict[str, Any], place: str, value: object, said: str
) -> None:
    put(place, value)(stored)
    rewrite(folder, stored)
    with pytest.raises(GateError, match=said) as caught:
        EnergyGate.from_pretrained(folder)
    assert str(caught.value).endswith("run `d2unlearn calibrate` again")
    if not place.startswith("measured") and "never refuse" not in said:
        copy = json.loads((folder / "config.json").read_text())[GATE_COPY]
        put(place, value)(copy)
        with pytest.raises(GateError, match=said):
            rule_from_json(copy)


@pytest.mark.parametrize(
    ("place", "value", "said"),
    [
        ("words.refusals", [], "holds no refusal"),
        ("words.refusals", [[]], "holds no refusal, or an empty one"),
        ("words.refusals", [[5, -3]], "token ids are no ids"),
        ("words.ends", ["</s>"], "token ids are no ids"),
        ("words", None, "garbled"),
    ],
)
def test_refusals_that_cannot_be_said_are_one_sentence(folder: Path, place: str, value: object, said: str) -> None:
    copy = json.loads((folder / "config.json").read_text())[GATE_COPY]
    put(place, value)(copy)
    with pytest.raises(GateError, match=said):
        rule_from_json(copy)


def carrying(folder: Path, copy: object) -> Any:
    """A model as the carried code meets it."""
    config = AutoConfig.from_pretrained(folder)
    setattr(config, GATE_COPY, copy)
    return SimpleNamespace(config=config)


def test_the_code_that_carries_the_copy_holds_it_against_its_checksum_and_the_gate(
    folder: Path, stored: dict[str, Any]
) -> None:
    config = AutoConfig.from_pretrained(folder)
    copy = getattr(config, GATE_COPY)
    check_copy(copy, folder)
    assert copy["gate"] == stored["checksum"]
    raised = {**copy, "threshold": copy["threshold"] + 1}
    with pytest.raises(GateError, match=r"was edited, or cut short"):
        _gated(carrying(folder, raised))
    again = sealed({name: value for name, value in raised.items() if name not in ("gate", "checksum")}, copy["gate"])
    check_copy(again, None)
    with pytest.raises(GateError, match=r"do not say the same \(threshold\)"):
        _gated(carrying(folder, again))
    other = sealed({name: value for name, value in copy.items() if name not in ("gate", "checksum")}, "of another gate")
    with pytest.raises(GateError, match="do not say the same"):
        check_copy(other, folder)
    rewrite(folder, {**stored, "note": "mine"})
    with pytest.raises(GateError, match="do not say the same"):
        check_copy(copy, folder)
    assert not is_carried(folder)
    (folder / GATE_FILE).write_text("{")
    with pytest.raises(GateError, match="cannot be read"):
        check_copy(copy, folder)


def test_refusals_of_a_larger_vocabulary_are_turned_down(folder: Path) -> None:
    copy = json.loads((folder / "config.json").read_text())[GATE_COPY]
    put("words.refusals", [[5, 176]])(copy)
    told = {name: value for name, value in copy.items() if name not in ("gate", "checksum")}
    with pytest.raises(GateError, match="larger vocabulary"):
        _gated(SimpleNamespace(config=vocabulary(folder, sealed(told, copy["gate"]))))


def vocabulary(folder: Path, copy: object) -> Any:
    config = carrying(folder, copy).config
    config._name_or_path = ""
    return config


def test_a_copy_of_an_earlier_version_is_taken_with_a_warning(folder: Path) -> None:
    copy = json.loads((folder / "config.json").read_text())[GATE_COPY]
    with pytest.warns(UserWarning, match="of an earlier version, without a checksum"):
        check_copy({name: value for name, value in copy.items() if name not in ("gate", "checksum")}, folder)
