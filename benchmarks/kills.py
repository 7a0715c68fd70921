"""Kills commands at random moments (SIGKILL) and runs them again: results equal to an undisturbed run's, no half artifact.

Every second kill is by the clock, anywhere in a run; the others fall on a random one of the calls that change a file, so that
they meet writing and publishing too. The model is a tiny random Llama, the rows are few, and `compare` and `audit` attack as
little as they can. A command is a process forked from this one, which has imported everything; its cache is empty, but that
audits find what killed ones left there. What was done stands in `--work` and is not done again.

    python benchmarks/kills.py                                   # 200 kills; writes benchmarks/results/kills.json
    python benchmarks/kills.py --kills calibrate=2 --work runs/kills --output runs/kills.json
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import re
import shutil
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

import d2unlearn.comparison.run
import d2unlearn.serving.run
import d2unlearn.training.unlearn  # noqa: F401 - what a command imports is imported before it is forked
from d2unlearn.attacks.sampling import RepeatedSampling
from d2unlearn.audit import run as audit_run  # noqa: F401
from d2unlearn.audit import speed
from d2unlearn.audit.plans import layers, sampling
from d2unlearn.benchmark import results
from d2unlearn.comparison import evaluating as comparison_evaluating
from d2unlearn.evaluation import runner as evaluation_runner  # noqa: F401
from d2unlearn.gate import run as gate_run  # noqa: F401
from d2unlearn.metrics import separation
from d2unlearn.runtime import read_json, write_json
from d2unlearn.schema import GATE_FILE, MANIFEST_FILE
from killed_processes import KILLED, command, run_in_child, served
from measuring import measured_on, random_llama, word_tokenizer

OUTPUT = Path(__file__).parent / "results" / "kills.json"
KILLS = {"unlearn": 60, "calibrate": 40, "evaluate": 46, "audit": 14, "serve": 36, "compare": 4}
VOCABULARY = 400
SHAPE = {"vocabulary": VOCABULARY, "width": 32, "intermediate": 48, "layers": 2, "heads": 4}
DATED = {"made", "seconds", "cost", "train_runtime"}
"""What may differ from run to run in a record: when, how long and how costly."""
PAGES = ("table.json", "table.md", "index.html")
"""Made of the records, and they show what a run cost: looked for, not compared."""


@dataclass(frozen=True)
class Target:
    """A command that is killed. `arguments`: of a run in a folder; `prepare`: what the folder has before it.

    `made`: the places in the folder that the run makes or changes.
    """

    arguments: Callable[[Path, Path], Sequence[object]]
    prepare: Callable[[Path, Path], None]
    made: tuple[str, ...]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", action="append", metavar="COMMAND=N", help=f"default: {KILLS}")
    parser.add_argument("--work", type=Path, default=Path("runs/kills"))
    parser.add_argument("--output", type=Path, default=OUTPUT)
    options = parser.parse_args()
    wanted = {name: int(count) for name, count in (each.split("=") for each in options.kills)} if options.kills else KILLS
    torch.set_num_threads(1)
    os.environ.update(HF_HUB_OFFLINE="1")
    attack_little()
    inputs = given(options.work.absolute())
    found: dict[str, list[dict[str, Any]]] = {}
    for name, count in wanted.items():
        found[name] = killed(name, count, inputs, options.work.absolute())
        write_json(options.output, {"settings": settings(), "commands": {name: told(of) for name, of in found.items()}})
    for name, records in found.items():
        print(f"{name}: {len(records)} kills, {sum(not each['wrong'] for each in records)} came back as if there were none")
    sys.exit(any(each["wrong"] for records in found.values() for each in records))


def attack_little() -> None:
    """Budgets of an attack or two, in this process and those forked from it: what is killed is the keeping, not the attack."""
    layers.BUDGETS = {"quick": layers.LayersBudget(4, 4, 2)}
    sampling.BUDGETS = {"quick": sampling.SamplingBudget(2, RepeatedSampling(2, (1, 2), beams=2, max_new_tokens=4))}
    speed._PROBED = 2
    comparison_evaluating.RELEARNED_ROWS = ("one row",)
    comparison_evaluating.TWO_DECADES = (1.0,)
    separation.SEPARATION_DRAWS = results.SUITE_DRAWS = 20


def settings() -> dict[str, Any]:
    shape = f"vocabulary {VOCABULARY}, hidden size {SHAPE['width']}, {SHAPE['layers']} layers"
    return {**measured_on(), "model": f"random Llama, {shape}", "signal": "SIGKILL"}


def told(records: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """A command's kills, counted, and each of them."""
    return {
        "kills": len(records),
        "wrong": sum(bool(each["wrong"]) for each in records),
        "seconds_alone": records[0]["alone"] if records else None,
        "file_changes": records[0]["changes"] if records else None,
        "already_over": sum(each["code"] != KILLED for each in records),
        "each": [{key: each[key] for key in ("by", "at", "left", "wrong")} for each in records],
    }


