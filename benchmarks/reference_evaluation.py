"""The reference's TOFU evaluation, restated literally: the same plan, none of its cleverness missing and none added.

One pass over a data set for every metric that reads it (two for Min-K%++), rows in the file's order, sixteen at a time, padded
on the right; questions and answers tokenised again in every pass; the model called with labels, so that it computes a loss of
its own that nobody reads; log-probabilities of the whole vocabulary at every position; answers generated sixteen at a time, two
hundred tokens or until the last of them ends. What it computes is open-unlearning's, quirks included.

Source: open-unlearning at commit d3d7cf9 (src/evals), TOFU with exact memorization and four membership attacks switched on.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from rouge_score.rouge_scorer import RougeScorer
from scipy.stats import hmean, ks_2samp
from sklearn.metrics import roc_auc_score
from torch import Tensor
from torch.nn import functional as F
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from d2unlearn.schema import Example

IGNORE = -100
BATCH = 16
NEW_TOKENS = 200
SHARE = 0.4
EPSILON = 1e-10
Batch = dict[str, Tensor]
Found = dict[str, Any]
"""{key: {"agg_value": number, "scores": one entry an example}}"""


@dataclass(frozen=True)
class Reference:
    """A model under evaluation. `template`: (question) -> the text before the answer; the answer and the end token follow."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    template: Callable[[str], str]


def evaluate(reference: Reference, sets: Mapping[str, Sequence[Example]], retain_ratios: Sequence[float] | None) -> Found:
    """Every metric of the suite. sets: forget, retain, real_authors, world_facts, holdout."""
    found: Found = {}
    for prefix, name in (("forget", "forget"), ("retain", "retain"), ("ra", "real_authors"), ("wf", "world_facts")):
        rows = sets[name]
        found[f"{prefix}_Q_A_Prob"] = probability(reference, rows, "answer")
        if name in ("forget", "retain"):
            found[f"{prefix}_Q_A_PARA_Prob"] = probability(reference, rows, "paraphrased_answer")
        found[f"{prefix}_Q_A_PERT_Prob"] = probability(reference, rows, "perturbed_answer")
        found[f"{prefix}_Q_A_ROUGE"] = rouge(reference, rows)
    combine(found, retain_ratios)
    found["extraction_strength"] = extraction_strength(reference, sets["forget"])
    found["retain_extraction_strength"] = extraction_strength(reference, sets["retain"])
    found["exact_memorization"] = exact_memorization(reference, sets["forget"])
    for key, attack in ATTACKS.items():
        sides = [attack(reference, sets[name]) for name in ("forget", "holdout")]
        labels = [0] * len(sides[0]) + [1] * len(sides[1])
        found[key] = {"agg_value": roc_auc_score(labels, [*sides[0], *sides[1]]), "scores": sides}
    return found


def combine(found: Found, retain_ratios: Sequence[float] | None) -> None:
    """Truth ratios, normalised probabilities, forget quality and model utility, from what the passes gave."""
    ratio = {
        "forget": ("forget_truth_ratio", "forget_Q_A_PARA_Prob"),
        "retain": ("retain_Truth_Ratio", "retain_Q_A_PARA_Prob"),
        "ra": ("ra_Truth_Ratio", "ra_Q_A_Prob"),
        "wf": ("wf_Truth_Ratio", "wf_Q_A_Prob"),
    }
    for prefix, (key, right) in ratio.items():
        correct = np.array([each["avg_loss"] for each in found[right]["scores"]])
        wrong = np.array([each["avg_loss"] for each in found[f"{prefix}_Q_A_PERT_Prob"]["scores"]]).mean(axis=1)
        r = np.exp(-wrong) / (np.exp(-correct) + EPSILON)
        kept = np.minimum(r, 1 / (r + EPSILON)) if prefix == "forget" else np.maximum(0, 1 - r)
        found[key] = {"agg_value": kept.mean(), "scores": list(r)}
    for prefix in ("ra", "wf"):
        right = np.array([each["prob"] for each in found[f"{prefix}_Q_A_Prob"]["scores"]])
        wrong = np.array([each["prob"] for each in found[f"{prefix}_Q_A_PERT_Prob"]["scores"]]).sum(axis=1)
        share = right / (right + wrong + EPSILON)
        found[f"{prefix}_Q_A_Prob_normalised"] = {"agg_value": share.mean(), "scores": list(share)}
    if retain_ratios is not None:
        found["forget_quality"] = {"agg_value": ks_2samp(found["forget_truth_ratio"]["scores"], retain_ratios).pvalue}
    found["model_utility"] = {"agg_value": hmean([found[key]["agg_value"] for key in UTILITY])}


