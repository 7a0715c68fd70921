"""What a model still can beside what it unlearned: English text, questions with choices, open questions, harmless requests."""

from __future__ import annotations

import csv
import json
from collections.abc import Sequence
from pathlib import Path
from random import Random
from typing import Any

import numpy as np

from d2unlearn.benchmark.choices import right_choice
from d2unlearn.benchmark.loglikelihood import AnswerScores
from d2unlearn.gate.probe_texts import probe_texts
from d2unlearn.generation.guarded import GuardedModel
from d2unlearn.schema import Example, Message
from d2unlearn.stats import bootstrap_interval
from d2unlearn.teacher_forcing import score_rows

ASKED = 300
ANSWER_TOKENS = 24


def general_ability(guarded: GuardedModel, data: Path, *, batch_size: int = 32, seed: int = 0) -> dict[str, list[float]]:
    """{name: [value, low, high, n]}: perplexity of public-domain text, a token's, and shares. data: trivia, nq_open and xstest.

    trivia: of questions whose right choice is the likeliest; nq_open: of questions whose raw answer holds one of the answers;
    xstest_refused: of XSTest's 250 safe prompts, by the gate, where there is one. The same seed asks every model the same.
    """
    measured = {
        "perplexity": perplexity(guarded, batch_size),
        "trivia": rightly_chosen(guarded, data / "trivia", batch_size, seed),
        "nq_open": rightly_answered(guarded, data / "nq_open", batch_size, seed),
    }
    if guarded.gate is not None:
        safe = [row["prompt"] for row in _csv_rows(data / "xstest" / "xstest_prompts.csv") if row["label"] == "safe"]
        measured["xstest_refused"] = refused_share(guarded, safe, batch_size)
    return measured


def perplexity(guarded: GuardedModel, batch_size: int) -> list[float]:
    """exp of the mean NLL a token of sentences in the public domain (those of the gate's probes); n counts sentences."""
    rows = [Example(f"sentence {n}", (), text, "public domain") for n, text in enumerate(probe_texts())]
    scores = score_rows(guarded.model, [guarded.template.tokens(row) for row in rows], batch_size=batch_size)
    interval = bootstrap_interval([float(np.mean(row.nll)) for row in scores])
    return [*np.exp(interval[:3]).tolist(), interval.n]


def rightly_chosen(guarded: GuardedModel, folder: Path, batch_size: int, seed: int) -> list[float]:
    files = sorted(folder.glob("*.jsonl"))
    rows = [row for file in files for row in _jsonl_rows(file) if row["answer"] in row["choices"] and len(row["choices"]) == 4]
    chosen = Random(seed).sample(rows, ASKED)
    choices = [[row["answer"], *(other for other in row["choices"] if other != row["answer"])] for row in chosen]
    asked = [
        guarded.template.tokens(Example(f"{n}-{place}", (Message("user", row["question"]),), choice, "trivia"))
        for n, (row, of_row) in enumerate(zip(chosen, choices, strict=True))
        for place, choice in enumerate(of_row)
    ]
    scored = iter(score_rows(guarded.model, asked, batch_size=batch_size, name="trivia"))
    right = []
    for of_row in choices:
        first, *others = [
            AnswerScores(len(score.nll), score.mean_nll, score.prompt_energy, score.answer_energy)
            for score in (next(scored) for _ in of_row)
        ]
        right.append(right_choice(first, others))
    return list(bootstrap_interval(right))


def rightly_answered(guarded: GuardedModel, folder: Path, batch_size: int, seed: int) -> list[float]:
    rows = Random(seed).sample(_jsonl_rows(folder / "NQ-open.dev.jsonl"), ASKED)
    prompts = [(Message("user", f"{row['question']}?"),) for row in rows]
    answers = guarded.answer(prompts, max_new_tokens=ANSWER_TOKENS, batch_size=batch_size, raw=True)
    right = [
        float(any(each.casefold() in answer.text.casefold() for each in row["answer"]))
        for row, answer in zip(rows, answers, strict=True)
    ]
    return list(bootstrap_interval(right))


def refused_share(guarded: GuardedModel, prompts: Sequence[str], batch_size: int) -> list[float]:
    asked = [(Message("user", text),) for text in prompts]
    answers = guarded.answer(asked, max_new_tokens=ANSWER_TOKENS, batch_size=batch_size)
    return list(bootstrap_interval([float(answer.refused) for answer in answers]))


def _jsonl_rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def _csv_rows(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))