# -- what is given ------------------------------------------------------------------------------------------------------


def given(work: Path) -> Path:
    """A folder with a model, another that never saw the rows, and rows. Made once."""
    folder = work / "inputs"
    work.mkdir(parents=True, exist_ok=True)
    if not (folder / "done").is_file():
        shutil.rmtree(folder, ignore_errors=True)
        code, said = run_in_child(lambda: make_inputs(folder), work / "inputs.log")
        if code:
            sys.exit(f"the inputs could not be made: {said}")
        (folder / "done").touch()
    return folder


def make_inputs(folder: Path) -> None:
    torch.set_num_threads(1)
    ends = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "max_position_embeddings": 256}
    for name, scale in (("model", 0.3), ("oracle", 0.25)):
        random_llama(**SHAPE, initializer_range=scale, **ends).save_pretrained(folder / name)
        word_tokenizer(VOCABULARY).save_pretrained(folder / name)
    rng = np.random.default_rng(0)
    for name, count in (("forget", 12), ("retain", 96), ("test", 12)):
        rows = [
            {"question": f"{drawn(rng, 5)} w{5 + n}", "answer": drawn(rng, 4), "group": f"{name} {n // 4}"}
            for n in range(count)
        ]
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def drawn(rng: np.random.Generator, count: int) -> str:
    return " ".join(f"w{i}" for i in rng.integers(4, VOCABULARY, count))


def nothing(inputs: Path, folder: Path) -> None:
    """A command that begins with an empty folder."""


def with_model(inputs: Path, folder: Path) -> None:
    shutil.copytree(inputs / "model", folder / "model")


def with_artifact(inputs: Path, folder: Path) -> None:
    """A model that has a gate."""
    shutil.copytree(inputs.parent / "calibrate" / "alone" / "model", folder / "model")


def rows(inputs: Path, retain: str = "retain") -> tuple[object, ...]:
    return ("--forget", inputs / "forget.jsonl", "--retain", inputs / f"{retain}.jsonl")


def unlearning(inputs: Path, folder: Path) -> Sequence[object]:
    steps = ("--epochs", 3, "--batch-size", 4, "--accumulation", 1, "--learning-rate", 1e-3)
    return ("unlearn", "--model", inputs / "model", *rows(inputs), *steps, "--output", folder / "artifact")


def calibrating(inputs: Path, folder: Path) -> Sequence[object]:
    promise = ("--max-false-refusal", 0.05, "--max-new-tokens", 4, "--unseen", "--refusal", "w5 w6", "--wordings", 1)
    return ("calibrate", "--model", folder / "model", *rows(inputs), *promise)


def evaluating(inputs: Path, folder: Path) -> Sequence[object]:
    return ("evaluate", "--model", folder / "model", *rows(inputs, "test"), "--output", folder / "out", "--max-new-tokens", 4)


def auditing(inputs: Path, folder: Path) -> Sequence[object]:
    models = ("--model", folder / "model", "--original", inputs / "model", "--oracle", inputs / "oracle")
    attacks = [part for name in ("layers", "membership", "sampling") for part in ("--attack", name)]
    return ("audit", *models, *rows(inputs, "test"), *attacks, "--output", folder / "out")