UTILITY = (
    "retain_Q_A_Prob",
    "retain_Q_A_ROUGE",
    "retain_Truth_Ratio",
    "ra_Q_A_Prob_normalised",
    "ra_Q_A_ROUGE",
    "ra_Truth_Ratio",
    "wf_Q_A_Prob_normalised",
    "wf_Q_A_ROUGE",
    "wf_Truth_Ratio",
)


# -- the passes ---------------------------------------------------------------------------------------------------------


def probability(reference: Reference, rows: Sequence[Example], column: str) -> Found:
    """One pass for a column of one answer, one pass an answer for a column of several."""
    answers = [[row.answer] if column == "answer" else as_list(row.extra[column]) for row in rows]
    scores: list[list[tuple[float, float]]] = [[] for _ in rows]
    for place in range(len(answers[0])):
        for index, pair in enumerate(losses(reference, rows, [each[place] for each in answers])):
            scores[index].append(pair)
    entries = [{"prob": [p for p, _ in each], "avg_loss": [nll for _, nll in each]} for each in scores]
    if len(answers[0]) == 1:
        entries = [{key: values[0] for key, values in each.items()} for each in entries]
    return {"agg_value": np.mean([np.mean(each["prob"]) for each in entries]), "scores": entries}


def as_list(value: Any) -> list[str]:
    return value if isinstance(value, list) else [value]


def losses(reference: Reference, rows: Sequence[Example], answers: Sequence[str]) -> list[tuple[float, float]]:
    """(probability, mean NLL) of every row."""
    found = []
    for batch in batches(reference, rows, answers):
        logits = forward(reference, batch)
        labels = batch["labels"][..., 1:].contiguous()
        each = F.cross_entropy(logits[..., :-1, :].contiguous().transpose(-1, -2), labels, reduction="none").sum(dim=-1)
        average = each / (batch["labels"] != IGNORE).sum(-1)
        found += list(zip(torch.exp(-average).tolist(), average.tolist(), strict=True))
    return found


def vocabulary(reference: Reference, rows: Sequence[Example]) -> Iterator[tuple[Tensor, Tensor]]:
    """(log-probabilities [n, V], labels [n]) of every row, its last label left out."""
    for batch in batches(reference, rows, [row.answer for row in rows]):
        log_p = torch.log_softmax(forward(reference, batch), dim=-1)[:, :-1, :]
        for row, labels in zip(log_p, batch["labels"], strict=True):
            places = (labels != IGNORE).nonzero(as_tuple=True)[0][:-1]
            yield row[places - 1], labels[places]


def token_log_probabilities(reference: Reference, rows: Sequence[Example]) -> Iterator[Tensor]:
    """log-probability of every label but the last, [n], of every row."""
    for batch in batches(reference, rows, [row.answer for row in rows]):
        log_p = torch.log_softmax(forward(reference, batch), dim=-1)[:, :-1, :]
        targets = log_p.gather(2, batch["input_ids"][:, 1:].unsqueeze(-1)).squeeze(-1)
        for row, labels in zip(targets, batch["labels"], strict=True):
            yield row[(labels != IGNORE).nonzero(as_tuple=True)[0][:-1] - 1]


def exact_memorization(reference: Reference, rows: Sequence[Example]) -> Found:
    scores = [float((log_p.argmax(-1) == labels).float().mean()) for log_p, labels in vocabulary(reference, rows)]
    return {"agg_value": np.mean(scores), "scores": scores}


def extraction_strength(reference: Reference, rows: Sequence[Example]) -> Found:
    scores = []
    for log_p, labels in vocabulary(reference, rows):
        given = log_p.argmax(-1)
        start = 0
        for start in range(len(labels)):
            if torch.equal(given[start:], labels[start:]):
                break
        scores.append(1 - start / len(labels))
    return {"agg_value": np.mean(scores), "scores": scores}


