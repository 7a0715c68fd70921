"""What the gate costs: guarded against plain `generate`, side by side in one process, in alternating order.

    python benchmarks/generation_overhead.py --model DIR        a model folder, beside a larger random Llama (H 512, V 32k)

Each repetition times both on the same prompts, the order swapped every time, and takes the ratio; the table shows its median
and quartiles. The gate's threshold is out of reach, so that both generate the same tokens (checked). Target: within 2%.
Writes benchmarks/results/generation_overhead.json.
"""

from __future__ import annotations

import argparse
import platform
import statistics
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from d2unlearn import EnergyGate, GuardedModel
from d2unlearn.models import load_model, load_tokenizer
from d2unlearn.runtime import write_json
from d2unlearn.schema import Example, Message
from measuring import measured_on, random_llama, word_tokenizer

CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}
RESULTS = Path(__file__).parent / "results" / "generation_overhead.json"
SHAPE = {"vocabulary": 32_000, "width": 512, "intermediate": 1376, "layers": 8, "heads": 8}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, help="a causal model folder to measure beside the random one")
    parser.add_argument("--repetitions", type=int, default=21)
    parser.add_argument("--new-tokens", type=int, default=32)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument(
        "--clock", choices=CLOCKS, default="wall", help="cpu: time of this process, on a machine that others use"
    )
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    models = {"random Llama, H 512, V 32k": (random_llama(**SHAPE), word_tokenizer(104))}
    if options.model is not None:
        models = {options.model.name: (load_model(options.model), load_tokenizer(options.model)), **models}
    cases = []
    for name, (model, tokenizer) in models.items():
        guarded = open_gate(model, tokenizer)
        for batch_size in (1, 16):
            cases.append({"model": name, **measure(guarded, batch_size, options)})
            print(cases[-1], flush=True)
    given = {"machine": platform.machine(), "threads": options.threads, "clock": options.clock}
    write_json(RESULTS, {**measured_on(), **given, "cases": cases})


def open_gate(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> GuardedModel:
    """The model with a real gate of the default score, whose threshold nothing reaches."""
    rows = [Example(str(i), (Message("user", f"w{i + 4} w{i + 5}"),), "w1", str(i)) for i in range(12)]
    gate = EnergyGate.calibrate(model, tokenizer, rows, max_false_refusal=0.5, max_new_tokens=4)
    return GuardedModel(model, tokenizer, replace(gate, calibration=replace(gate.calibration, threshold=1e30)))


def measure(guarded: GuardedModel, batch_size: int, options: argparse.Namespace) -> dict[str, float]:
    """Alternate the two and keep the ratio of each pair. Times in ms a token; `ratio` guarded over plain: quartiles."""
    new_tokens, clock = options.new_tokens, CLOCKS[options.clock]
    vocabulary = guarded.model.config.vocab_size
    prompts = torch.from_numpy(np.random.default_rng(0).integers(3, vocabulary, size=(batch_size, 24)))
    mask = torch.ones_like(prompts)

    def once(raw: bool) -> Tensor:
        lengths = {"max_new_tokens": new_tokens, "min_new_tokens": new_tokens}
        return guarded.generate(prompts, mask, do_sample=False, raw=raw, **lengths)

    assert torch.equal(once(raw=True), once(raw=False)), "both should generate the same tokens"
    seconds: dict[bool, list[float]] = {True: [], False: []}
    for repetition in range(options.repetitions):
        for raw in (True, False) if repetition % 2 else (False, True):
            start = clock()
            once(raw)
            seconds[raw].append(clock() - start)
    low, middle, high = statistics.quantiles([g / p for g, p in zip(seconds[False], seconds[True], strict=True)], n=4)
    step = 1000 / new_tokens
    return {
        "parameters": guarded.model.num_parameters(),
        "vocabulary": vocabulary,
        "batch_size": batch_size,
        "prompt_length": prompts.shape[1],
        "new_tokens": new_tokens,
        "repetitions": options.repetitions,
        "plain_ms": statistics.median(seconds[True]) * step,
        "guarded_ms": statistics.median(seconds[False]) * step,
        "ratio_low": low,
        "ratio": middle,
        "ratio_high": high,
    }


if __name__ == "__main__":
    main()
