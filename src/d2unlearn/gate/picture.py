"""The scores of a calibration as lines of text: where legitimate and forgotten requests lie, and the threshold. Pure."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

WIDTH = 60
_BARS = " ▁▂▃▄▅▆▇█"


def score_picture(retained: Sequence[float], forget: Sequence[float], threshold: float, width: int = WIDTH) -> list[str]:
    """Three lines: a bar in each of `width` equal steps from the lowest to the highest score, tallest where most lie; the
    threshold under them. Scores that are not finite are left out.
    """
    scores = [np.array([score for score in side if np.isfinite(score)]) for side in (retained, forget)]
    known = np.concatenate([*scores, [threshold]])
    low, high = float(known.min()), float(known.max())
    edges = np.linspace(low, high if high > low else low + 1.0, width + 1)
    place = min(int(np.searchsorted(edges, threshold, side="right")) - 1, width - 1)
    bars = [_bars(np.histogram(side, edges)[0].tolist()) for side in scores]
    return [
        f"legitimate |{bars[0]}|",
        f"forgotten  |{bars[1]}|",
        f"            {' ' * place}^ threshold {threshold:.2f}; from {low:.2f} to {high:.2f}",
    ]


def _bars(counts: Sequence[int]) -> str:
    tallest = max([*counts, 1])
    return "".join(_BARS[-(-count * (len(_BARS) - 1) // tallest)] for count in counts)