def serving(inputs: Path, folder: Path) -> Sequence[object]:
    return ("serve", "--model", folder / "model", "--port", 0)


def comparing(inputs: Path, folder: Path) -> Sequence[object]:
    split = f"rows={{forget: {inputs / 'forget.jsonl'}, retain: {inputs / 'retain.jsonl'}, oracle: {inputs / 'oracle'}}}"
    size = ("--epochs", 1, "--batch-size", 4, "--accumulation", 1, "--learning-rate", 1e-3, "--test-rows", 12)
    short = ("--trials", 1, "--seed", 0, "--max-new-tokens", 4, "--wording-rows", 2, "--max-false-refusal", 0.1)
    where = ("--backend", "here", "--output", folder / "out")
    return ("compare", "--model", inputs / "model", "--split", split, "--method", "eua", *size, *short, *where)


TARGETS = {
    "unlearn": Target(unlearning, nothing, ("artifact",)),
    "calibrate": Target(calibrating, with_model, ("model",)),
    "evaluate": Target(evaluating, with_artifact, ("out",)),
    "audit": Target(auditing, with_artifact, ("out",)),
    "serve": Target(serving, with_artifact, ("model",)),
    "compare": Target(comparing, nothing, ("out",)),
}


# -- a command, alone and killed ----------------------------------------------------------------------------------------


def killed(name: str, count: int, inputs: Path, work: Path) -> list[dict[str, Any]]:
    """The records of all kills of a command; those that the work folder knows are not made again."""
    if name in ("evaluate", "audit", "serve"):
        alone("calibrate", inputs, work)
    expected, kept = alone(name, inputs, work), work / name / "kills.jsonl"
    records = [json.loads(line) for line in kept.read_text().splitlines()] if kept.is_file() else []
    for number in range(len(records), count):
        record = one_kill(name, number, count, expected, inputs, work)
        record |= {"alone": round(expected["seconds"], 2), "changes": expected["changes"]}
        records.append(record)
        with kept.open("a") as file:
            file.write(json.dumps(record) + "\n")
        print(
            f"{name} {number + 1}/{count}: {record['by']} {record['at']}, {record['left']}; {record['wrong'] or 'well'}",
            file=sys.stderr,
        )
    return records[:count]


def emptied(name: str, inputs: Path, work: Path) -> Path:
    """The folder in which every run of a command is made, with what it has before it; and with a cache of its own."""
    folder, cache = work / name / "run", work / name / "cache"
    for each in (folder, *(() if name == "audit" else (cache,))):
        shutil.rmtree(each, ignore_errors=True)
    folder.mkdir(parents=True)
    os.environ["D2UNLEARN_CACHE"] = str(cache)
    TARGETS[name].prepare(inputs, folder)
    return folder


def alone(name: str, inputs: Path, work: Path) -> dict[str, Any]:
    """What an undisturbed run makes, in how many seconds and with how many changes of files. It is kept in `alone`."""
    note, log, target = work / name / "alone.json", work / name / "alone.log", TARGETS[name]
    if note.is_file():
        return read_json(note)
    shutil.rmtree(work / name, ignore_errors=True)
    folder = emptied(name, inputs, work)
    began = time.monotonic()
    work_of = command(target.arguments(inputs, folder), None, work / name / "changes")
    if name == "serve":
        answers, seconds = served(work_of, log, None)
        found = {"seconds": seconds, "changes": 0, "answers": answers}
    else:
        code, said = run_in_child(work_of, log)
        if code:
            sys.exit(f"{name} fails when nothing disturbs it: {said}")
        found = {"seconds": time.monotonic() - began, "changes": int((work / name / "changes").read_text())}
    found |= {"made": contents(folder, target.made), "names": sorted(path.name for path in folder.iterdir())}
    folder.rename(work / name / "alone")
    write_json(note, found)
    return found


