"""The numbers on docs/method.md: worked examples and tables, computed by the package's own functions.

`number_blocks` gives the tables that `make docs` puts between the page's marks.
"""

from __future__ import annotations

from bisect import bisect_left
from pathlib import Path

import numpy as np
import torch
from scipy.stats import beta
from torch import Tensor

from d2unlearn.data.holdout import hold_out, split_validation
from d2unlearn.energy import centred_energy, free_energy, reference_margins, selected_count, selected_logsumexp
from d2unlearn.head import CHUNK_LOGITS
from d2unlearn.methods import EUA
from d2unlearn.observation import Observed
from d2unlearn.quantities import BottomLogSumExp, Chunk, LogSumExp, Nll, Quantity, TopLogSumExp
from d2unlearn.runtime import read_json
from d2unlearn.schema import Example, Message
from d2unlearn.stats import conformal_rank, smallest_n
from tables import minus, table

WIDE = 4096
"""The vocabulary of the worked positions."""
VOCABULARIES = (4096, 128_256, 151_936)
METHOD = EUA()
RATE = 0.01


# -- worked positions ---------------------------------------------------------------------------------------------------


def peaked(answer: float, others: float = 0.0) -> Tensor:
    """Logits of one position that give `answer` to token 0 and `others` to every other token, [V] float64."""
    logits = torch.full((WIDE,), others, dtype=torch.float64)
    logits[0] = answer
    return logits


def noisy(vocabulary: int) -> Tensor:
    """A position that knows its answer: 27 for token 0, the others drawn from a normal distribution, mean 0, deviation 2."""
    logits = torch.from_numpy(np.random.default_rng(0).normal(0, 2, vocabulary))
    logits[0] = 27
    return logits


POSITIONS = {
    "knows: 27 for the answer, 0 for all others": peaked(27),
    "knows nothing: 0 for all": peaked(0),
    "the first, every logit lowered by 30": peaked(27) - 30,
    "knows quietly: 8 for the answer, −12 for all others": peaked(8, -12),
}


def position_table() -> str:
    """What energy sees of four positions, and what the softmax does."""
    m_out = float(reference_margins(noisy(WIDE), METHOD.ratio).m_out)
    rows = []
    for name, logits in POSITIONS.items():
        energy, centred = float(free_energy(logits)), float(centred_energy(logits))
        known = float(torch.softmax(logits, 0)[0])
        hinge = max(m_out - energy, 0.0) ** 2
        rows.append([name, f"{known:.4f}", signed(energy), signed(centred), f"{-centred - np.log(WIDE):.2f}", f"{hinge:.2f}"])
    head = ["logits", "probability of the answer", "$E$", "$E_c$", "KL from uniform", "forget hinge²"]
    return table(head, rows, "lrrrrr") + f"\n$V$ = {WIDE}, $m_\\text{{out}}$ = {signed(m_out)}.\n"


def margin_table() -> str:
    """Both margins of a position that knows its answer, for the vocabularies of well-known models."""
    rows = []
    for vocabulary in VOCABULARIES:
        logits = noisy(vocabulary)
        margins, k = reference_margins(logits, METHOD.ratio), selected_count(METHOD.ratio, vocabulary)
        bare = -float(selected_logsumexp(logits, METHOD.ratio, largest=False, zero_fill=False))
        gap = float(margins.m_in - free_energy(logits))
        cells = [-np.log(vocabulary - k), float(margins.m_out), bare, bare - float(margins.m_out)]
        rows.append([f"{vocabulary:,}", f"{k:,}", *map(signed, cells), minus(f"{gap:.0e}".replace("e-0", "e-"))])
    head = [
        "$V$",
        "$k$",
        "$-\\log(V-k)$",
        "$m_\\text{out}$",
        "without the zero fill",
        "moves by",
        "$m_\\text{in}$ − reference's $E$",
    ]
    return table(head, rows, "rrrrrrr")


def step_table() -> str:
    """One step of EUA that a reader can follow on paper: ten tokens, one position of each kind, k = 1."""
    before, now = torch.zeros(1, 10), torch.zeros(1, 10)
    before[0, 0], before[0, 9], now[0, 0] = 6.0, -2.0, 5.0
    forget, retain = (_seen(before, before, role) for role in ("forget", "retain"))
    drifted = _seen(before, now, "retain")
    loss = METHOD.loss({"forget": forget, "retain": drifted})
    margins = reference_margins(before, METHOD.ratio)
    h_in, h_out = float(METHOD.retain_hinge(drifted)), float(METHOD.forget_hinge(forget))
    rows = [
        ["retain", f"{float(margins.m_in):.4f}", f"{float(free_energy(now)):.4f}", f"{h_in:.4f}"],
        ["forget", f"{float(margins.m_out):.4f}", f"{float(free_energy(before)):.4f}", f"{h_out:.4f}"],
    ]
    assert float(METHOD.retain_hinge(retain)) < 1e-2, "before the first step the retain hinge is closed"
    lines = table(["position", "margin", "$E$ now", "hinge"], [[minus(cell) for cell in row] for row in rows], "lrrr")
    nll = float(drifted.policy[Nll()])
    squares = f"{h_in**2:.4f} + {h_out**2:.4f}"
    return lines + f"\n$L$ = {METHOD.gamma} × ({squares}) + {METHOD.alpha:g} × {nll:.4f} = {float(loss):.4f}\n"


