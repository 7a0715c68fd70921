"""What the trial of energy found, in sentences whose every number comes from the kept trials."""

from __future__ import annotations

from collections.abc import Sequence

from d2unlearn.analysis.page import lowest_rate
from d2unlearn.analysis.page_tables import size_text
from d2unlearn.analysis.records import Analysis, Placement
from d2unlearn.analysis.significance import pair_of, rivals, significance, trial_of
from d2unlearn.gate.score import CANDIDATES as OFFERED
from d2unlearn.report.notation import percent, readable, stated
from energy_seeds import ROLES, Kept, agreed, area, cost_of, disturbed, named, pairs_of, points, range_of, text_of, wrong

PLACED: dict[Placement, str] = {"conformal": "from calibration alone", "raised": "raised as the gate raises its own"}
BESIDE = {
    "energy/highest-2": "the gate's score",
    "entropy/highest-2": "entropy, pooled alike,",
    "centred-energy/highest-2": "centred energy, pooled alike,",
}
"""What the disturbances are told of."""


def run(kept: Sequence[Kept]) -> str:
    """What was measured, on what, and how long it took."""
    first = kept[0].analysis
    sets = ", ".join(f"{readable(each.name)} {each.n}" for each in first.sets)
    seeds, seconds = (
        ", ".join(str(value) for value in each) for each in zip(*((k.seed, k.seconds["processor"]) for k in kept), strict=True)
    )
    return (
        f"Seeds {seeds}. Questions: {sets}. Beside them {first.n_fit} retained questions that fit what needs fitting and "
        f"{first.n_calibration} that set thresholds; what is judged as `retain` was seen by neither unlearning nor the gate. "
        f"{kept[0].hardware}; {seconds} seconds of processor time by seed, for all indices, models and disturbances."
    )


def findings(trials: Sequence[Analysis]) -> list[str]:
    return [
        *accuracy(trials),
        *deciding(trials),
        *shift(trials),
        *elsewhere(trials),
        *calibration(trials),
        *efficiency(trials),
        *depth(trials),
    ]


def accuracy(trials: Sequence[Analysis]) -> list[str]:
    """How well the gate's score tells apart, and who is better."""
    reference = trials[0].reference
    lines = []
    for forget, retain in pairs_of(trials):
        found = {
            name: agreed(significance(pair_of(trial_of(each), forget, retain)[name].ahead) for each in trials)
            for name in named(trials)
            if name != reference
        }
        ahead = [name for name, stands in found.items() if stands == "better"]
        behind = sum(stands == "worse" for stands in found.values())
        value = text_of(area(trials, reference, (forget, retain)))
        lines.append(
            f"{readable(forget).capitalize()} against {readable(retain)}: AUROC {value} for the gate's score; of "
            f"{len(found)} other indices {len(ahead)} clearly better{_list(ahead)}, {behind} clearly worse."
        )
    return lines


def deciding(trials: Sequence[Analysis]) -> list[str]:
    """What the gate's score decides wrongly, with both thresholds."""
    rate, reference = lowest_rate(trials[0]), trials[0].reference
    lines = []
    for placement, said in PLACED.items():
        told = "; ".join(
            f"{'missed' if each.kind == 'forget' else 'refused'} of {readable(each.name)} "
            f"{text_of(wrong(trials, reference, each.name, rate, placement), percent)}"
            for each in trials[0].sets
        )
        lines.append(f"At a threshold for {stated(rate)} false refusals, {said}, the gate's score decides wrongly: {told}.")
    return lines


def verdict(trials: Sequence[Analysis]) -> str:
    """Whether another index is clearly better for the gate, whether the gate offers it, and what speaks against it."""
    parts = []
    for placement, said in PLACED.items():
        always, sometimes = better(trials, placement)
        others = f" In some seeds, not in all: {', '.join(f'`{name}`' for name in sometimes)}." if sometimes else ""
        found = ", ".join(f"`{name}`" for name in always) or "**none**"
        parts.append(
            f"With the threshold {said}, of {len(named(trials)) - 1} other indices clearly better than the gate's score on at "
            f"least one set and clearly worse on none, in every seed: {found}.{others}"
        )
        parts += [candidate(trials, name, placement) for name in always]
    return "\n\n".join(parts)


def better(trials: Sequence[Analysis], placement: Placement) -> tuple[list[str], list[str]]:
    """The indices that are clearly better for the gate in every seed, and those that are in some."""
    rate = lowest_rate(trials[0])
    by_seed = [{e.detector for e in rivals(trial_of(each), each.sets, rate, placement) if e.clearly_better} for each in trials]
    always = [name for name in named(trials) if all(name in found for found in by_seed)]
    return always, [name for name in named(trials) if any(name in found for found in by_seed) and name not in always]


