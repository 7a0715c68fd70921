"""The tables of docs/serving.md: where the gate works, by which tests that is known, what it costs, and a server under load.

A row names tests, which have to exist, and a measurement, which is read from the kept results.
"""

from __future__ import annotations

import json
import re
import sys
from dataclasses import dataclass
from pathlib import Path

from tofu_page import table

ROOT = Path(__file__).resolve().parents[2]
YES, NO, ERROR = "yes", "**no**", "turned down"


@dataclass(frozen=True)
class Way:
    """One way to get answers. `tests`: file under tests/ and the names in it. `cost`: a key of `costs`, empty for none."""

    stack: str
    mode: str
    guarded: str
    tests: tuple[tuple[str, tuple[str, ...]], ...] = ()
    cost: str = ""


GUARDED, WAYS_OF, STREAMS = "generation/test_guarded.py", "generation/test_decoding_ways.py", "generation/test_streams.py"
CARRIED, OTHERS, UNWATCHED = (
    "generation/test_custom_generate.py",
    "generation/test_transformers_serve.py",
    "generation/test_unwatched.py",
)
OPENAI, LIMITS, HOSTILE, PROCESS, PLAY = (
    f"serving/test_{name}.py" for name in ("openai", "limits", "hostile", "process", "playground")
)

WAYS = (
    Way(
        "`GuardedModel`, `d2unlearn generate`, `chat`",
        "greedy",
        YES,
        (
            (GUARDED, ("test_half_is_refused_and_the_rest_answered_as_without_a_gate", "test_rows_are_decided_alone")),
            (WAYS_OF, ("test_the_decision_at_the_prompt_is_that_of_a_single_request",)),
        ),
        "generate",
    ),
    Way(
        "",
        "sampling, several sequences a prompt",
        YES,
        ((GUARDED, ("test_sampling_draws_from_the_seed_and_warns_once", "test_returned_sequences_are_decided_one_by_one")),),
    ),
    Way(
        "",
        "beam search",
        YES,
        (
            (
                WAYS_OF,
                (
                    "test_beams_of_a_refused_request_are_searched_no_further",
                    "test_one_hypothesis_is_refused_and_another_answers",
                ),
            ),
        ),
    ),
    Way("", "assisted decoding", YES, ((WAYS_OF, ("test_assisted_decoding_is_judged_by_the_tokens_that_were_accepted",)),)),
    Way("", "with an adapter (PEFT)", YES, ((WAYS_OF, ("test_an_adapter_is_judged_as_the_model_that_it_makes",)),)),
    Way(
        "",
        "streams",
        YES,
        (
            (GUARDED, ("test_a_stream_leaks_nothing_of_an_answer_refused_early",)),
            (STREAMS, ("test_of_a_refused_answer_so_much_less_is_shown_as_is_held_back",)),
        ),
    ),
    Way(
        "",
        "continuous batching and other ways",
        ERROR,
        (
            (
                UNWATCHED,
                (
                    "test_it_is_refused_before_the_model_runs_and_allowed_raw",
                    "test_continuous_batching_is_refused_by_its_own_name",
                ),
            ),
        ),
    ),
    Way(
        "transformers, the artifact's own code",
        "`trust_remote_code=True`",
        YES,
        (
            (
                CARRIED,
                (
                    "test_it_answers_as_the_guarded_model",
                    "test_assisted_answers_too",
                    "test_it_needs_no_installation_of_this_package",
                ),
            ),
        ),
    ),
    Way("", "without it", NO, ((CARRIED, ("test_without_trust_the_gate_is_off_and_the_first_line_says_so",)),)),
    Way(
        "`transformers serve`",
        "with the artifact's code",
        YES,
        ((OTHERS, ("test_with_its_code_the_server_refuses_and_answers_as_the_guarded_model",)),),
    ),
    Way("", "without it", NO, ((OTHERS, ("test_without_its_code_nothing_is_guarded",)),)),
    Way("", "`--continuous-batching`", ERROR, ((OTHERS, ("test_continuous_batching_answers_nothing",)),)),
    Way(
        "`d2unlearn serve`",
        "whole answers, batched as they come",
        YES,
        (
            (
                OPENAI,
                (
                    "test_the_client_gets_the_guarded_models_answers_and_refusals",
                    "test_requests_that_come_together_share_batches_and_change_no_answer",
                ),
            ),
            (LIMITS, ("test_energies_that_cannot_be_computed_are_refusals",)),
            (
                HOSTILE,
                ("test_a_crowd_of_connections_at_once_gets_each_its_own_answer", "test_a_gate_edited_by_hand_is_not_served"),
            ),
            (PROCESS, ("test_a_server_is_killed_under_load_comes_back_and_stops_in_good_order",)),
        ),
        "serve",
    ),
    Way(
        "",
        "streams",
        YES,
        (
            (
                OPENAI,
                (
                    "test_a_stream_says_the_same_and_leaks_nothing_that_the_early_looks_refuse",
                    "test_a_stream_held_back_for_long_enough_shows_nothing_of_a_late_refusal",
                ),
            ),
        ),
    ),
    Way("", "sampling", YES, ((OPENAI, ("test_sampling_with_a_seed_is_repeatable_whatever_comes_beside_it",)),)),
    Way(
        "",
        "`--raw`",
        NO,
        (
            (OPENAI, ("test_raw_answers_say_that_nothing_guards_them",)),
            (HOSTILE, ("test_an_artifact_without_a_gate_is_served_raw_only_when_that_is_asked_for",)),
        ),
    ),
    Way(
        "`d2unlearn play`",
        "the guarded column",
        YES,
        (
            (
                PLAY,
                (
                    "test_the_three_answers_are_the_models_own_and_the_decision_is_the_gates",
                    "test_a_click_on_a_question_shows_three_answers_the_decision_and_the_request_on_the_histogram",
                ),
            ),
        ),
    ),
    Way("likelihoods (lm-eval's multiple choice)", "", NO, ((UNWATCHED, ("test_a_guarded_model_scores_no_likelihoods",)),)),
    Way("llama.cpp, Ollama and other GGUF servers", "", NO),
    Way("SGLang, TGI", "", NO),
)