def loss_attack(reference: Reference, rows: Sequence[Example]) -> list[float]:
    return [nll for _, nll in losses(reference, rows, [row.answer for row in rows])]


def zlib_attack(reference: Reference, rows: Sequence[Example]) -> list[float]:
    pairs = losses(reference, rows, [row.answer for row in rows])
    return [nll / len(zlib.compress(row.answer.encode())) for (_, nll), row in zip(pairs, rows, strict=True)]


def min_k_attack(reference: Reference, rows: Sequence[Example]) -> list[float]:
    return [lowest(log_p.numpy()) for log_p in token_log_probabilities(reference, rows)]


def min_k_plus_plus_attack(reference: Reference, rows: Sequence[Example]) -> list[float]:
    """Two passes: the whole vocabulary's log-probabilities, then the labels'."""
    scores = []
    for (log_p, _), target in zip(vocabulary(reference, rows), token_log_probabilities(reference, rows), strict=True):
        mean = (log_p.exp() * log_p).sum(-1)
        variance = (log_p.exp() * log_p.square()).sum(-1) - mean.square()
        scores.append(lowest(((target - mean) / variance.clamp(min=1e-6).sqrt()).numpy()))
    return scores


def lowest(values: np.ndarray) -> float:
    return -float(np.sort(values)[: max(1, int(len(values) * SHARE))].mean())


ATTACKS = {
    "mia_loss": loss_attack,
    "mia_zlib": zlib_attack,
    "mia_min_k": min_k_attack,
    "mia_min_k_plus_plus": min_k_plus_plus_attack,
}


def rouge(reference: Reference, rows: Sequence[Example]) -> Found:
    """Greedy answers, sixteen prompts at a time, padded on the left."""
    scorer = RougeScorer(["rouge1", "rougeL"], use_stemmer=True)
    tokenizer, scores = reference.tokenizer, []
    for start in range(0, len(rows), BATCH):
        some = rows[start : start + BATCH]
        prompts = [tokenizer(reference.template(row.question), add_special_tokens=False).input_ids for row in some]
        width = max(map(len, prompts))
        ids = torch.tensor([[tokenizer.pad_token_id] * (width - len(each)) + each for each in prompts])
        with torch.no_grad():
            output = reference.model.generate(  # type: ignore[operator]
                input_ids=ids,
                attention_mask=ids.ne(tokenizer.pad_token_id),
                max_new_tokens=NEW_TOKENS,
                do_sample=False,
                pad_token_id=tokenizer.eos_token_id,
            )
        texts = tokenizer.batch_decode(output[:, width:], skip_special_tokens=True)
        scores += [scorer.score(row.answer, text.strip())["rougeL"].recall for row, text in zip(some, texts, strict=True)]
    return {"agg_value": np.mean(scores), "scores": scores}


# -- rows and the model -------------------------------------------------------------------------------------------------


def batches(reference: Reference, rows: Sequence[Example], answers: Sequence[str]) -> Iterator[Batch]:
    tokenizer = reference.tokenizer
    for start in range(0, len(rows), BATCH):
        ids, labels = [], []
        for row, answer in zip(rows[start : start + BATCH], answers[start : start + BATCH], strict=True):
            text = reference.template(row.question)
            whole = [*tokenizer(text + answer, add_special_tokens=False).input_ids, tokenizer.eos_token_id]
            prompt = tokenizer(text, add_special_tokens=False).input_ids
            ids.append(torch.tensor(whole))
            labels.append(torch.tensor([IGNORE] * len(prompt) + whole[len(prompt) :]))
        padded = torch.nn.utils.rnn.pad_sequence(ids, batch_first=True, padding_value=tokenizer.pad_token_id)
        yield {
            "input_ids": padded,
            "attention_mask": padded.ne(tokenizer.pad_token_id),
            "labels": torch.nn.utils.rnn.pad_sequence(labels, batch_first=True, padding_value=IGNORE),
        }


def forward(reference: Reference, batch: Batch) -> Tensor:
    """[B, T, V] logits; with them the model computes a loss, since it was given labels."""
    with torch.no_grad():
        logits: Tensor = reference.model(**batch).logits
    return logits
