"""Rows in the wordings that calibration asks them in: the training wordings, never those that judge."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from random import Random

from d2unlearn.data.identity import row_key
from d2unlearn.data.template import Template
from d2unlearn.errors import DataError
from d2unlearn.gate.asked import PLAIN_FAMILY
from d2unlearn.gate.groups import REQUEST_GROUPS, group_of
from d2unlearn.gate.turns import turns_by_themselves, under_system
from d2unlearn.schema import Example, Message
from d2unlearn.wordings.wording import Material, NotAsked, Wording, reworded

_OF_FORGOTTEN = "{forgotten_"


@dataclass(frozen=True)
class Rendering:
    """One question in one wording. `question`: its row's number. `beginning`: of the answer, empty for none. `target`: the text
    that tells what was asked for, empty where nothing says what that is. `system`: the deployment's system message. `request`:
    the request's own group where `group` is the file's.
    """

    question: int
    family: str
    group: str
    messages: tuple[Message, ...]
    beginning: str
    target: str
    system: str | None = None
    request: str | None = None

    @property
    def turns(self) -> list[tuple[Message, ...]]:
        """What a gate looks at beside the whole."""
        return turns_by_themselves(self.messages, self.system, begun=bool(self.beginning), sentences=True)

    def prompt_ids(self, template: Template) -> list[int]:
        """Token ids up to where the model goes on. Raises `DataError` where the template does not take the roles."""
        if not self.beginning:
            return template.prompt_ids(self.messages)
        begun = template.tokens(Example("", self.messages, self.beginning.rstrip(), "an answer's beginning"))
        return list(begun.input_ids[: -1 if begun.ends else None])


def renderings(
    rows: Sequence[Example],
    wordings: Sequence[Wording] = (),
    material: Material | None = None,
    *,
    of_each: int = 1,
    refusal: str | None = None,
    first: int = 0,
    group: str | None = None,
    system: str | None = None,
    seed: int = 0,
) -> list[Rendering]:
    """Each row as it stands, then in `of_each` wordings of every group of requests, drawn by the row itself with the seed.

    refusal: what stands for an earlier answer to a forgotten question; None: the rows are legitimate, earlier answers are the
    rows' own, and wordings that ask forgotten things too are left out. first: number of the first row. group: the file's own,
    for rows from near by or of nothing related; they stay as they are.
    """
    made: list[Rendering] = []
    ours = [wording for wording in wordings if refusal is not None or _OF_FORGOTTEN not in wording.text]
    for number, row in enumerate(rows, start=first):
        own = group_of(row.prompt, system)
        made.append(Rendering(number, PLAIN_FAMILY, group or own, row.prompt, "", row.answer, request=own))
        if group is None:
            made += _otherwise(row, number, ours, material, of_each, row.answer if refusal is None else refusal, seed)
    return [replace(each, messages=under_system(each.messages, system), system=system) for each in made]


def _otherwise(
    row: Example, number: int, wordings: Sequence[Wording], material: Material | None, of_each: int, before: str, seed: int
) -> Iterator[Rendering]:
    """So many renderings in each group."""
    left = dict.fromkeys(REQUEST_GROUPS, of_each)
    order = list(wordings)
    Random(f"{seed}\n{row_key(row)}").shuffle(order)
    for wording in order:
        if not any(left.values()):
            return
        asked = reworded(wording, row, material, seed=seed)
        if isinstance(asked, NotAsked) or (len(asked.stages) > 1 and not before):
            continue
        answered = [(*stage, Message("assistant", before)) for stage in asked.stages[:-1]]
        messages = tuple(message for stage in (*answered, asked.stages[-1]) for message in stage)
        group = group_of([*messages, *([Message("assistant", asked.beginning)] if asked.beginning else [])])
        if left[group]:
            left[group] -= 1
            yield Rendering(number, wording.family, group, messages, asked.beginning, asked.target if row.answer else "")


def fitting(made: Sequence[Rendering], template: Template, longest: int | None) -> list[tuple[Rendering, list[int]]]:
    """Those that the template takes and that leave the model room to answer, with their prompts. longest: prompt; None: any.

    A row as it stands is always kept, so that a fault of it is an error and not a question less.
    """
    kept = []
    for each in made:
        try:
            ids = each.prompt_ids(template)
        except DataError:
            if each.family == PLAIN_FAMILY:
                raise
            continue
        if each.family == PLAIN_FAMILY or longest is None or len(ids) <= longest:
            kept.append((each, ids))
    return kept
