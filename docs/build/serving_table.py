"""The tables of docs/serving.md: where the gate works, by which tests that is known, what it costs, and a server under load.

A row names tests, which have to exist, and a measurement, which is read from the kept results.
"""

from __future__ import annotations

import re
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from d2unlearn.runtime import read_json
from tables import ROOT, minus, table

YES, NO, ERROR = "yes", "**no**", "turned down"


@dataclass(frozen=True)
class Way:
    """One way to get answers of a stack. `tests`: their names. `cost`: a key of `costs`, empty for none."""

    mode: str
    guarded: str
    tests: tuple[str, ...] = ()
    cost: str = ""


WAYS = {
    "`GuardedModel`, `d2unlearn generate`, `chat`": (
        Way(
            "greedy",
            YES,
            (
                "test_half_is_refused_and_the_rest_answered_as_without_a_gate",
                "test_rows_are_decided_alone",
                "test_the_decision_at_the_prompt_is_that_of_a_single_request",
            ),
            cost="generate",
        ),
        Way(
            "sampling, several sequences a prompt",
            YES,
            ("test_sampling_draws_from_the_seed_and_warns_once", "test_returned_sequences_are_decided_one_by_one"),
        ),
        Way(
            "beam search",
            YES,
            ("test_beams_of_a_refused_request_are_searched_no_further", "test_one_hypothesis_is_refused_and_another_answers"),
        ),
        Way("assisted decoding", YES, ("test_assisted_decoding_is_judged_by_the_tokens_that_were_accepted",)),
        Way("with an adapter (PEFT)", YES, ("test_an_adapter_is_judged_as_the_model_that_it_makes",)),
        Way(
            "streams",
            YES,
            (
                "test_a_stream_leaks_nothing_of_an_answer_refused_early",
                "test_of_a_refused_answer_so_much_less_is_shown_as_is_held_back",
            ),
        ),
        Way(
            "continuous batching and other ways",
            ERROR,
            ("test_it_is_refused_before_the_model_runs_and_allowed_raw", "test_continuous_batching_is_refused_by_its_own_name"),
        ),
    ),
    "transformers, the artifact's own code": (
        Way(
            "`trust_remote_code=True`",
            YES,
            (
                "test_it_answers_as_the_guarded_model",
                "test_assisted_answers_too",
                "test_it_needs_no_installation_of_this_package",
            ),
        ),
        Way("without it", NO, ("test_without_trust_the_gate_is_off_and_the_first_line_says_so",)),
    ),
    "`transformers serve`": (
        Way("with the artifact's code", YES, ("test_with_its_code_the_server_refuses_and_answers_as_the_guarded_model",)),
        Way("without it", NO, ("test_without_its_code_nothing_is_guarded",)),
        Way("`--continuous-batching`", ERROR, ("test_continuous_batching_answers_nothing",)),
    ),
    "`d2unlearn serve`": (
        Way(
            "whole answers, batched as they come",
            YES,
            (
                "test_the_client_gets_the_guarded_models_answers_and_refusals",
                "test_requests_that_come_together_share_batches_and_change_no_answer",
                "test_energies_that_cannot_be_computed_are_refusals",
                "test_a_crowd_of_connections_at_once_gets_each_its_own_answer",
                "test_a_gate_edited_by_hand_is_not_served",
                "test_a_server_is_killed_under_load_comes_back_and_stops_in_good_order",
            ),
            cost="serve",
        ),
        Way(
            "streams",
            YES,
            (
                "test_a_stream_says_the_same_and_leaks_nothing_that_the_early_looks_refuse",
                "test_a_stream_held_back_for_long_enough_shows_nothing_of_a_late_refusal",
            ),
        ),
        Way("sampling", YES, ("test_sampling_with_a_seed_is_repeatable_whatever_comes_beside_it",)),
        Way(
            "`--raw`",
            NO,
            (
                "test_raw_answers_say_that_nothing_guards_them",
                "test_an_artifact_without_a_gate_is_served_raw_only_when_that_is_asked_for",
            ),
        ),
    ),
    "conversations, every turn by itself": (
        Way(
            "`answer`, `stream`, `decide`",
            YES,
            (
                "test_the_highest_score_counts_alone_and_in_a_batch",
                "test_nothing_that_a_client_writes_around_a_refused_question_frees_it",
            ),
        ),
        Way(
            "`d2unlearn serve`, `play`",
            YES,
            ("test_the_same_decision_as_the_library", "test_a_stream_and_the_playground_say_the_same"),
        ),
        Way("where token ids alone are told", "as a whole", ("test_token_ids_alone_are_judged_as_a_whole",)),
    ),
    "`d2unlearn play`": (
        Way(
            "the guarded column",
            YES,
            (
                "test_the_three_answers_are_the_models_own_and_the_decision_is_the_gates",
                "test_a_click_on_a_question_shows_three_answers_the_decision_and_the_request_on_the_histogram",
            ),
        ),
    ),
    "likelihoods (lm-eval's multiple choice)": (Way("", NO, ("test_a_guarded_model_scores_no_likelihoods",)),),
    "llama.cpp, Ollama and other GGUF servers": (Way("", NO),),
    "SGLang, TGI": (Way("", NO),),
}


def serving_blocks(results: Path) -> dict[str, str]:
    """What stands between the marks of docs/serving.md."""
    measured, files = costs(results), files_of_tests()
    rows = [
        ["" if index else stack, way.mode, way.guarded, links(way.tests, files), measured.get(way.cost, "")]
        for stack, ways in WAYS.items()
        for index, way in enumerate(ways)
    ]
    note = "Overhead: median of rounds side by side, CPU time ([benchmarks](../benchmarks/README.md)).\n"
    head = ["stack", "mode", "guarded", "tested by", "the gate's overhead"]
    return {
        "serving-ways": table(head, rows, "lllll") + f"\n{note}",
        "serving-load": load_table(results),
        "conversations": conversation_table(results),
        "other-wordings": wordings_table(results),
        "drift": drift_table(results),
    }


