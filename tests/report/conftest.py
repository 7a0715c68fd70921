"""A realistic pair of evaluations, a gate and what was done."""

from __future__ import annotations

import numpy as np
import pytest

from d2unlearn.schema import Evaluation, GateSummary, Interval

from .synthetic import THRESHOLD, synthetic


@pytest.fixture(scope="session")
def before() -> Evaluation:
    return synthetic(after=False)


@pytest.fixture(scope="session")
def after() -> Evaluation:
    return synthetic(after=True)


@pytest.fixture(scope="session")
def gate() -> GateSummary:
    generator = np.random.default_rng(3)
    retain, forget = generator.normal(-21.5, 1.6, 400), generator.normal(-8.0, 2.2, 400)
    return GateSummary(
        "mean_of_first_8",
        THRESHOLD,
        0.01,
        0.9,
        "With 90% confidence over the choice of calibration prompts, at most 1% of requests like the retained ones are "
        "refused, for greedy decoding with this template in float32.",
        400,
        tuple(retain.tolist()),
        tuple(forget.tolist()),
        Interval(0.0025, 0.0001, 0.0138, 400),
        Interval(0.0, 0.0, 0.0092, 400),
    )


@pytest.fixture(scope="session")
def run() -> dict[str, object]:
    return {
        "method": "eua",
        "learning_rate": 0.001,
        "learning_rate_chosen": "auto, for 4,200,000 parameters",
        "seed": 42,
        "lora": False,
        "parameters": {"ratio": 0.1, "temperature": 1.0, "gamma": 0.05, "alpha": 1.0, "epochs": 10, "batch_size": 32},
        "seconds": {"reference": 4.1, "training": 131.52, "calibration": 22.8, "evaluation": 61.0},
        "versions": {"d2unlearn": "0.1.0", "torch": "2.13.0", "transformers": "5.23.0", "python": "3.11.2"},
        "data": [
            {"role": "forget", "file": "forget10.jsonl", "rows": 400, "sha256": "9f2c…e1"},
            {"role": "retain", "file": "retain90.jsonl", "rows": 3600, "held_out": 400, "sha256": "04ab…77"},
        ],
    }
