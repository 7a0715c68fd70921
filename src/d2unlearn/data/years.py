"""Years: when something happened, four choices each. `T` and `V` are disjoint parts of one distribution.

They are for the attack of Deeb and Roger 2024 (2410.08827): relearn T, ask V, of which nothing was told again. From a folder
with `T.jsonl` and `V.jsonl`: question, choices (texts), answer (the right one's place, from 0). What is read says which part
it is of, as a forget file's column `half` does.
"""

from __future__ import annotations

from pathlib import Path

from d2unlearn.data.records import split_file
from d2unlearn.data.wmdp import read_questions
from d2unlearn.errors import DataError
from d2unlearn.schema import Example, Message

HALF_COLUMN, RELEARNED_HALF, ASKED_HALF = "half", "T", "V"
"""The entry of `extra`, or the column of a file, that says which of two halves without a fact in common a row is of."""
WRONG_CHOICES = "wrong_choices"
"""The entry of `extra` that holds the other choices."""


def read_years(part: str, folder: str | Path | None) -> list[Example]:
    """The questions of T or V, the right choice as the answer. Raises `DataError` where there is no such folder or file."""
    if folder is None or not Path(folder).is_dir():
        lacking = "it is on no open hub" if folder is None else f"{folder} is not there"
        raise DataError(f"years needs --data, a folder with T.jsonl and V.jsonl ({lacking}; docs/evaluation.md)")
    examples = []
    for where, row in read_questions(split_file(Path(folder), part)):
        choices = list(row["choices"])
        right = choices.pop(row["answer"])
        extra = {WRONG_CHOICES: choices, HALF_COLUMN: part}
        examples.append(Example(where, (Message("user", row["question"]),), right, where, extra=extra))
    return examples
