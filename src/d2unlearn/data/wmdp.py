"""WMDP (Li et al. 2024): multiple-choice questions on biology, cyber security and chemistry that should not be answered.

On the hub `cais/wmdp`, one configuration a subject (`wmdp-bio`), split `test`; columns question, choices (four texts) and
answer (the right one's place, from 0). From a folder: `wmdp-bio.jsonl` (or `wmdp_bio`, `.json`, `.parquet`). The same form
serves any multiple-choice task of lm-eval, MMLU's among them, under the task's own name.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from d2unlearn.data.records import file_of, read_columns
from d2unlearn.errors import DataError


def task_file(task: str, folder: str | Path) -> Path | None:
    """The file of a task's questions in a folder, None where it has none."""
    return file_of(folder, task) or file_of(folder, task.replace("_", "-"))


def read_questions(path: Path) -> list[tuple[str, Mapping[str, Any]]]:
    """(FILE:LINE, columns) of a file's questions. Raises `DataError` for rows that are none, all of them named."""
    rows = read_columns(path, ("question",))
    wrong = [where for where, row in rows if not _has_options(row.get("choices"), row.get("answer"))]
    if wrong:
        named = ", ".join(wrong[:10])
        raise DataError(f"{named}: should have choices, a list of texts, and answer, the right one's place counted from 0")
    return rows


def _has_options(choices: object, answer: object) -> bool:
    texts = isinstance(choices, list) and len(choices) > 1 and all(isinstance(text, str) and text for text in choices)
    return texts and isinstance(answer, int) and not isinstance(answer, bool) and 0 <= answer < len(choices)  # type: ignore[arg-type]
