"""What `serving_load.py` measured, as a person reads it."""

from __future__ import annotations

from typing import Any

GOAL = 0.98
"""Guarded throughput over raw."""


def page(result: dict[str, Any]) -> str:
    """The result as a person reads it."""
    given, rate, refusals, marks_, again = (
        result[name] for name in ("settings", "throughput", "refusals", "markers", "restart")
    )

    def shown(value: dict[str, float]) -> str:
        return f"{value['median']:.3f} ({value['p10']:.3f} to {value['p90']:.3f})"

    def answers(seen: dict[str, int]) -> str:
        return f"{seen['own']} own, {seen['rounded']} rounded, {seen['mixed_up']} mixed up, {seen['lost']} lost"

    before, after, bad = again["before"], again["after"], result["bad_client"]
    waits, sent = bad["p95_seconds"], ", ".join(f"{count} {what}" for what, count in bad["bad_requests"].items())
    rows = (
        ("guarded / raw throughput, CPU time", f"higher; aim {GOAL}", shown(rate["ratio_cpu"])),
        ("guarded / raw throughput, elapsed", f"higher; aim {GOAL}", shown(rate["ratio_elapsed"])),
        (
            "requests a second, elapsed: guarded / raw",
            "",
            f"{rate['guarded_requests_per_second']:.2f} / {rate['raw_requests_per_second']:.2f}",
        ),
        ("answers in these rounds", "", answers(rate["answers"])),
        ("CPU time of a refusal / of an answer", "lower", shown(refusals["ratio"])),
        ("CPU ms a request: refused / answered", "", f"{refusals['refusal_cpu_ms']:.1f} / {refusals['answer_cpu_ms']:.1f}"),
        (f"answers on {marks_['connections']} connections at once, half of them streamed", "", answers(marks_)),
        ("killed under load, before", "", f"{answers(before)}; {before['connection_error']} connection errors"),
        ("killed under load, after", "", f"{answers(after)}; {after['connection_error']} connection errors"),
        ("from the kill until it listens again", "", f"{again['seconds_to_listen_again']:.1f} s, loading included"),
        (
            f"95th percentile of {bad['clients']} clients' waits, beside a bad client / without it",
            f"lower; aim {bad['aim']}",
            f"{bad['p95_ratio']:.3f} ({waits['with']:.2f} s / {waits['without']:.2f} s)",
        ),
        ("the same by round", f"lower; aim {bad['aim']}", shown(bad["p95_ratio_of_a_round"])),
        ("what the bad client did meanwhile", "", sent),
    )
    lines = "\n".join(f"| {what} | {better} | {value} |" for what, better, value in rows)
    return f"""# `d2unlearn serve` under load

Written by `benchmarks/serving_load.py`. Ratios are medians over {given["rounds"]} rounds (10th to 90th percentile).

{given["hardware"]}; torch {given["torch"]}, transformers {given["transformers"]}.
{given["model"][0].upper()}{given["model"][1:]}; {given["clients"]} clients at once, prompts of {given["prompt_words"]} words,
answers of {given["new_tokens"]} tokens, batches of up to {given["batch_size"]}. An answer is its prompt's own when it is, word
for word, what the model says to that prompt alone; rounded when batching changed a later token.

| | better | |
|---|---|---|
{lines}
"""
