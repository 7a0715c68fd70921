"""What data sets look like to the program: counts, one rendered row, duplicates, overlaps, and what each command will lack."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Protocol

from d2unlearn.data.holdout import hold_out, split_validation
from d2unlearn.data.identity import folded, folded_key
from d2unlearn.data.records import file_of, read_columns, read_examples
from d2unlearn.data.template import Template
from d2unlearn.errors import DataError
from d2unlearn.schema import Example, Tokens

TOPIC_FILES = tuple(f"{name}{test}" for test in ("", "_test") for name in ("forget", "paraphrased", "near", "retain", "far"))
"""The sets that `data make` writes, by the names of their files."""
_UNKNOWN = "unknown"
_FALSE_REFUSAL = 0.01
_SHOWN = 5


class _Named(Protocol):
    """Where sets stand: the settings of `data check`."""

    @property
    def forget(self) -> str | Sequence[str] | None: ...
    @property
    def retain(self) -> str | Sequence[str] | None: ...
    @property
    def data(self) -> str | None: ...
    @property
    def also_forget(self) -> Mapping[str, str]: ...
    @property
    def also_retain(self) -> Mapping[str, str]: ...
    @property
    def group_size(self) -> int | None: ...
    @property
    def columns(self) -> Mapping[str, str]: ...


@dataclass(frozen=True)
class DataSummary:
    """What was read of one data set. `duplicates`: (first place, later place) of rows equal but for case and spacing."""

    rows: int
    groups: int
    with_prompt: int
    duplicates: tuple[tuple[str, str], ...]
    longest: int | None
    answer_tokens: int | None


def inspect(examples: Sequence[Example], template: Template | None) -> DataSummary:
    """Count rows, groups, duplicates and (with a template) tokens."""
    first: dict[str, str] = {}
    duplicates = []
    for example in examples:
        earlier = first.setdefault(folded_key(example), example.source)
        if earlier != example.source:
            duplicates.append((earlier, example.source))
    tokens = [template.tokens(example) for example in examples] if template else None
    return DataSummary(
        rows=len(examples),
        groups=len({example.group for example in examples if example.group is not None}),
        with_prompt=sum(bool(example.prompt) for example in examples),
        duplicates=tuple(duplicates),
        longest=max(len(row.input_ids) for row in tokens) if tokens else None,
        answer_tokens=sum(row.answer_length for row in tokens) if tokens else None,
    )


def shared_questions(forget: Sequence[Example], retain: Sequence[Example]) -> list[tuple[str, str]]:
    """(forget place, retain place) of rows that ask the same question, letter case and spacing aside."""
    asked = {_key(example): example.source for example in retain}
    return [(example.source, asked[_key(example)]) for example in forget if _key(example) in asked]


def read_sets_of(settings: _Named) -> dict[str, list[Example]]:
    """Every set that was named, by its name: one given by itself takes the place of the folder's file of that name.

    Raises `DataError` where none was named, or the folder holds none of the files that `data make` writes.
    """
    there = {} if settings.data is None else {name: file_of(settings.data, name) for name in TOPIC_FILES}
    sources: dict[str, str | Path | Sequence[str]] = {name: path for name, path in there.items() if path is not None}
    if settings.data is not None and not sources:
        raise DataError(f"{settings.data} holds none of the files that `data make` writes: {', '.join(TOPIC_FILES)} (.jsonl)")
    given = {"forget": settings.forget, "retain": settings.retain, **settings.also_forget, **settings.also_retain}
    sources |= {name: source for name, source in given.items() if source is not None}
    if not sources:
        raise DataError("there is nothing to look at: name a set with --forget, --retain or --data")
    return {
        name: read_examples(source, group_size=settings.group_size, columns=settings.columns)
        for name, source in sources.items()
    }


def overlaps(sets: Mapping[str, Sequence[Example]]) -> list[tuple[str, str, list[tuple[str, str]]]]:
    """(first set, second set, places) of every two sets that ask the same."""
    found = [(one, other, shared_questions(sets[one], sets[other])) for one, other in combinations(sets, 2)]
    return [(one, other, shared) for one, other, shared in found if shared]


def not_known(folder: str | None) -> Iterator[str]:
    """A line about what `data make` asked and the model did not know; none where nothing says so."""
    path = None if folder is None else file_of(folder, _UNKNOWN)
    if path is not None and path.stat().st_size:
        facts = [str(columns["fact"]) for _, columns in read_columns(path, ("fact",))]
        more = f", and {len(facts) - _SHOWN} more" if len(facts) > _SHOWN else ""
        yield f"not known, nothing to unlearn: {', '.join(facts[:_SHOWN])}{more} ({path})"


def described_sets(
    sets: Mapping[str, Sequence[Example]],
    facts: Mapping[str, DataSummary],
    template: Template | None,
    *,
    max_length: int,
    context: int | None,
    folder: str | None,
) -> Iterator[str]:
    """Lines for a person about each set (facts: what `inspect` says of it), the sets together, and later commands.

    context: tokens that the model takes; folder: what `data make` wrote, if the sets come from there.
    """
    for name, examples in sets.items():
        found = facts[name]
        tokens = "" if found.longest is None else f", longest {found.longest} tokens, {found.answer_tokens} answer tokens"
        yield f"{name}: {found.rows} rows, {found.with_prompt} with a prompt, {found.groups} groups{tokens}"
        if template is not None:
            yield f"  {examples[0].source}: {marked(template.tokens(examples[0]), template)}"
            yield from (f"  {line}" for line in too_long(name, examples, template, max_length, context))
        yield from _listed("duplicate", found.duplicates) if found.duplicates else ["  no row twice"]
    shared = overlaps(sets)
    for first, second, rows in shared:
        yield from _listed(f"{first} and {second} ask the same", rows)
    if len(sets) > 1 and not shared:
        yield f"  {', '.join(list(sets)[:-1])} and {list(sets)[-1]} ask nothing in common"
    yield from not_known(folder)
    yield from needs(sets)


def _listed(what: str, rows: Sequence[tuple[str, str]]) -> Iterator[str]:
    yield from (f"  {what}: {first} and {second}" for first, second in rows[:_SHOWN])
    if len(rows) > _SHOWN:
        yield f"  and {len(rows) - _SHOWN} more"


def needs(sets: Mapping[str, Sequence[Example]]) -> Iterator[str]:
    """A line for each later command: what it would find in these sets, and what it would lack."""
    forget, retain = sets.get("forget", ()), sets.get("retain", ())
    lacking = [f"--{name}" for name, rows in (("forget", forget), ("retain", retain)) if not rows]
    held_out = hold_out(retain, seed=0).held_out if retain else []
    if lacking:
        yield f"unlearn: needs {' and '.join(lacking)} too"
    else:
        yield f"unlearn: {len(forget)} rows to forget, {len(retain) - len(held_out)} to retain; {len(held_out)} are set aside"
    yield f"calibrate: {_calibration(held_out)}"
    unseen = [name for name in sets if name not in ("forget", "retain", "paraphrased")]
    yield f"evaluate: {_evaluation(unseen, bool(forget))}"


def _calibration(held_out: Sequence[Example]) -> str:
    asked = [row for row in split_validation(held_out, seed=0)[1] if row.prompt]
    if not asked:
        return "needs --retain, rows with a prompt that training leaves aside"
    least = 1 / (len(asked) + 1)
    said = f"{len(asked)} prompts that were set aside set the threshold, for --max-false-refusal {least:.2g} or more"
    return said if least <= _FALSE_REFUSAL else f"{said}; the default of {_FALSE_REFUSAL} needs {round(1 / _FALSE_REFUSAL) - 1}"


def _evaluation(unseen: Sequence[str], has_forget: bool) -> str:
    if not has_forget:
        return "needs --forget, and retained rows that training never sees"
    return (
        f"never trained on: {', '.join(unseen)}"
        if unseen
        else "needs retained rows that training never sees, in a file of their own"
    )


def too_long(name: str, examples: Sequence[Example], template: Template, max_length: int, context: int | None) -> Iterator[str]:
    """Lines about rows of a set that `unlearn` would not read whole, and prompts without room for an answer."""
    limit = max_length if context is None else min(max_length, context)
    longer = [row for row in map(template.tokens, examples) if len(row.input_ids) > limit]
    if longer:
        beyond, total = sum(sum(row.answer_mask[limit:]) for row in longer), sum(row.answer_length for row in longer)
        way = "refuses those with a prompt" if name.startswith("forget") else "cuts those with a prompt"
        yield (
            f"{len(longer)} of {len(examples)} rows are longer than {limit} tokens, {beyond} of their {total} answer tokens "
            f"beyond: unlearn splits text and {way} (--max-length, --long)"
        )
    full = [row.source for row in examples if row.prompt and len(template.prompt_ids(row.prompt)) >= (context or sys.maxsize)]
    if full:
        yield f"{len(full)} prompts leave no room in the model's context of {context}: {', '.join(full[:_SHOWN])}"


def marked(tokens: Tokens, template: Template) -> str:
    """The rendered row as text, its answer between ⟦ and ⟧: what the loss sees."""
    decode = template.tokenizer.decode
    split = tokens.answer_mask.index(True) if True in tokens.answer_mask else len(tokens.input_ids)
    return f"{decode(list(tokens.input_ids[:split]))}⟦{decode(list(tokens.input_ids[split:]))}⟧"


def _key(example: Example) -> str:
    return folded(example.question or example.answer)
