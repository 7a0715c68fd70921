"""Over midnight, with a template that writes the date, prompts stay what was calibrated: in the library, a server that runs on,
and for those who only have the artifact's files.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaForCausalLM, PreTrainedTokenizerFast

from d2unlearn.config import CalibrateSettings
from d2unlearn.gate import EnergyGate
from d2unlearn.gate.run import run_calibrate
from d2unlearn.generation.guarded import GuardedModel
from gate import tiny
from gate.test_run import asked_file
from test_template_date import clock

from .conftest import serving

TEMPLATE = (
    "{{ bos_token }}{{ strftime_now('w%d') }} {% for m in messages %}{{ m['content'] }} {% endfor %}"
    "{% if add_generation_prompt %}Answer:{% endif %}"
)
EVE, NEXT = "2026-11-30", "2026-12-01"


@pytest.fixture
def folder(tmp_path: Path, model: LlamaForCausalLM, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A model's folder that was calibrated on the eve."""
    tokenizer: PreTrainedTokenizerFast = tiny.tokenizer()
    tokenizer.chat_template = TEMPLATE
    made = tmp_path / "artifact"
    model.save_pretrained(made)
    tokenizer.save_pretrained(made)
    retain = str(asked_file(tmp_path / "retain.jsonl", tiny.questions(1, 30), answer="w1"))
    told: list[str] = []
    monkeypatch.setattr("d2unlearn.gate.gate.say", told.append)
    with clock(EVE):
        given = CalibrateSettings(str(made), retain, unseen=True, max_false_refusal=0.2, max_new_tokens=2, wordings=0)
        list(run_calibrate(given))
    assert told == [f"the chat template of {made} writes the date: it is fixed there to {EVE}, which was calibrated"]
    return made


def test_the_next_day_asks_what_was_calibrated(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    prompt = tiny.questions(7, 1)[0]
    with clock(EVE):
        guarded = GuardedModel.from_pretrained(folder)
        asked, (answer,) = guarded.prompt_ids(prompt), guarded.answer([prompt])
        assert guarded.text_of(asked[1:2]).strip() == "w30"
        with serving(guarded) as running:
            before = running.chat(prompt).json
            with clock(NEXT):
                after = running.chat(prompt).json
                assert guarded.answer([prompt]) == [answer]
    assert (after["choices"], after["usage"]) == (before["choices"], before["usage"])
    assert before["choices"][0]["message"]["content"] == answer.text
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    monkeypatch.syspath_prepend(str(tmp_path / "modules"))
    with clock(NEXT):
        assert EnergyGate.from_pretrained(folder).date == EVE
        assert GuardedModel.from_pretrained(folder).answer([prompt]) == [answer]
        carried, tokenizer = (
            AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True),
            AutoTokenizer.from_pretrained(folder),
        )
        turns = [{"role": "user", "content": prompt}]
        ids = tokenizer.apply_chat_template(turns, add_generation_prompt=True, return_dict=True)["input_ids"]
        made = carried.generate(torch.tensor([ids]), max_new_tokens=2, do_sample=False)
    assert ids == asked
    rest = made[0, len(asked) :].tolist()
    assert guarded.text_of(rest).strip() == answer.text
