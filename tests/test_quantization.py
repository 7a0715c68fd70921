"""A base in 4 or 8 bits: energies as it is served, an artifact that loads as it was trained, and a merge when asked."""

from __future__ import annotations

import importlib.util
import json
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from transformers import PreTrainedModel

import tiny_models
from d2unlearn import quantization
from d2unlearn.config import UnlearnSettings
from d2unlearn.errors import ConfigError
from d2unlearn.models import load_model, merged_adapter, weights_hash
from d2unlearn.quantities import LogSumExp
from d2unlearn.quantization import is_quantised, quantization_config
from d2unlearn.teacher_forcing import read_quantities
from d2unlearn.training.frozen import frozen_values
from d2unlearn.training.unlearn import run_unlearn
from training.runs import EUA, unlearn_settings

installed = pytest.mark.skipif(
    importlib.util.find_spec("bitsandbytes") is None, reason="needs bitsandbytes: pip install 'd2unlearn[quantised]'"
)
ROWS = tiny_models.rows(1, 4)
KINDS = ["4bit", "8bit"]


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> UnlearnSettings:
    """Layers wide enough for blocks of 64 weights."""
    return replace(unlearn_settings(tmp_path_factory.mktemp("quantised")), lora=True, lora_rank=4, epochs=2)


def energies(model: torch.nn.Module) -> list[float]:
    read = read_quantities(model, ROWS, [LogSumExp()], batch_size=2)
    return [-float(value) for row in read for value in row[LogSumExp()]]


def dense_energies(model: PreTrainedModel) -> list[float]:
    """From the model's own logits, row by row."""
    found = []
    for row in ROWS:
        with torch.no_grad():
            logits = model(input_ids=torch.tensor([row.input_ids])).logits[0].float()
        found += [-float(logits[t].logsumexp(-1)) for t in range(len(row.input_ids) - 1) if row.answer_mask[t + 1]]
    return found


def on(base: PreTrainedModel, adapter: Path) -> torch.nn.Module:
    """The base with the adapter as peft puts it there."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", category=FutureWarning)
        adapted: torch.nn.Module = PeftModel.from_pretrained(base, str(adapter)).eval()
    return adapted


# -- what is said -----------------------------------------------------------------------------------------------------


def test_a_missing_library_is_one_sentence(settings: UnlearnSettings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(quantization.importlib.util, "find_spec", lambda _: None)
    with pytest.raises(ConfigError, match="needs bitsandbytes, which is not installed: pip install"):
        quantization_config("4bit", torch.float32)


@pytest.mark.parametrize(
    ("changes", "said"),
    [({"quantization": "4bit", "lora": False}, "needs --lora"), ({"merge": True}, "merge is for a quantised base")],
)
def test_what_cannot_be_is_refused(settings: UnlearnSettings, changes: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        run_unlearn(replace(settings, **changes))


# -- what is computed -------------------------------------------------------------------------------------------------


@installed
@pytest.mark.parametrize("kind", KINDS)
def test_energies_and_margins_are_those_of_the_base_as_it_is_served(settings: UnlearnSettings, kind: str) -> None:
    served, plain = load_model(settings.model, quantization=kind), load_model(settings.model)
    assert (is_quantised(served), is_quantised(plain)) == (True, False)
    # 8 bits treat outliers by column of a whole batch, so padding and neighbours count a little
    near = 1e-4 if kind == "4bit" else 0.05
    assert energies(served) == pytest.approx(dense_energies(served), abs=near)
    assert energies(served) != pytest.approx(energies(plain), abs=1e-3)
    stored = frozen_values(served, EUA, {"forget": ROWS, "retain": ROWS})
    margins = read_quantities(served, ROWS, EUA.needs["forget"].reference, batch_size=1)
    for row, expected in zip(stored["forget"], margins, strict=True):
        for quantity in EUA.needs["forget"].reference:
            assert row[quantity].tolist() == pytest.approx(expected[quantity].tolist(), abs=near)


@installed
@pytest.mark.trains
@pytest.mark.parametrize("kind", KINDS)
def test_the_artifact_is_the_adapter_on_its_base(settings: UnlearnSettings, kind: str, tmp_path: Path) -> None:
    artifact = run_unlearn(replace(settings, quantization=kind, output=str(tmp_path / "artifact")))
    assert not list(artifact.glob("model*"))
    loaded, base = load_model(artifact), load_model(settings.model, quantization=kind)
    by_peft = on(load_model(settings.model, quantization=kind), artifact)
    assert energies(loaded) == pytest.approx(energies(by_peft), abs=1e-3)
    assert max(abs(a - b) for a, b in zip(energies(loaded), energies(base), strict=True)) > 1e-2
    assert weights_hash(artifact) == json.loads((artifact / "d2_manifest.json").read_text())["weights"]["artifact"]
    merged = merged_adapter(settings.model, artifact, quantization=kind, dtype=torch.float32)
    assert not is_quantised(merged.model)
    # 8 bits also round what goes into a layer, which a plain one does not
    assert energies(merged) == pytest.approx(energies(loaded), abs=1e-3 if kind == "4bit" else 0.5)


@installed
@pytest.mark.trains
def test_a_merge_is_a_plain_model(settings: UnlearnSettings, tmp_path: Path) -> None:
    artifact = run_unlearn(replace(settings, quantization="4bit", merge=True, output=str(tmp_path / "artifact")))
    loaded = load_model(artifact)
    assert not is_quantised(loaded)
    assert "quantization_config" not in json.loads((artifact / "config.json").read_text())
    assert {parameter.dtype for parameter in loaded.parameters()} == {torch.float32}
    adapted = on(load_model(settings.model, quantization="4bit"), artifact / "adapter")
    assert energies(loaded) == pytest.approx(energies(adapted), abs=1e-3)
