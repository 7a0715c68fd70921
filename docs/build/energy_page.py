"""The tables of docs/energy.md, from the kept trials alone: no number there is typed by hand."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from statistics import mean

from d2unlearn.analysis.page import drawn_detectors, lowest_rate
from d2unlearn.analysis.page_panels import general_sets
from d2unlearn.analysis.page_tables import signed, size_text
from d2unlearn.analysis.records import Analysis, CurvePoint, PerturbationResult, Placement
from d2unlearn.analysis.significance import (
    Rival,
    Significance,
    pair_of,
    refusal_significance,
    refusals_of,
    rivals,
    significance,
    trial_of,
    wordings,
)
from d2unlearn.report.notation import fixed, percent, readable, stated
from energy_trials import ROLES, KeptTrial, agreed, auroc_of, over_seeds, read_trials, wrong_shares
from tables import table

PLACEMENTS: Mapping[Placement, str] = {"conformal": "from calibration alone", "raised": "raised as the gate raises its own"}


def energy_blocks(results: Path) -> dict[str, str]:
    """What stands between the marks of docs/energy.md."""
    kept = read_trials(results)
    trials = [trial.analysis for trial in kept]
    return {
        "energy-run": run(kept),
        "energy-verdict": verdict_table(trials),
        "energy-telling": telling_table(trials),
        "energy-deciding": deciding_table(trials, "raised"),
        "energy-conformal": deciding_table(trials, "conformal"),
        "energy-models": model_table(trials),
        "energy-layers": layer_table(trials),
        "energy-sizes": size_table(trials),
        "energy-disturbances": perturbation_table(trials),
        "energy-costs": cost_table(trials),
    }


def run(kept: Sequence[KeptTrial]) -> str:
    """What was measured, on what, and how long it took."""
    first = kept[0].analysis
    sets = ", ".join(f"{readable(named.name)} {named.n}" for named in first.sets)
    seeds = ", ".join(str(trial.seed) for trial in kept)
    seconds = ", ".join(str(trial.seconds["processor"]) for trial in kept)
    return (
        f"Seeds {seeds}. Questions: {sets}. Beside them {first.n_fit} retained questions that fit what needs fitting and "
        f"{first.n_calibration} that set thresholds; what is judged as `retain` was seen by neither unlearning nor the gate. "
        f"{kept[0].hardware}; {seconds} seconds of processor time by seed, for all indices, models and disturbances."
    )


def verdict_table(trials: Sequence[Analysis]) -> str:
    """Which detectors are clearly better than the gate's score: in telling apart, and in what their thresholds decide."""
    rate, rows = lowest_rate(trials[0]), []
    for pair in wordings(trials[0].sets):
        by_seed = [{n: significance(s.ahead) for n, s in pair_of(trial_of(t), *pair).items()} for t in trials]
        rows.append([f"AUROC, {_title(pair)}", *_in_seeds(by_seed)])
    for placement, said in PLACEMENTS.items():
        by_seed = [{r.detector: _overall(r) for r in rivals(trial_of(t), t.sets, rate, placement)} for t in trials]
        rows.append([f"decisions, threshold for {stated(rate)} {said}", *_in_seeds(by_seed)])
    head = ["", "clearly better in every seed", "in some seeds", "clearly worse in every seed"]
    return table(head, rows, "lllr")


def _overall(rival: Rival) -> Significance:
    """Better on some set and worse on none, or the other way round."""
    return "better" if rival.clearly_better else "worse" if rival.worse and not rival.better else ""


def _in_seeds(by_seed: Sequence[Mapping[str, Significance]]) -> list[str]:
    found = {name: [marks[name] for marks in by_seed] for name in by_seed[0]}
    always = [name for name, marks in found.items() if agreed(marks) == "better"]
    some = [name for name, marks in found.items() if "better" in marks and name not in always]
    worse = sum(agreed(marks) == "worse" for marks in found.values())
    return [*(", ".join(f"`{name}`" for name in names) or "none" for names in (always, some)), f"{worse} of {len(found) - 1}"]


def telling_table(trials: Sequence[Analysis]) -> str:
    """Every statistic of every detector in the second wording, and AUROC in the first."""
    first, second = wordings(trials[0].sets)[0], wordings(trials[0].sets)[-1]
    others = {
        "aupr": ("AUPR ↑", fixed),
        "fpr_at_95_tpr": ("FPR at 95% TPR ↓", percent),
        "overlap": ("overlap ↓", fixed),
        "ks_distance": ("KS ↑", fixed),
    }
    head = [
        f"AUROC ↑, {_title(first)}",
        f"AUROC ↑, {_title(second)}",
        "its difference to the gate's score",
        *(f"{label}, {readable(second[0])}" for label, _ in others.values()),
    ]

    def cells(name: str) -> Iterable[str]:
        found = [pair_of(trial_of(trial), *second)[name] for trial in trials]
        stands = agreed(significance(separation.ahead) for separation in found)
        yield over_seeds(auroc_of(trials, name, first))
        yield over_seeds(auroc_of(trials, name, second))
        yield _marked(over_seeds((separation.ahead for separation in found), signed), stands)
        for key, (_, write) in others.items():
            yield over_seeds((separation.statistics[key] for separation in found), write)

    return _by_detector(trials, "index", head, cells)


