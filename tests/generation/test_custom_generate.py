"""The gate that travels in the artifact: made from the package's source, and the same gate where the package is missing."""

from __future__ import annotations

import ast
import importlib
import json
import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    GenerationMixin,
    LlamaForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    TextIteratorStreamer,
)
from transformers.generation.streamers import BaseStreamer

from d2unlearn.data.batching import pad_left
from d2unlearn.errors import GateError, ModelError
from d2unlearn.gate import EnergyGate
from d2unlearn.gate.export import FOLDER, MODULES, README, custom_generate, is_carried
from d2unlearn.gate.rule import rule_from_json
from d2unlearn.gate.score import MaxOf, MaxOverLooks, TrailingWindow
from d2unlearn.generation.guarded import GuardedModel
from d2unlearn.models import load_model, weights_hash
from d2unlearn.schema import GATE_COPY, GATE_FILE
from gate import tiny

from .conftest import Halves, halves

pytestmark = pytest.mark.filterwarnings("ignore:.*calibrated on greedy answers:UserWarning")


@pytest.fixture(scope="module")
def split(gate: EnergyGate, tokenizer: PreTrainedTokenizerFast) -> Halves:
    return halves(gate, tiny.model(), tokenizer, MaxOf((MaxOverLooks(1, 3), TrailingWindow(4))))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, split: Halves) -> Path:
    made = tmp_path_factory.mktemp("carried") / "artifact"
    split.guarded.model.save_pretrained(made)
    split.guarded.tokenizer.save_pretrained(made)
    assert split.guarded.gate is not None
    split.guarded.gate.save(made)
    return made


@pytest.fixture(scope="module")
def carrying(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> PreTrainedModel:
    """The model as somebody loads it who trusts the code in the folder."""
    with pytest.MonkeyPatch.context() as patch:
        modules = tmp_path_factory.mktemp("modules")
        patch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(modules))
        patch.syspath_prepend(str(modules))
        return AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True).eval()


def test_the_code_in_the_folder_is_this_package_s_own(folder: Path) -> None:
    """Made again, it is the same; and nothing in it comes from elsewhere than torch, transformers, numpy and Python."""
    made = custom_generate()
    stored = {path.name: path.read_text() for path in (folder / FOLDER).iterdir()}
    assert stored == made
    assert set(made) == {f"{module.rpartition('.')[2].removeprefix('carried_')}.py" for module in MODULES} | {
        "requirements.txt"
    }
    allowed = {"torch", "transformers", "numpy", *sys.stdlib_module_names}
    for name, text in made.items():
        for node in ast.walk(ast.parse(text)) if name.endswith(".py") else ():
            if isinstance(node, ast.ImportFrom) and node.level:
                assert node.level == 1
                assert f"{node.module}.py" in made
            elif isinstance(node, ast.ImportFrom):
                assert str(node.module).partition(".")[0] in allowed, f"{name}: {ast.unparse(node)}"
            elif isinstance(node, ast.Import):
                assert {alias.name.partition(".")[0] for alias in node.names} <= allowed, f"{name}: {ast.unparse(node)}"


def test_there_is_one_energy_and_one_of_every_other_definition(folder: Path) -> None:
    """Every function and class in the folder is, letter for letter, one of the package's."""
    defined: list[str] = []
    for module in MODULES:
        source = Path(str(importlib.import_module(f"d2unlearn.{module}").__file__)).read_text()
        text = (folder / FOLDER / f"{module.rpartition('.')[2].removeprefix('carried_')}.py").read_text()
        for node in ast.parse(text).body:
            if isinstance(node, ast.FunctionDef | ast.ClassDef):
                assert str(ast.get_source_segment(text, node)) in source
                defined.append(node.name)
    assert len(defined) == len(set(defined))
    assert defined.count("free_energy") == 1