def one_kill(name: str, number: int, count: int, expected: dict[str, Any], inputs: Path, work: Path) -> dict[str, Any]:
    """Kill a run at a moment that its number and the seed say, look at what is there, run it again, look again."""
    target, folder, log = TARGETS[name], emptied(name, inputs, work), work / name / "killed.log"
    share = (number // 2 + np.random.default_rng([number, len(name)]).random()) / -(-count // 2)
    by_clock = name == "serve" or number % 2 == 0
    at = 1.05 * share * expected["seconds"] if by_clock else 1 + int(share * expected["changes"])
    work_of = command(target.arguments(inputs, folder), None if by_clock else int(at))
    before = contents(folder, target.made)
    if name == "serve":
        code, left = served(work_of, log, at)[0], "a server"
        wrong = [] if contents(folder, target.made) == before else ["serving changed the artifact"]
        answers, _ = served(work_of, log, None)
        wrong += [] if answers == expected["answers"] else [f"answers after the kill: {answers}"]
    else:
        code, _ = run_in_child(work_of, log, at if by_clock else None)
        left, wrong = half_made(folder, target, before, expected)
        again, said = run_in_child(command(target.arguments(inputs, folder), None), log)
        wrong += [f"run again it ended with {again}: {said[-300:]}"] if again else []
    found = contents(folder, target.made)
    if found != expected["made"]:
        wrong += differing(found, expected["made"])
        shutil.copytree(folder, work / name / f"wrong-{number}", dirs_exist_ok=True)
    names = sorted(path.name for path in folder.iterdir())
    wrong += [] if names == expected["names"] else [f"there is {', '.join(names)}"]
    return {"by": "clock" if by_clock else "file", "at": round(at, 3), "code": code, "left": left, "wrong": wrong}


def half_made(folder: Path, target: Target, before: dict[str, str], expected: dict[str, Any]) -> tuple[str, list[str]]:
    """What a kill left, and what of it is neither as before nor whole. A file that only part of a run makes is a whole file."""
    now, wrong = contents(folder, target.made), []
    for path, value in now.items():
        hidden = any(part.startswith(".") or part.endswith(".partial") for part in Path(path).parts)
        in_work = any(part in ("work", "locks", "logs") for part in Path(path).parts)
        if not hidden and not in_work and value not in (before.get(path), expected["made"].get(path)):
            wrong.append(f"half: {path}")
    manifest = folder / target.made[0] / MANIFEST_FILE
    left = "nothing" if now == before else "all" if now == expected["made"] else "a part"
    if target.made == ("artifact",) and (folder / "artifact").exists() and not manifest.is_file():
        wrong.append("an artifact without a manifest")
    gated = folder / "model" / GATE_FILE
    if gated.is_file():
        with suppress(ValueError):
            json.loads(gated.read_text())
            return left, wrong
        wrong.append("half a gate")
    return left, wrong


def differing(found: dict[str, str], expected: dict[str, str]) -> list[str]:
    return [f"differs: {path}" for path in sorted({*found, *expected}) if found.get(path) != expected.get(path)][:5]


def contents(folder: Path, made: Sequence[str]) -> dict[str, str]:
    """{path in the folder: a digest of the file, without what tells of time}."""
    files = [path for name in made for path in sorted((folder / name).rglob("*")) if path.is_file()]
    return {str(path.relative_to(folder)): digest(path) for path in files}


def digest(path: Path) -> str:
    if path.name in PAGES:
        return "there"
    content = path.read_bytes()
    if path.suffix == ".json":
        with suppress(ValueError):
            content = json.dumps(undated(json.loads(content)), sort_keys=True).encode()
    if path.suffix in (".json", ".html", ".md", ".yaml", ".csv"):
        content = re.sub(rb"\d{4}-\d\d-\d\d([T ]\d\d:\d\d(:\d\d)?([+-]\d\d:\d\d)?( UTC)?)?", b"DATE", content)
    return hashlib.sha256(content).hexdigest()


def undated(value: Any) -> Any:
    """Without the fields that say when and how long."""
    if isinstance(value, dict):
        return {key: undated(each) for key, each in value.items() if key not in DATED}
    return [undated(each) for each in value] if isinstance(value, list) else value


if __name__ == "__main__":
    main()
