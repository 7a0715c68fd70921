"""Which other answer stands beside each question: a refusal, one from a file, or one that the model wrote itself."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from d2unlearn.data.records import content_hash, example_of, read_examples
from d2unlearn.errors import ConfigError, DataError
from d2unlearn.methods import Method
from d2unlearn.refusals import TAUGHT_REFUSALS, refusal_index
from d2unlearn.schema import Example, Kind, Message, Role, Tokens
from d2unlearn.training.rows import Rows, render
from d2unlearn.training.self_written import Writer

ALTERNATE_OF: dict[Kind, Role] = {"forget": "alternate", "retain": "retain_alternate"}


@dataclass(frozen=True)
class RowsOfKind:
    """The questions of one kind: rows as they were given, the same rendered, and rows with other answers if there are any."""

    rows: Sequence[Any]
    rendered: Sequence[Tokens]
    alternates: Rows | None


def refused(examples: Sequence[Example], *, seed: int, texts: Sequence[str] = TAUGHT_REFUSALS) -> list[Example]:
    """The same questions, each with one of `texts` as its answer, chosen by seed and content wherever the row stands.

    Raises `DataError` for a row without a question.
    """
    for example in examples:
        if not example.prompt:
            raise DataError(f"{example.source}: is plain text, without a question that could be refused")
    return [replace(example, answer=texts[refusal_index(seed, content_hash(example), len(texts))]) for example in examples]


def read_alternates(source: str | Path, examples: Sequence[Example], *, seed: int) -> list[Example]:
    """The examples' questions with other answers, from a file.

    A `.txt` file holds refusals, one a line, of which each question gets one. Anything else is a data set (see
    `d2unlearn.data.records`) with the same questions; of several answers to one, one is drawn. Raises `DataError` for a file
    that holds nothing, or lacks an answer to a question.
    """
    if Path(source).suffix.lower() == ".txt":
        return refused(examples, seed=seed, texts=_lines(Path(source)))
    answers: dict[tuple[Message, ...], list[str]] = {}
    for row in read_examples(source):
        answers.setdefault(row.prompt, []).append(row.answer)
    missing = [example.source for example in examples if example.prompt not in answers]
    if missing:
        raise DataError(f"{source} has no answer to {len(missing)} of the questions ({', '.join(missing[:3])}, ...)")
    return [refused([example], seed=seed, texts=answers[example.prompt])[0] for example in examples]


def alternate_rows(
    method: Method,
    asked: Mapping[Kind, RowsOfKind],
    writer: Writer | None,
    tokenizer: PreTrainedTokenizerBase | None,
    *,
    max_length: int,
    seed: int,
) -> dict[Role, list[Tokens]]:
    """The rows of the roles `alternate` and `retain_alternate`, where the method reads them: one for each row of its kind.

    Those given, else the writer's where there is one, else refusals. Raises `ConfigError` for rows given that the method does
    not read or that are not as many, and for rows of token ids where refusals are to be written.
    """
    answers: dict[Role, list[Tokens]] = {}
    for kind, role in ALTERNATE_OF.items():
        questions = asked[kind]
        if role in method.needs:
            rows = questions.alternates if questions.alternates is not None else _made(questions, writer, seed)
            answers[role] = render(rows, tokenizer, max_length)
            if len(answers[role]) != len(questions.rendered):
                counts = f"{len(answers[role])} other answers to {len(questions.rendered)} {kind} rows"
                raise ConfigError([f"{counts}: one each is needed"])
        elif questions.alternates is not None:
            raise ConfigError([f"{type(method).__name__} reads no other answers to the {kind} rows: leave them out"])
    return answers


def _made(asked: RowsOfKind, writer: Writer | None, seed: int) -> Sequence[Example | Tokens]:
    of_text = not any(isinstance(row, Tokens) for row in asked.rows)
    examples = [_example(row, number) for number, row in enumerate(asked.rows, start=1)] if of_text else None
    if writer is not None:
        return writer.rows(asked.rendered, examples)
    if examples is None:
        raise ConfigError(["refusals are written for rows of text: rows of token ids need rows with other answers beside them"])
    return refused(examples, seed=seed)


def _example(row: Example | Mapping[str, Any], number: int) -> Example:
    return row if isinstance(row, Example) else example_of(row, f"row {number}")


def _lines(path: Path) -> list[str]:
    try:
        refusals = [line.strip() for line in path.read_text(encoding="utf-8-sig").splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path} cannot be read as text: {error}") from None
    if not refusals:
        raise DataError(f"{path} holds no refusals")
    return refusals
