"""`unlearn --plan`: what it says of a small run, by hand, and that it neither trains for good nor writes anything."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

import tiny_models
from d2unlearn.config import UnlearnSettings
from d2unlearn.errors import ConfigError
from d2unlearn.models import low_rank_config, model_outline, with_fresh_adapter
from d2unlearn.training import plan
from d2unlearn.training.plan import bytes_of, model_shape, plan_unlearn, planned_run, rounds_lines

from .runs import unlearn_settings


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> UnlearnSettings:
    return replace(unlearn_settings(tmp_path_factory.mktemp("plan")), plan=True)


@pytest.mark.parametrize("family", tiny_models.FAMILIES)
def test_shapes_are_those_of_the_family(family: str) -> None:
    model = tiny_models.FAMILIES[family]()
    shape = model_shape(model)
    assert (shape.hidden, shape.layers, shape.heads) == (32, 2, 4)
    assert shape.parameters == sum(p.numel() for p in model.parameters())
    assert shape.gated == (family != "gpt2")
    trained = sum(p.numel() for p in with_fresh_adapter(model, low_rank_config(4)).parameters() if p.requires_grad)
    assert shape.adapter_parameters(4) == trained


def test_an_outline_has_shapes_and_no_weights(settings: UnlearnSettings) -> None:
    outline = model_outline(settings.model)
    assert {parameter.device.type for parameter in outline.parameters()} == {"meta"}
    assert model_shape(outline).head_parameters == model_shape(outline).vocabulary * 32


def test_a_batch_is_the_longest_that_the_rows_make(settings: UnlearnSettings) -> None:
    """8 rows to forget and 12 to keep, each with an answer of 5 words and its end; 4 pairs a batch."""
    planned = planned_run(settings)
    step = planned.step(on_host=True)
    lengths = {kind: sorted(row.answer_length for row in rows)[-4:] for kind, rows in planned.rows.items()}
    assert (step.rows, step.positions) == (8, sum(lengths["forget"]) + sum(lengths["retain"]))
    assert step.width == max(len(row.input_ids) for rows in planned.rows.values() for row in rows)
    assert (step.copied_heads, replace(planned, settings=replace(settings, lora=True)).step(on_host=True).copied_heads) == (
        1,
        0,
    )
    assert planned.step(on_host=False).stored == 0 < step.stored


@pytest.mark.parametrize(("text", "expected"), [("80GB", 80e9), ("24 GiB", 24 * 2**30), ("512mb", 512e6), ("0.5 gib", 2.0**29)])
def test_memory_is_read_as_it_is_written(text: str, expected: float) -> None:
    assert bytes_of(text) == expected


@pytest.mark.parametrize("text", ["80", "GB", "0GB", "-3GB", "80 TB", "eighty GB", "nan GB"])
def test_other_memory_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="80GB"):
        bytes_of(text)


def test_what_does_not_fit_is_not_started(settings: UnlearnSettings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plan, "device_memory", lambda: plan.DeviceMemory(1e4, "a small device", False))
    text = plan_unlearn(replace(settings, devices=4, memory="0.01MB"))
    assert "does not fit" in text
    assert "time: not measured" in text
    assert "steps: 4 (4 epochs, 16 pairs a step on 4 devices)" in text
    assert "less: --gradient-checkpointing" in text
    assert "torchrun --nproc-per-node 4 --no-python d2unlearn unlearn ... --fsdp" in text


@pytest.mark.trains
def test_what_fits_is_timed_and_nothing_is_left(settings: UnlearnSettings) -> None:
    text = plan_unlearn(settings)
    assert "steps: 8 (4 epochs, 4 pairs a step)" in text
    assert "measured here in 3 steps" in text
    assert not Path(settings.output).exists()


def test_rounds_are_told_and_refused_where_they_cannot_be_made(settings: UnlearnSettings) -> None:
    """Nine copies of float32 weights: while it is trained against an attacker."""
    deep = replace(settings, method="deep_eua", method_parameters={"blocks": 1, "rounds": 2})
    planned = planned_run(deep)
    held = 9 * 4 * planned.shape.parameters / 1e9
    assert rounds_lines(planned)[0].startswith("rounds: 1 x 2 follow")
    assert f"9 copies of the weights, {held:.2f} GB" in rounds_lines(planned)[0]
    assert rounds_lines(planned_run(settings)) == []
    with pytest.raises(ConfigError, match="leave --lora out"):
        planned_run(replace(deep, lora=True))
