"""How far a request's hidden state lies from those of retained requests. Pure functions of numbers; no forget example is used.

Hidden states are what the LM head reads, [N, H]. `fit` takes retained ones, N at least 1, and gives a distance that can be
asked: `of` [M, H] -> [M], larger where content should be forgotten. `kept_bytes`: what has to be kept to compute it.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from d2unlearn.stats import Floats


@dataclass(frozen=True, eq=False)
class Mahalanobis:
    """(h - mean)^T S^-1 (h - mean), with S the covariance shrunk towards a multiple of the identity (`shrunk_covariance`).

    Source: Lee et al. 2018 (1807.03888), with one class; Ren et al. 2023 (2209.15558) for generated text.
    """

    mean: Floats | None = None
    precision: Floats | None = None

    def fit(self, retained: Floats) -> Mahalanobis:
        return Mahalanobis(retained.mean(axis=0), np.linalg.inv(shrunk_covariance(retained)).astype(np.float64))

    def of(self, states: Floats) -> Floats:
        assert self.mean is not None
        assert self.precision is not None
        centred = states - self.mean
        return np.asarray(((centred @ self.precision) * centred).sum(axis=1))

    @property
    def kept_bytes(self) -> int:
        return sum(part.nbytes for part in (self.mean, self.precision) if part is not None)


@dataclass(frozen=True, eq=False)
class Neighbours:
    """Euclidean distance to the `k`-th nearest retained state (the farthest, where there are fewer), all of length 1.

    Source: Sun et al. 2022 (2204.06507).
    """

    k: int = 10
    bank: Floats | None = None

    def fit(self, retained: Floats) -> Neighbours:
        return Neighbours(self.k, _of_length_one(retained))

    def of(self, states: Floats) -> Floats:
        assert self.bank is not None
        squares = 2 - 2 * (_of_length_one(states) @ self.bank.T)
        k = min(self.k, len(self.bank)) - 1
        return np.sqrt(np.maximum(np.partition(squares, k, axis=1)[:, k], 0.0))

    @property
    def kept_bytes(self) -> int:
        return 0 if self.bank is None else self.bank.nbytes


def shrunk_covariance(states: Floats) -> Floats:
    """(1 - s) C + s (tr C / H) I, with C the covariance (divided by N) and s in [0, 1] so that the expected error is least.

    states: [N, H]. Returns [H, H], invertible unless all states are equal: then the identity. Source: Ledoit and Wolf 2004.
    """
    n, width = states.shape
    centred = states - states.mean(axis=0)
    covariance = centred.T @ centred / n
    level = float(np.trace(covariance)) / width
    if level == 0.0:
        return np.eye(width)
    away = float(((covariance - level * np.eye(width)) ** 2).sum())
    noise = float((np.einsum("nh,nh->n", centred, centred) ** 2).mean() - (covariance**2).sum()) / n
    share = 1.0 if away == 0.0 else min(max(noise / away, 0.0), 1.0)
    return np.asarray((1 - share) * covariance + share * level * np.eye(width))


def _of_length_one(states: Floats) -> Floats:
    return np.asarray(states / np.maximum(np.linalg.norm(states, axis=1, keepdims=True), 1e-12))
