"""The parts of the energy on the analysis's page, by hand."""

from __future__ import annotations

from dataclasses import replace

from d2unlearn.analysis.page import build_page
from d2unlearn.analysis.page_levels import level_lines

from .made_up_analysis import made_up


def test_each_model_s_energy_is_taken_apart_and_held_against_the_original() -> None:
    """The original's energy is -20 with a centred energy of -24: mean logit -4. The model's level falls by 9, the rest by 1."""
    parts = {"original": (-20.0, -24.0, 1.5), "model": (-10.0, -23.0, 2.0), "oracle": (-20.0, -24.05, 1.5)}
    analysis = made_up()
    assert level_lines(analysis) == ()
    names = [named.name for named in analysis.sets]
    read = tuple(
        replace(
            trial,
            values={
                **trial.values,
                **{
                    f"{detector}/prompt": dict.fromkeys(names, (value - 1, value + 1))
                    for detector, value in zip(("energy", "centred-energy", "entropy"), parts[trial.role], strict=True)
                },
            },
        )
        for trial in analysis.models
    )
    lines = level_lines(replace(analysis, models=read))
    assert len(lines) == len(names) * 3
    original, model, oracle = lines[:3]
    assert (original.numbers, original.share) == (("−20.00", "−4.00", "−24.00", "1.50"), "–")
    assert (model.numbers, model.share, model.mostly_level) == (("−10.00", "−13.00", "−23.00", "2.00"), "90.0%", True)
    assert (oracle.share, oracle.reason) == ("–", "mean logit and centred energy both moved less than 0.1 nats")
    assert "the method moved the level and not the knowledge" in build_page(replace(analysis, models=read))
