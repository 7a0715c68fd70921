"""`d2unlearn data make`: a model and the name of a topic in, the files that every other command needs out."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path

from d2unlearn.artifact import is_done, new_result
from d2unlearn.config import MakeSettings
from d2unlearn.data.records import read_prompts
from d2unlearn.errors import DataError
from d2unlearn.generation.guarded import GuardedModel
from d2unlearn.outputs import output_place
from d2unlearn.runtime import cache_dir, fingerprint, say, torch_dtype
from d2unlearn.topic.asking import AskedModel, place_of
from d2unlearn.topic.facts import AskedFact
from d2unlearn.topic.making import LEAST_RETAINED, TopicFiles, make_topic
from d2unlearn.topic.table import topic_table
from d2unlearn.version import __version__

UNKNOWN_FILE = "unknown.jsonl"
_LIST_TOKENS = 96
_MAKING_VERSION = 1
"""Raised whenever other rows are made of the same answers."""


def run_make(settings: MakeSettings) -> Iterator[str]:
    """Make the files of a topic in `settings.output`, and yield lines for a person; at once when they are there already.

    Raises `DataError` for a topic that the model does not know.
    """
    output = output_place(settings.output)
    if not settings.topic.strip():
        raise DataError("--topic is empty: name what the model should forget, e.g. --topic France")
    seeds = _read_seeds(settings.seeds)
    guarded = GuardedModel.from_pretrained(settings.model, dtype=torch_dtype(settings.dtype), raw=True)
    weights = guarded.fingerprint
    key = fingerprint([__version__, _MAKING_VERSION, weights, seeds, settings.topic, settings.max_new_tokens, settings.seed])
    if not is_done(output, key, settings):
        made = _made(settings, guarded, weights, seeds)
        with new_result(output, "data make", key, settings) as staged:
            _write(staged, made)
        yield from _told(settings.topic, made)
    yield f"{output}"


def _made(settings: MakeSettings, guarded: GuardedModel, weights: str, seeds: Sequence[str]) -> TopicFiles:
    table, asked = topic_table(), cache_dir() / "answers"
    place = place_of(settings.topic, guarded, table)
    say(f"{settings.topic} is taken for a {place.kind}, like {', '.join(place.neighbours[:3])}; all are asked about")
    short, long = (
        AskedModel(
            guarded,
            asked / f"{fingerprint([weights, guarded.template.fingerprint, tokens])[:16]}.jsonl",
            max_new_tokens=tokens,
            batch_size=settings.batch_size,
        )
        for tokens in (settings.max_new_tokens, _LIST_TOKENS)
    )
    return make_topic(settings.topic, place, short, long, table, seeds=seeds, seed=settings.seed)


def _read_seeds(file: str | None) -> list[str]:
    """Questions from a text file, one a line, or from the rows of a JSONL file; their answers are not read."""
    if file is None:
        return []
    path = Path(file)
    if not path.is_file():
        raise DataError(
            f"{path} does not exist; --seeds takes a .txt file with a question a line, or JSONL rows with a question"
        )
    if path.suffix == ".jsonl":
        return [question for _, _, question in read_prompts(path)]
    try:
        return [line.strip() for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    except UnicodeDecodeError:
        raise DataError(f"{path} is no text file: --seeds takes a question a line, or JSONL rows with a question") from None


def _write(folder: Path, made: TopicFiles) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, rows in made.rows.items():
        _write_rows(folder / f"{name}.jsonl", [row._asdict() for row in rows])
    _write_rows(folder / UNKNOWN_FILE, [_unknown(fact) for fact in made.unknown])


def _unknown(fact: AskedFact) -> dict[str, object]:
    return {"fact": fact.name, "why": "not known, nothing to unlearn", "asked": [one._asdict() for one in fact.asked]}


def _write_rows(path: Path, rows: Sequence[dict[str, object]]) -> None:
    """A file of the rows; none where there are none."""
    if not rows:
        return
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")


def _told(topic: str, made: TopicFiles) -> Iterator[str]:
    yield (
        f"{topic}: {len(made.known)} things known (the same answer in at least three wordings), {len(made.unknown)} not known, "
        f"nothing to unlearn ({UNKNOWN_FILE})"
    )
    for name, rows in made.rows.items():
        yield f"  {name}.jsonl: {len(rows)} rows"
    if len(made.rows["retain"]) < LEAST_RETAINED:
        yield f"  fewer than {LEAST_RETAINED} retained rows: add your own to retain.jsonl before `unlearn`"