def test_the_copy_is_made_from_the_gate_and_travels_with_the_configuration(folder: Path, split: Halves, tmp_path: Path) -> None:
    gate = EnergyGate.from_pretrained(folder)
    config = AutoConfig.from_pretrained(folder)
    rule, words = rule_from_json(getattr(config, GATE_COPY))
    assert rule == gate.rule
    assert [split.guarded.tokenizer.decode(list(refusal)).strip() for refusal in words.refusals] == list(gate.refusal_texts)
    assert (words.ends, words.pad) == ((2,), 0)
    copy = getattr(config, GATE_COPY)
    assert copy["weights_hash"] == gate.weights_hash == weights_hash(folder)
    assert copy["template"] == gate.template
    assert copy["statistic"] == json.loads((folder / GATE_FILE).read_text())["statistic"]
    config.save_pretrained(tmp_path)
    assert getattr(AutoConfig.from_pretrained(tmp_path), GATE_COPY) == copy


@pytest.mark.parametrize(
    "way",
    [
        {},
        {"num_beams": 3},
        {"prefill_chunk_size": 3},
        {"cache_implementation": "static"},
        {"do_sample": True, "num_return_sequences": 2},
    ],
)
def test_it_answers_as_the_guarded_model(carrying: PreTrainedModel, split: Halves, way: dict[str, object]) -> None:
    ids, mask = pad_left(split.ids, 0)
    options = {"max_new_tokens": 12, "do_sample": False, **way}
    torch.manual_seed(0)
    wanted = split.guarded.generate(ids, mask, **options)
    torch.manual_seed(0)
    found = carrying.generate(input_ids=ids, attention_mask=mask, **options)
    assert torch.equal(found, wanted)
    torch.manual_seed(0)
    assert not torch.equal(found, split.guarded.generate(ids, mask, raw=True, **options))
    torch.manual_seed(0)
    assert torch.equal(carrying.generate(ids, attention_mask=mask, **options), wanted)


def test_assisted_answers_too(carrying: PreTrainedModel, split: Halves) -> None:
    for prompt, refused in zip(split.ids, split.refused, strict=True):
        ids = torch.tensor([prompt])
        options = {"max_new_tokens": 12, "do_sample": False, "attention_mask": torch.ones_like(ids)}
        found = carrying.generate(ids, assistant_model=split.guarded.model, **options)
        assert torch.equal(found, split.guarded.generate(ids, **options))
        assert torch.equal(found, split.guarded.generate(ids, raw=True, **options)) is not bool(refused)


def test_a_stream_reaches_its_end_and_shows_nothing_that_is_refused_early(carrying: PreTrainedModel, split: Halves) -> None:
    """`custom_generate=` as a callable drops the streamer, whose reader then waits for ever; a checkpoint's own does not."""
    for prompt, text in zip(split.ids, split.prompts, strict=True):
        streamer = TextIteratorStreamer(split.guarded.tokenizer, skip_prompt=True, skip_special_tokens=True, timeout=60)
        ids = torch.tensor([prompt])
        options = {"max_new_tokens": 12, "do_sample": False, "attention_mask": torch.ones_like(ids), "streamer": streamer}
        thread = threading.Thread(target=lambda ids=ids, options=options: carrying.generate(ids, **options))
        thread.start()
        assert "".join(streamer) == "".join(split.guarded.stream(text, max_new_tokens=12))
        thread.join()


class _Ended(BaseStreamer):
    def __init__(self) -> None:
        self.puts = 0
        self.ended = False

    def put(self, value: torch.Tensor) -> None:
        self.puts += 1

    def end(self) -> None:
        self.ended = True


def test_why_the_gate_does_not_travel_as_a_callable(split: Halves) -> None:
    """What transformers does with a streamer there: it is told the prompt and nothing more."""
    ids = torch.tensor(split.ids[:1])
    plain, callable_ = _Ended(), _Ended()
    options = {"max_new_tokens": 3, "do_sample": False, "attention_mask": torch.ones_like(ids), "eos_token_id": None}
    split.guarded.model.generate(ids, streamer=plain, **options)
    split.guarded.model.generate(ids, streamer=callable_, custom_generate=GenerationMixin._sample, **options)
    assert (plain.puts, plain.ended) == (4, True)
    assert (callable_.puts, callable_.ended) == (1, False)


