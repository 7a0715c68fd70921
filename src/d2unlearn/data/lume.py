"""LUME (Ramakrishna et al. 2025, SemEval-2025 Task 4): documents of three tasks to forget and to keep, asked in two ways.

From a folder with `forget.jsonl` and `retain.jsonl`, as the authors publish them (GitHub: amazon-science/lume-llm-unlearning,
folder data; Apache-2.0). Columns: id, input, output, task (`Task1`: invented stories, `Task2`: invented biographies with
personal data, `Task3`: real encyclopaedia articles). An id is the document's with `sc` (the passage to be continued) or `qa`
(a question) and a digit after it; rows of other ids are in no set, as in the task's own scorer. `member.jsonl` and
`nonmember.jsonl` (id, document) hold texts for the membership attack, which the task gave to its participants alone.
"""

from __future__ import annotations

import re
from pathlib import Path

from d2unlearn.data.muse import PREFIX
from d2unlearn.data.records import file_of, read_columns, split_file
from d2unlearn.errors import DataError
from d2unlearn.schema import Example

TASKS = ("Task1", "Task2", "Task3")
CONTINUED, ASKED = "sc", "qa"
_ID = re.compile(r"(?P<document>.*)(?P<asked>sc|qa).", re.DOTALL)


def read_lume(split: str, folder: str | Path | None) -> list[Example]:
    """One split: `forget/Task1/sc` and its like, or `member` or `nonmember`; empty where the folder has no such rows.

    What is asked stands in `extra[PREFIX]` and there is no prompt: the task's scorer puts no chat around it. Rows of one
    document are a group. Raises `DataError` where there is no folder, or no `forget.jsonl` or `retain.jsonl` in it.
    """
    if folder is None or not Path(folder).is_dir():
        lacking = "it is on no open hub" if folder is None else f"{folder} is not there"
        raise DataError(f"LUME needs --data, a folder with forget.jsonl and retain.jsonl ({lacking}; docs/evaluation.md)")
    name, *wanted = split.split("/")
    if not wanted:
        return _documents(Path(folder), name)
    examples = []
    for where, row in read_columns(split_file(Path(folder), name), ("id", "input", "output", "task")):
        match = _ID.fullmatch(row["id"])
        if match and [row["task"], match["asked"]] == wanted:
            examples.append(Example(where, (), row["output"], where, match["document"], {PREFIX: row["input"]}))
    return examples


def _documents(folder: Path, name: str) -> list[Example]:
    path = file_of(folder, name)
    rows = [] if path is None else read_columns(path, ("document",))
    return [Example(where, (), row["document"], where) for where, row in rows]