def candidate(trials: Sequence[Analysis], name: str, placement: Placement) -> str:
    """An index that is clearly better: what it decides beside the gate's score, calmly and disturbed."""
    rate, reference = lowest_rate(trials[0]), trials[0].reference
    reading, pool = name.split("/")
    offered = reading == "energy" and pool in OFFERED
    decided = {
        i: {s.name: text_of(wrong(trials, i, s.name, rate, placement), percent) for s in trials[0].sets}
        for i in (name, reference)
    }
    told = "; ".join(
        f"{'missed' if each.kind == 'forget' else 'refused'} of {readable(each.name)} {decided[name][each.name]}, "
        f"not {decided[reference][each.name]}"
        for each in trials[0].sets
    )
    worst = "; ".join(
        f"{said}: {_refused(trials, disturbance, name)}, not {_refused(trials, disturbance, reference)}"
        for disturbance, said in trials[0].disturbances.items()
        if disturbance in ("temperature", "other template")
    )
    where = f"The gate offers it: `d2unlearn calibrate --score {pool}`" if offered else "The gate does not offer it yet"
    return (
        f"{where}. `{name}` beside the gate's score: {told}. What its conformal threshold refuses wrongly once something "
        f"changed, {worst}."
    )


def shift(trials: Sequence[Analysis]) -> list[str]:
    """The constant that changes no probability."""
    reference, name = trials[0].reference, "constant shift"
    before, after = (_missed(trials, each, reference) for each in ("as calibrated", name))
    unmoved = [
        index
        for index in named(trials)
        if all(
            (a.missed.value, a.false_refusals.value) == (b.missed.value, b.false_refusals.value)
            for a, b in zip(disturbed(trials, "as calibrated", index), disturbed(trials, name, index), strict=True)
        )
    ]
    readings = dict.fromkeys(named(trials)[index].split(", ")[0] for index in unmoved)
    moved = [each for each in dict.fromkeys(label.split(", ")[0] for label in named(trials).values()) if each not in readings]
    return [
        f"{trials[0].disturbances[name]}, which changes no probability: the gate's score misses {after} with the threshold as "
        f"it was, {before} before. Nothing changes for {', '.join(readings)}; something does for {', '.join(moved) or 'none'}."
    ]


def elsewhere(trials: Sequence[Analysis]) -> list[str]:
    """The other disturbances."""
    lines = []
    for name, said in trials[0].disturbances.items():
        if name in ("as calibrated", "constant shift"):
            continue
        told = (
            f"{title} {_refused(trials, name, index)} and {_missed(trials, name, index)}" for index, title in BESIDE.items()
        )
        lines.append(f"{said[0].upper()}{said[1:]}, refused wrongly and missed: {'; '.join(told)}.")
    return lines


def calibration(trials: Sequence[Analysis]) -> list[str]:
    """How many calibration questions are enough."""
    rate, reference = lowest_rate(trials[0]), trials[0].reference
    sizes = sorted({each.n for each in trials[0].curves})
    fitted = {index.name for index in trials[0].indices if index.fitted}
    first = {
        kind: min(
            (each.n for each in trials[0].curves if each.rate == rate and each.guaranteed and (each.index in fitted) == kind),
            default=None,
        )
        for kind in (False, True)
    }
    told = "; ".join(
        f"{n}: refused wrongly {text_of((p.false_refusals for p in points(trials, reference, n, rate)), percent)}, missed "
        f"{text_of((p.missed for p in points(trials, reference, n, rate)), percent)}"
        for n in sizes
    )
    return [
        f"Of the numbers of calibration questions tried, {first[False]} is the first that suffices for the guarantee at "
        f"{stated(rate)} where nothing is fitted, {first[True]} where half of them are spent on fitting. The gate's score by "
        f"their number: {told}."
    ]


def efficiency(trials: Sequence[Analysis]) -> list[str]:
    """Time and memory beside generation."""
    names = [trials[0].reference, "energy/prompt", "max-logit/highest-2", "entropy/highest-2", "neighbours/answer"]
    told = "; ".join(
        f"{named(trials)[name]} {range_of([100 * cost_of(each, name).share for each in trials], '%')} of the time to generate, "
        f"{size_text(cost_of(trials[0], name).working_bytes)} for a moment"
        + (f", {size_text(cost_of(trials[0], name).kept_bytes)} kept" if cost_of(trials[0], name).kept_bytes else "")
        for name in dict.fromkeys(names)
    )
    return [f"Beside generation: {told}."]


def depth(trials: Sequence[Analysis]) -> list[str]:
    """How early in the network forgotten questions stand out."""
    told = []
    for role, title in ROLES.items():
        layers = [trial_of(each, role).layers[-1].auroc for each in trials]
        first, last = (text_of(each[place] for each in layers) for place in (1, -1))
        told.append(f"in {title} AUROC {first} after the first layer and {last} after the last of {len(layers[0]) - 1}")
    positions = trial_of(trials[0]).layers[-1].positions
    return [f"Energy of each layer's state, mean over the first {positions} tokens, forget against retain: {'; '.join(told)}."]


def _refused(trials: Sequence[Analysis], disturbance: str, index: str) -> str:
    return text_of((each.false_refusals for each in disturbed(trials, disturbance, index)), percent)


def _missed(trials: Sequence[Analysis], disturbance: str, index: str) -> str:
    return text_of((each.missed for each in disturbed(trials, disturbance, index)), percent)


def _list(names: Sequence[str]) -> str:
    return f" ({', '.join(f'`{name}`' for name in names)})" if names else ""