def test_without_trust_the_gate_is_off_and_the_first_line_says_so(folder: Path, split: Halves) -> None:
    model = AutoModelForCausalLM.from_pretrained(folder).eval()
    ids, mask = pad_left(split.ids, 0)
    raw = split.guarded.generate(ids, mask, max_new_tokens=12, do_sample=False, raw=True)
    assert torch.equal(model.generate(ids, attention_mask=mask, max_new_tokens=12, do_sample=False), raw)
    first = (folder / README).read_text().splitlines()[0]
    assert first.startswith("**The gate is off unless this model is loaded with `trust_remote_code=True`")


def test_a_note_takes_the_place_of_an_older_one_and_leaves_the_rest(folder: Path, split: Halves) -> None:
    assert split.guarded.gate is not None
    readme = folder / README
    plain = readme.read_text()
    readme.write_text(f"---\nlicense: apache-2.0\n---\n# A model\n\n{plain}\nIts card.\n")
    for _ in range(2):
        split.guarded.gate.save(folder)
        text = readme.read_text()
        assert text.startswith("---\nlicense: apache-2.0\n---\n**The gate is off")
        assert text.count("**The gate is off") == 1
        assert text.endswith("# A model\n\nIts card.\n")
    readme.unlink()
    split.guarded.gate.save(folder)
    assert readme.read_text() == plain


def test_continuous_batching_is_turned_down_for_models_with_a_gate_alone(
    carrying: PreTrainedModel, split: Halves, model: LlamaForCausalLM
) -> None:
    """`generate_batch` and servers with continuous batching never call `generate`."""
    for begin in (
        lambda: carrying.generate_batch(split.ids, max_new_tokens=2),
        lambda: carrying.init_continuous_batching(),
        lambda: carrying.continuous_batching_context_manager().__enter__(),
    ):
        with pytest.raises(Exception, match="continuous batching chooses tokens where no gate can look") as caught:
            begin()
        assert type(caught.value).__name__ == "GateError"
    with pytest.raises(Exception, match="cannot watch continuous batching"):
        carrying.generate(torch.tensor(split.ids[:1]), cache_implementation="paged", max_new_tokens=2)
    assert type(model.init_continuous_batching()).__name__ == "ContinuousBatchingManager"


def test_weights_that_were_tuned_or_quantised_afterwards_are_noticed(
    folder: Path, split: Halves, carrying: PreTrainedModel
) -> None:
    ids = torch.tensor(split.ids[:1])
    options = {"max_new_tokens": 2, "do_sample": False, "attention_mask": torch.ones_like(ids)}
    generate = carrying.generate.func  # type: ignore[attr-defined]
    for changed in ("tuned", "bfloat16"):
        model = AutoModelForCausalLM.from_pretrained(folder).eval()
        if changed == "tuned":
            with torch.no_grad():
                model.lm_head.weight.mul_(1.01)
        else:
            model = model.bfloat16()
        for _ in range(2):
            with pytest.raises(Exception, match="these weights are not those the gate was calibrated on") as caught:
                generate(ids, model=model, **options)
            assert type(caught.value).__name__ == "GateError"


def test_a_configuration_without_its_copy_answers_nothing(folder: Path, split: Halves, carrying: PreTrainedModel) -> None:
    model = AutoModelForCausalLM.from_pretrained(folder)
    delattr(model.config, GATE_COPY)
    with pytest.raises(Exception, match=f"holds no {GATE_COPY}"):
        carrying.generate.func(torch.tensor(split.ids[:1]), model=model)  # type: ignore[attr-defined]
    for change, message in (
        ({"statistic": "mean of all prompt positions"}, "another statistic"),
        ({"probes": None}, "garbled"),
    ):
        copy = {**json.loads((folder / "config.json").read_text())[GATE_COPY], **change}
        with pytest.raises(GateError, match=message):
            rule_from_json(copy)