def serving_blocks(results: Path) -> dict[str, str]:
    """What stands between the marks of docs/serving.md."""
    measured = costs(results)
    rows = [[way.stack, way.mode, way.guarded, _tests(way), measured.get(way.cost, "")] for way in WAYS]
    note = "Overhead: median of rounds side by side, CPU time ([benchmarks](../benchmarks/README.md)).\n"
    head = ["stack", "mode", "guarded", "tested by", "the gate's overhead"]
    return {"serving-ways": table(head, rows, "lllll") + f"\n{note}", "serving-load": load_table(results)}


def load_table(results: Path) -> str:
    """The table that `benchmarks/serving_load.py` wrote, and what it was measured on."""
    lines = (results / "serving_load.md").read_text(encoding="utf-8").splitlines()
    rows = [line for line in lines if line.startswith("|")]
    given = json.loads((results / "serving_load.json").read_text(encoding="utf-8"))["settings"]
    note = f"{given['model']}, {given['clients']} clients, answers of {given['new_tokens']} tokens; {given['hardware']}."
    return "\n".join(rows) + f"\n\n{note[0].upper()}{note[1:]}\n"


def costs(results: Path) -> dict[str, str]:
    """The overheads that were measured, in percent of the same without a gate, for the larger of the models."""
    cases = json.loads((results / "generation_overhead.json").read_text(encoding="utf-8"))["cases"]
    largest = max(case["parameters"] for case in cases)
    shown = [f"{_percent(case['ratio'] - 1)} at batch {case['batch_size']}" for case in cases if case["parameters"] == largest]
    load = json.loads((results / "serving_load.json").read_text(encoding="utf-8"))
    ratio = load["throughput"]["ratio_cpu"]["median"]
    return {
        "generate": f"{', '.join(shown)} ({largest / 1e6:.0f}M parameters)",
        "serve": f"{_percent(1 / ratio - 1)} at batch {load['settings']['batch_size']}",
    }


def _percent(share: float) -> str:
    return f"{100 * share:+.1f}%".replace("-", "−")


def _tests(way: Way) -> str:
    """Links to the files with the tests' number; ends the script when one is not there."""
    links = []
    for file, names in way.tests:
        found = set(re.findall(r"^def (test_\w+)", (ROOT / "tests" / file).read_text(encoding="utf-8"), re.MULTILINE))
        missing = [name for name in names if name not in found]
        if missing:
            sys.exit(f"docs/serving.md: tests/{file} has no {', '.join(missing)}; mend WAYS in docs/build/serving_table.py")
        links.append(f"[{Path(file).stem.removeprefix('test_').replace('_', ' ')}](../tests/{file}) ({len(names)})")
    return ", ".join(links) or "not run"