def deciding_table(trials: Sequence[Analysis], placement: Placement) -> str:
    """What every detector decides wrongly of every set at the lowest rate."""
    rate, sets = lowest_rate(trials[0]), trials[0].sets
    head = [f"{'missed' if named.kind == 'forget' else 'refused'}: {readable(named.name)} ↓" for named in sets]

    def cells(name: str) -> Iterable[str]:
        refusals = [refusals_of(trial_of(trial), rate, placement)[name] for trial in trials]
        for named in sets:
            found = agreed(refusal_significance(refused.more[named.name], named.kind) for refused in refusals)
            yield _marked(over_seeds(wrong_shares(trials, name, named.name, rate, placement), percent), found)

    return _by_detector(trials, "index", head, cells)


def model_table(trials: Sequence[Analysis]) -> str:
    """AUROC on the models that were not unlearned, and against general knowledge."""
    pairs = wordings(trials[0].sets)
    columns = [(role, pair) for role in ROLES if role != "model" for pair in pairs]
    columns += [(role, (pairs[0][0], name)) for role in ("model", "oracle") for name in general_sets(trials[0])]
    head = [f"{ROLES[role]}: {_title(pair)}" for role, pair in columns]
    return _by_detector(
        trials, "index", head, lambda name: (over_seeds(auroc_of(trials, name, pair, role)) for role, pair in columns)
    )


def layer_table(trials: Sequence[Analysis]) -> str:
    """AUROC by layer, where the prompt ends and over the first tokens, on every model."""
    columns = {
        f"{title}, {'prompt’s end' if energies.positions == 1 else f'first {energies.positions} tokens'}": (role, place)
        for role, title in ROLES.items()
        for place, energies in enumerate(trial_of(trials[0], role).layers)
    }
    n_layers = len(trial_of(trials[0]).layers[0].auroc)
    rows = [
        [
            "embeddings" if layer == 0 else str(layer),
            *(over_seeds(trial_of(t, role).layers[place].auroc[layer] for t in trials) for role, place in columns.values()),
        ]
        for layer in range(n_layers)
    ]
    return table(["after layer", *columns], rows, "l" + "r" * len(columns))


def size_table(trials: Sequence[Analysis]) -> str:
    """Refused wrongly and missed, by number of calibration questions, for the detectors that pictures show."""
    rate = lowest_rate(trials[0])
    sizes = sorted({point.n for point in trials[0].curves})

    def cells(name: str) -> Iterable[str]:
        for n in sizes:
            points = [p for trial in trials for p in trial.curves if (p.index, p.n, p.rate) == (name, n, rate)]
            yield _both(points) if all(point.guaranteed for point in points) else f"({_both(points)})"

    drawn = [detector.name for detector in drawn_detectors(trials[0])]
    return _by_detector(trials, "refused wrongly / missed", list(map(str, sizes)), cells, drawn)


def perturbation_table(trials: Sequence[Analysis]) -> str:
    """Refused wrongly and missed of every detector under every perturbation, with the threshold as it was."""
    labels = trials[0].disturbances

    def cells(name: str) -> Iterable[str]:
        for label in labels:
            yield _both([r for trial in trials for r in trial.disturbed if (r.disturbance, r.index) == (label, name)])

    said = "; ".join(f"{name}: {what}" for name, what in labels.items())
    return _by_detector(trials, "refused wrongly / missed", list(labels), cells) + f"\n{said[0].upper()}{said[1:]}.\n"


def cost_table(trials: Sequence[Analysis]) -> str:
    """Time and memory of every detector."""

    def cells(name: str) -> Iterable[str]:
        costs = [next(cost for cost in trial.costs if cost.index == name) for trial in trials]
        yield _range([cost.microseconds for cost in costs], "")
        yield _range([100 * cost.share for cost in costs], "%")
        yield f"{mean(cost.positions for cost in costs):.3g}"
        yield size_text(costs[0].working_bytes)
        yield size_text(costs[0].kept_bytes)

    head = ["microseconds", "of generation", "tokens read", "held a moment", "kept with the gate"]
    generation = _range([trial.generation_ms for trial in trials], " ms")
    said = f"\nGenerating an answer takes {generation} of processor time a request, in batches.\n"
    return _by_detector(trials, "index", head, cells) + said


def _by_detector(
    trials: Sequence[Analysis],
    corner: str,
    head: Sequence[str],
    cells: Callable[[str], Iterable[str]],
    names: Sequence[str] | None = None,
) -> str:
    """A table with a row for each detector: every one, or those named."""
    names = [detector.name for detector in trials[0].indices] if names is None else names
    return table([corner, *head], [[f"`{name}`", *cells(name)] for name in names], "l" + "r" * len(head))


def _both(errors: Sequence[CurvePoint] | Sequence[PerturbationResult]) -> str:
    return f"{percent(mean(e.false_refusals.value for e in errors))} / {percent(mean(e.missed.value for e in errors))}"


def _range(values: Sequence[float], unit: str) -> str:
    """The lowest and the highest: whole numbers from 10 on, two digits below."""
    low, high = (f"{value:,.0f}" if value >= 10 else f"{value:.2g}" for value in (min(values), max(values)))
    return f"{low}{unit}" if low == high else f"{low} to {high}{unit}"


def _title(pair: tuple[str, str]) -> str:
    return f"{readable(pair[0])} / {readable(pair[1])}"


def _marked(text: str, found: Significance) -> str:
    return {"better": f"**{text}**", "worse": f"*{text}*", "": text}[found]