def test_another_statistic_in_the_gate_s_own_file(folder: Path) -> None:
    path = folder / GATE_FILE
    text = path.read_text()
    path.write_text(json.dumps({**json.loads(text), "statistic": "mean of all prompt positions"}))
    with pytest.raises(GateError, match="another statistic"):
        EnergyGate.from_pretrained(folder)
    path.write_text(text)


def test_neither_the_weights_nor_our_own_loading_notice(folder: Path, split: Halves, tmp_path: Path) -> None:
    """The hash is over the weights alone; a model that we load, and save with other weights, leaves its old gate behind."""
    assert is_carried(folder)
    before = weights_hash(folder)
    assert split.guarded.gate is not None
    (folder / FOLDER / "of_an_earlier_version.py").touch()
    split.guarded.gate.save(folder)
    assert {path.name for path in (folder / FOLDER).glob("*.py")} == {n for n in custom_generate() if n.endswith(".py")}
    assert weights_hash(folder) == before
    model = load_model(folder)
    assert not hasattr(model.config, GATE_COPY)
    assert type(model).generate is GenerationMixin.generate
    model.save_pretrained(tmp_path)
    assert GATE_COPY not in json.loads((tmp_path / "config.json").read_text())
    guarded = GuardedModel.from_pretrained(folder, device="cpu")
    assert [a.refused for a in guarded.answer(split.prompts)] == split.refused.tolist()


def test_our_own_gate_is_used_in_the_place_of_the_one_that_came_along(carrying: PreTrainedModel, split: Halves) -> None:
    """A model that was loaded with its code: raw is raw, and nothing is guarded twice."""
    assert split.guarded.gate is not None
    guarded = GuardedModel(carrying, split.guarded.tokenizer, split.guarded.gate)
    ids, mask = pad_left(split.ids, 0)
    for raw in (False, True):
        options = {"max_new_tokens": 12, "do_sample": False, "raw": raw}
        assert torch.equal(guarded.generate(ids, mask, **options), split.guarded.generate(ids, mask, **options))


def test_a_folder_whose_tokenizer_renders_otherwise_carries_no_gate(folder: Path, split: Halves, tmp_path: Path) -> None:
    assert split.guarded.gate is not None
    split.guarded.model.save_pretrained(tmp_path)
    with pytest.raises(ModelError, match="as a tokenizer"):
        split.guarded.gate.save(tmp_path)
    split.guarded.tokenizer.save_pretrained(tmp_path)
    with pytest.raises(GateError, match="renders prompts differently"):
        replace(split.guarded.gate, template="another").save(tmp_path)
    assert not (tmp_path / FOLDER).exists()


PROGRAM = """
import json, sys
sys.modules["d2unlearn"] = None  # as where it is not installed
import torch
from transformers import AutoModelForCausalLM
model = AutoModelForCausalLM.from_pretrained(sys.argv[1], trust_remote_code=True)
made = [model.generate(torch.tensor([ids]), max_new_tokens=12, do_sample=False)[0].tolist() for ids in json.loads(sys.argv[2])]
print(json.dumps(made))
"""


def test_it_needs_no_installation_of_this_package(folder: Path, split: Halves, tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(folder), json.dumps(split.ids)],
        capture_output=True,
        text=True,
        check=True,
        timeout=300,
        env={"HF_HOME": str(tmp_path), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "PATH": ""},
    )
    wanted = [
        split.guarded.generate(torch.tensor([ids]), torch.ones(1, len(ids)), max_new_tokens=12, do_sample=False)[0].tolist()
        for ids in split.ids
    ]
    assert json.loads(done.stdout.splitlines()[-1]) == wanted