def _seen(before: Tensor, now: Tensor, role: str) -> Observed:
    """What EUA sees of one position whose answer is token 0. before, now: [1, V]."""
    margin: Quantity = (BottomLogSumExp if role == "forget" else TopLogSumExp)(METHOD.ratio)
    answer = torch.tensor([0])
    policy = {q: q.of(Chunk(now, answer)) for q in (LogSumExp(), Nll())}
    return Observed(policy, {margin: margin.of(Chunk(before, answer))}, torch.zeros(1, dtype=torch.long), 1, 1.0, 1.0)


def chunk_table() -> str:
    """What the head holds at once, against the logits of a thousand answer positions."""
    rows = []
    for vocabulary in VOCABULARIES:
        count = CHUNK_LOGITS // vocabulary
        rows.append([f"{vocabulary:,}", f"{1000 * vocabulary / 2**18:,.0f}", f"{count:,}", f"{count * vocabulary / 2**18:.0f}"])
    head = ["$V$", "logits of 1,000 positions, MiB", "positions a chunk", "logits of a chunk, MiB"]
    return table(head, rows, "rrrr")


# -- the gate's guarantee -----------------------------------------------------------------------------------------------


def looks_table() -> str:
    """What independent looks add up to."""
    counts = (1, 2, 5, 9, 64)
    shares = [f"{1 - (1 - RATE) ** count:.2%}" for count in counts]
    return table(
        ["independent looks at 1% each", *map(str, counts)], [["refused at one of them", *shares]], "l" + "r" * len(counts)
    )


CALIBRATIONS = ((99, None), (260, None), (1000, None), (230, 0.9), (1000, 0.9))


def rank_table() -> str:
    """For each calibration the rank of its threshold, and how the true share of false refusals is distributed."""
    rows = []
    for n, confidence in CALIBRATIONS:
        rank = conformal_rank(n, RATE, confidence)
        spread = beta(n + 1 - rank, rank)
        said = "on average" if confidence is None else f"{confidence:.0%} confidence"
        rows.append([str(n), said, str(rank), f"{spread.mean():.2%}", f"{spread.ppf(0.95):.2%}", f"{spread.sf(RATE):.0%}"])
    head = ["$n$", "1% holds", "rank", "mean share refused", "95% of calibrations below", "calibrations above 1%"]
    return table(head, rows, "rlrrrr")


def smallest_table() -> str:
    """The fewest calibration prompts for a rate, and the fewest retained rows that leave so many."""
    rows = []
    for rate in (0.05, 0.02, RATE, 0.005):
        counts = [smallest_n(rate, confidence) for confidence in (None, 0.9, 0.95)]
        rows.append([f"{rate:.1%}", *map(str, counts), str(smallest_file(counts[0])), str(smallest_file(counts[1]))])
    head = ["rate", "on average", "90% confidence", "95% confidence", "retained rows for it, on average", "with 90%"]
    return table(head, rows, "rrrrrr")


def smallest_file(n_calibration: int) -> int:
    """How many different retained rows `unlearn` needs so that as many are left to calibrate on."""
    rows = [Example(str(i), (Message("user", str(i)),), "", "") for i in range(12 * n_calibration)]

    def left(count: int) -> int:
        return len(split_validation(hold_out(rows[:count], seed=0).held_out, seed=0)[1])

    return bisect_left(range(len(rows)), n_calibration, key=left)


def simulation_table(results: Path) -> str:
    """What `experiments/gate_simulation.py` wrote: false refusals that came of each promise, with 95% intervals."""
    found = read_json(results / "gate" / "simulation.json")
    rows = []
    for run in found["runs"]:
        confidence = "on average" if run["confidence"] is None else f"{run['confidence']:.0%} confidence"
        told = [f"{run['max_false_refusal']:.0%}, {confidence}", str(run["forget"])]
        groups = [(name, group, str(group["questions"])) for name, group in run["groups"].items()]
        if len(groups) > 1:
            groups.append(("all, in equal parts", run["all"], str(sum(group["questions"] for _, group, _ in groups))))
        for name, group, count in groups:
            promised = "" if group.get("guaranteed", True) else f" (no guarantee: {run['needed']} needed)"
            rows.append([*told, name, count + promised, _in_percent(group["refused"], 2), _in_percent(group["above"], 1)])
    head = ["promise", "forget rows", "requests", "questions", "refused, mean", "calibrations above the rate"]
    note = f"{found['calibrations']:,} calibrations a line, each tried on {found['fresh']:,} fresh questions of a group."
    return table(head, rows, "lrllrr") + f"\n{note} In brackets: 95% intervals.\n"


def _in_percent(interval: list[float], digits: int) -> str:
    value, low, high = (f"{100 * each:.{digits}f}%" for each in interval)
    return f"{value} [{low}, {high}]"


def number_blocks(results: Path) -> dict[str, str]:
    """Every table of docs/method.md, by the name of its mark."""
    return {
        "positions": position_table(),
        "margins": margin_table(),
        "step": step_table(),
        "chunks": chunk_table(),
        "looks": looks_table(),
        "ranks": rank_table(),
        "smallest": smallest_table(),
        "simulation": simulation_table(results),
    }


def signed(value: float) -> str:
    return minus(f"{value:.2f}")