def conversation_table(results: Path) -> str:
    """What `experiments/gate_conversations.py` wrote: refusals as a whole and with turns and sentences, and what these cost."""
    found = read_json(results / "gate" / "conversations.json")
    rows = [
        [family, *(share(found[kind][family][way]) for kind in ("forgotten", "retained") for way in ("whole", "turns"))]
        for family in found["forgotten"]
    ]
    head = [
        "what stands around a question",
        "forgotten, as a whole",
        "and every turn and sentence",
        "retained, as a whole",
        "and every turn and sentence",
    ]
    cost = "; ".join(
        f"{name} {each['median']:.2f} ({each['lowest']:.2f} to {each['highest']:.2f})"
        for name, each in found["overhead"].items()
    )
    asked = f"Refused, n = {found['n']} each ({found['model']}; score {found['score']})."
    return table(head, rows, "lrrrr") + f"\n{asked} CPU time with turns and sentences over without: {cost}.\n"


def wordings_table(results: Path) -> str:
    """What `experiments/gate_results.py` wrote, a file a world and set of wordings: a gate as it was beside one made anew."""
    rows = []
    for path in sorted((results / "gate" / "wordings").glob("*.json")):
        found = read_json(path)
        for when, each in found["all"].items():
            forget, *legitimate = (each[name] for name in ("forget", "unseen", "unrelated"))
            rows.append(
                [
                    f"{path.stem.replace('_', ', ')}; {when}, {found['score'][when]}",
                    f"{100 * forget['mean_over_wordings']:.0f}%",
                    f"{share(forget['refused'])} of {forget['requests']}",
                    f"{forget['leaked_all']} of {forget['asked_all']}",
                    *(
                        f"{100 * kept['refused'][0]:.1f}% of {kept['requests']}, at most {100 * kept['highest']:.0f}%"
                        for kept in legitimate
                    ),
                ]
            )
    head = [
        "world, wordings; gate, score",
        "mean over wordings",
        "requests",
        "told through it",
        "unseen rows refused",
        "unrelated rows refused",
    ]
    return table(head, rows, "lrrrrr")


def drift_table(results: Path) -> str:
    """What `experiments/drift_alarm.py` wrote: how often the alarm rings without drift, and how soon with one."""
    found = read_json(results / "gate" / "drift_alarm.json")
    rows = [
        [name, f"{100 * each['found']:g}%", f"{each['median']:g}" if each["median"] is not None else ""]
        for name, each in found["drifts"].items()
    ]
    levels = ", ".join(f"{100 * float(level):g}%: {100 * each:.2g}%" for level, each in found["rang"].items())
    note = (
        f"Without drift, of {found['runs']} simulated runs of {found['requests']} requests, calibrated on "
        f"{found['calibration']}, those that rang, by the rate that was allowed: {levels}.\n"
    )
    return table(["drift", "found", "requests until then, median"], rows, "lrr") + f"\n{note}"


def share(interval: Sequence[float]) -> str:
    """A share with its interval, in percent."""
    value, low, high = (100 * each for each in interval[:3])
    return f"{value:.0f}% ({low:.0f} to {high:.0f})"


def load_table(results: Path) -> str:
    """The table that `benchmarks/serving_load.py` wrote, and what it was measured on."""
    lines = (results / "serving_load.md").read_text(encoding="utf-8").splitlines()
    rows = [line for line in lines if line.startswith("|")]
    given = read_json(results / "serving_load.json")["settings"]
    note = f"{given['model']}, {given['clients']} clients, answers of {given['new_tokens']} tokens; {given['hardware']}."
    return "\n".join(rows) + f"\n\n{note[0].upper()}{note[1:]}\n"


def costs(results: Path) -> dict[str, str]:
    """The overheads that were measured, in percent of the same without a gate, for the larger of the models."""
    cases = read_json(results / "generation_overhead.json")["cases"]
    largest = max(case["parameters"] for case in cases)
    shown = [f"{_percent(case['ratio'] - 1)} at batch {case['batch_size']}" for case in cases if case["parameters"] == largest]
    load = read_json(results / "serving_load.json")
    ratio = load["throughput"]["ratio_cpu"]["median"]
    return {
        "generate": f"{', '.join(shown)} ({largest / 1e6:.0f}M parameters)",
        "serve": f"{_percent(1 / ratio - 1)} at batch {load['settings']['batch_size']}",
    }


def _percent(share: float) -> str:
    return minus(f"{100 * share:+.1f}%")


def files_of_tests() -> dict[str, Path]:
    """Where each test of answers and of servers is."""
    paths = [path for room in ("generation", "serving") for path in sorted((ROOT / "tests" / room).glob("test_*.py"))]
    named = re.compile(r"^def (test_\w+)", re.MULTILINE)
    return {name: path for path in paths for name in named.findall(path.read_text(encoding="utf-8"))}


def links(tests: Sequence[str], files: dict[str, Path]) -> str:
    """Links to the files with the tests' number; ends the script when a test is not there."""
    missing = [name for name in tests if name not in files]
    if missing:
        sys.exit(f"docs/serving.md: no test is called {', '.join(missing)}; mend WAYS in docs/build/serving_table.py")
    counted = Counter(files[name] for name in tests)
    shown = [
        f"[{path.stem.removeprefix('test_').replace('_', ' ')}](../{path.relative_to(ROOT).as_posix()}) ({count})"
        for path, count in counted.items()
    ]
    return ", ".join(shown) or "not run"
