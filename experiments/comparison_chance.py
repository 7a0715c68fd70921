"""How often a comparison of methods finds a difference where there is none, by the test that is used and by those given up.

    python experiments/comparison_chance.py      a minute; writes benchmarks/results/comparison_chance.json

Studies are made up: 17 rivals and a baseline, three seeds each, authors that all of them share. Authors, and what is left of
each answer, vary by 1 between rival and baseline; seeds by `seeds` times that. See "Comparing means over seeds took the
trainings as given" in docs/log.md.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
from scipy.stats import t as student

from d2unlearn.comparison.outcomes import LEVEL
from d2unlearn.runtime import progress, write_json
from d2unlearn.stats import Floats, bootstrap_interval, crossed_test, holm

RESULT = Path(__file__).resolve().parents[1] / "benchmarks" / "results" / "comparison_chance.json"
STUDIES, RIVALS, SEEDS = 1000, 17, 3


def bootstrap(values: Floats) -> float:
    """0 where the interval of the means over seeds, drawn over authors, leaves zero out; else 1."""
    interval = bootstrap_interval(values.mean(axis=0), confidence=1 - LEVEL, n_boot=400)
    return float(interval.low <= 0 <= interval.high)


def satterthwaite(values: Floats) -> float:
    """p with the variance of `crossed_test`, and degrees of freedom estimated as Satterthwaite does."""
    seeds, authors = values.shape
    mean, rows, columns = values.mean(), values.mean(axis=1, keepdims=True), values.mean(axis=0, keepdims=True)
    rest = values - rows - columns + mean
    parts = [
        (authors * ((rows - mean) ** 2).sum() / (seeds - 1), seeds - 1),
        (seeds * ((columns - mean) ** 2).sum() / (authors - 1), authors - 1),
        ((rest**2).sum() / ((seeds - 1) * (authors - 1)), (seeds - 1) * (authors - 1)),
    ]
    total, freedom = max(parts[:2])
    if (both := parts[0][0] + parts[1][0] - parts[2][0]) > total:
        total, freedom = both, both**2 / sum(square**2 / free for square, free in parts)
    return float(2 * student.sf(abs(mean) / math.sqrt(total / values.size), freedom))


def used(values: Floats) -> float:
    return crossed_test(values, range(values.shape[1])).p


TESTS: dict[str, Callable[[Floats], float]] = {"bootstrap": bootstrap, "satterthwaite": satterthwaite, "crossed": used}


def main() -> None:
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    cells = [(authors, seeds) for authors in (8, 15, 150) for seeds in (0.0, 0.1, 1.0)]
    shares = [measured(*cell) for cell in progress(cells, "comparisons without a difference", total=len(cells))]
    write_json(RESULT, {"studies": STUDIES, "rivals": RIVALS, "found": shares})
    print(RESULT)


def measured(authors: int, seeds: float) -> dict[str, float]:
    """Shares of studies in which a test finds a difference: of one rival at 5%, of any of all after Holm's adjustment."""
    rng = np.random.default_rng([authors, round(10 * seeds)])
    first: dict[str, list[bool]] = {name: [] for name in TESTS}
    anyone: dict[str, list[bool]] = {name: [] for name in TESTS if name != "bootstrap"}
    for _ in range(STUDIES):
        made = entries(rng, 1 + RIVALS, authors, seeds)
        differences = made[1:] - made[0]
        for name, test in TESTS.items():
            first[name].append(test(differences[0]) < LEVEL)
        for name, errs in anyone.items():
            errs.append(min(holm([TESTS[name](values) for values in differences])) < LEVEL)
    shares = {f"one rival: {name}": float(np.mean(errs)) for name, errs in first.items()}
    shares |= {f"any of all: {name}": float(np.mean(errs)) for name, errs in anyone.items()}
    return {"authors": authors, "seeds": seeds, **shares}


def entries(rng: np.random.Generator, n: int, authors: int, seeds: float) -> Floats:
    """[n, seeds, authors]: half of the variance of a difference each."""
    half = 0.5**0.5
    by_seed = rng.normal(0, half * seeds**0.5, (n, SEEDS, 1))
    by_author = rng.normal(0, half, (n, 1, authors))
    return by_seed + by_author + rng.normal(0, half, (n, SEEDS, authors))


if __name__ == "__main__":
    main()
