"""TOFU (Maini et al. 2024): fictitious authors, 20 questions each, with forget and retain splits.

From a folder with `<split>.jsonl` files (or `.json`, as the hub names them), or from the hub (`locuslab/TOFU`, one
configuration a split). Splits named `*_perturbed` carry a paraphrased question and answer and wrong answers beside each row.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from d2unlearn.data.records import read_examples, split_file
from d2unlearn.errors import DataError
from d2unlearn.schema import Example, Message

QUESTIONS_PER_AUTHOR = 20
HUB = "hf:locuslab/TOFU"
GENERAL_SPLITS = ("real_authors_perturbed", "world_facts_perturbed")


def read_tofu(split: str, folder: str | Path | None = None) -> list[Example]:
    """One split, e.g. `forget10`, with authors as groups. Without a folder it is loaded from the hub.

    Raises `DataError` when the split is not there.
    """
    size = None if split in GENERAL_SPLITS else QUESTIONS_PER_AUTHOR
    if folder is None:
        return read_examples(f"{HUB}:{split}", group_size=size)
    return read_examples(split_file(Path(folder), split), group_size=size)


def paraphrased(examples: list[Example]) -> list[Example]:
    """The same rows with `paraphrased_question` as the question. Raises `DataError` for a row without one."""
    changed = []
    for example in examples:
        question = example.extra.get("paraphrased_question")
        if not isinstance(question, str):
            raise DataError(f"{example.source}: has no paraphrased_question")
        changed.append(replace(example, prompt=(Message("user", question),)))
    return changed
