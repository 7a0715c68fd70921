"""What a data set looks like to the program: counts, one rendered row, duplicates, what both forget and retain ask."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from d2unlearn.data.identity import folded, folded_key
from d2unlearn.data.template import Template
from d2unlearn.schema import Example, Tokens


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


def marked(tokens: Tokens, template: Template) -> str:
    """The rendered row as text, its answer between ⟦ and ⟧: what the loss sees."""
    decode = template.tokenizer.decode
    split = tokens.answer_mask.index(True) if True in tokens.answer_mask else len(tokens.input_ids)
    return f"{decode(list(tokens.input_ids[:split]))}⟦{decode(list(tokens.input_ids[split:]))}⟧"


def _key(example: Example) -> str:
    return folded(example.question or example.answer)
