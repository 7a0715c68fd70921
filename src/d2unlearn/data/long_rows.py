"""Rows that are longer than what is read at once: split into overlapping windows, cut, or refused; what is lost is counted."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from d2unlearn.data.template import Template
from d2unlearn.errors import DataError
from d2unlearn.schema import Example, Kind, Tokens

OVERLAP = 1 / 8
"""Share of a window that the next one begins with."""
_NAMED = 3


@dataclass(frozen=True)
class LongRows:
    """What became of the rows of a set. rows: in the file, `answer_tokens` together; longer: than `limit` tokens.

    `split` of these gave `windows` windows; `cut` were cut, which lost `lost_tokens` of the answer tokens.
    """

    rows: int
    answer_tokens: int
    limit: int
    longer: int = 0
    split: int = 0
    windows: int = 0
    cut: int = 0
    lost_tokens: int = 0


def fitted(
    rows: Sequence[Example], template: Template, limit: int, kind: Kind, way: str | None = None
) -> tuple[list[Example], LongRows]:
    """The rows as they are to be read, those that fit unchanged, and what became of the others.

    way: split, cut or refuse. None: plain text is split; of rows with a prompt those to forget are refused, for what is cut off
    is not forgotten, and the others left to be cut. A document's windows are of one group: the row's own, or the document.
    Raises `DataError` for rows that are refused, rows with a prompt that are to be split, and prompts that leave no room.
    """
    rendered = [template.tokens(row) for row in rows]
    ways = [_way(row, kind, way) for row in rows]
    longer = [index for index, tokens in enumerate(rendered) if len(tokens.input_ids) > limit]
    _check([(rows[i], rendered[i], ways[i]) for i in longer], len(rows), limit)
    made = {i: _windows_of(rows[i], template, limit) for i in longer if ways[i] == "split"}
    lost = [sum(rendered[i].answer_mask[limit:]) for i in longer if ways[i] == "cut"]
    return [each for i, row in enumerate(rows) for each in made.get(i, [row])], LongRows(
        rows=len(rows),
        answer_tokens=sum(tokens.answer_length for tokens in rendered),
        limit=limit,
        longer=len(longer),
        split=len(made),
        windows=sum(map(len, made.values())),
        cut=len(lost),
        lost_tokens=sum(lost),
    )


def fit_sets(
    sets: Mapping[str, tuple[Sequence[Example], Kind]], template: Template, limit: int, way: str | None
) -> tuple[dict[str, list[Example]], dict[str, LongRows]]:
    """`fitted` of several sets, by their names; what became of long rows only for those that had some."""
    each = {name: fitted(rows, template, limit, kind, way) for name, (rows, kind) in sets.items()}
    return {name: rows for name, (rows, _) in each.items()}, {name: found for name, (_, found) in each.items() if found.longer}


def long_rows_told(found: LongRows, name: str, done: str) -> Iterator[str]:
    """Lines for a person about the set `name`; none where nothing was too long. done: to what an answer token serves."""
    if found.split:
        yield (
            f"{found.split} of {found.rows} {name} rows are longer than {found.limit} tokens: split into {found.windows} "
            f"overlapping windows, those of one row in one group (--long)"
        )
    if found.cut:
        yield (
            f"{found.cut} of {found.rows} {name} rows are longer than {found.limit} tokens and cut there: "
            f"{found.lost_tokens} of {found.answer_tokens} answer tokens are not {done} (--max-length, --long)"
        )


def windows(text: str, fits: Callable[[str], bool]) -> list[str]:
    """Parts of a text that fit, in order, as long as they can be; each begins with the end of the one before it (`OVERLAP`).

    They end between words; a word that does not fit alone is divided. Every single character has to fit.
    """
    words = re.findall(r"\s*\S+(?:\s+\Z)?", text)
    found: list[str] = []
    start, done, size = 0, 0, 1
    while done < len(words):
        end = _furthest(words, start, size, fits)
        if end == start:
            half = max(1, len(words[start]) // 2)
            words[start : start + 1] = [words[start][:half], words[start][half:]]
        elif end <= done:
            start = done
        else:
            found.append("".join(words[start:end]))
            done, size = end, end - start
            start = max(start + 1, end - max(1, round(OVERLAP * size)))
    return found


def _furthest(words: Sequence[str], start: int, guess: int, fits: Callable[[str], bool]) -> int:
    """The last end up to which the words from `start` on fit together; `start` where not even one does."""
    low, high = start, start + guess
    while high < len(words) and fits("".join(words[start:high])):
        low, high = high, start + 2 * (high - start)
    high = min(high, len(words))
    if fits("".join(words[start:high])):
        return high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits("".join(words[start:middle])) else (low, middle)
    return low


def _windows_of(row: Example, template: Template, limit: int) -> list[Example]:
    parts = windows(row.answer, lambda text: len(template.tokens(replace(row, answer=text)).input_ids) <= limit)
    group = row.example_id if row.group is None else row.group
    return [
        replace(
            row,
            answer=part,
            example_id=f"{row.example_id}#{number}",
            source=f"{row.source} (part {number} of {len(parts)})",
            group=group,
        )
        for number, part in enumerate(parts, start=1)
    ]


def _way(row: Example, kind: Kind, way: str | None) -> str:
    return way or ("split" if not row.prompt else "refuse" if kind == "forget" else "cut")


def _check(longer: Sequence[tuple[Example, Tokens, str]], total: int, limit: int) -> None:
    full = next((row for row, tokens, _ in longer if not any(tokens.answer_mask[:limit])), None)
    if full is not None:
        raise DataError(f"{full.source}: the prompt alone is longer than {limit} tokens (--max-length, or the model's context)")
    for way, why in (
        ("refuse", "what is cut off is not forgotten; give a larger --max-length, shorter rows, or --long cut"),
        ("split", "a row with a prompt cannot be split; give a larger --max-length, shorter rows, or --long cut"),
    ):
        rows = [(row, tokens) for row, tokens, its_way in longer if its_way == way and (way == "refuse" or row.prompt)]
        if rows:
            named = ", ".join(f"{row.source} has {len(tokens.input_ids)}" for row, tokens in rows[:_NAMED])
            more = ", ..." if len(rows) > _NAMED else ""
            raise DataError(f"{len(rows)} of {total} rows are longer than {limit} tokens ({named}{more}), and {why}")
