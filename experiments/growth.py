"""What training needs as model and data grow, measured, beside what `d2unlearn.training.estimate` says of the same.

    python experiments/growth.py [--case NAME ...]

Each case is a process of its own, or two that share a model: a random Llama takes two steps of EUA, and its largest resident
memory less what it had before the model was made (and less what is mapped of its file and not used), and the CPU seconds of the
second step, are written to benchmarks/results/growth.json. Cases that stand there already are left out. One thread. glibc keeps
freed memory of middling size unless it is told not to, as here (MALLOC_MMAP_THRESHOLD_); without that the same processes held
up to 1.8 times as much.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from d2unlearn.training.estimate import ModelShape, StepShape, TrainingSetup, llama_shape, peak_memory, step_operations

RESULTS = Path(__file__).parent.parent / "benchmarks" / "results" / "growth.json"
STEPS = 2


@dataclass(frozen=True)
class Case:
    """One process, or `devices`: a Llama, rows of `width` tokens of which `answer` are the answer, how it trains."""

    vocabulary: int = 8000
    hidden: int = 512
    layers: int = 4
    batch: int = 4
    width: int = 192
    answer: int = 64
    rank: int = 0
    bits: int | None = None
    weight_bytes: int = 4
    mixed: bool = False
    checkpointing: bool = False
    accumulation: int = 1
    devices: int = 1

    @property
    def sizes(self) -> tuple[int, int, int, int, int, int]:
        """Vocabulary, hidden, layers, intermediate, heads, heads of keys."""
        heads = max(2, self.hidden // 64)
        return self.vocabulary, self.hidden, self.layers, self.hidden * 8 // 3 // 16 * 16, heads, heads // 2

    @property
    def shape(self) -> ModelShape:
        return llama_shape(*self.sizes)

    @property
    def rows(self) -> int:
        """Of each side, for all steps and devices."""
        return self.batch * self.accumulation * STEPS * self.devices

    @property
    def step(self) -> StepShape:
        """Every second row is a token shorter. An adapter leaves the head as it is, so it is not copied."""
        stored = 2 * self.rows * self.answer * self.hidden * self.weight_bytes
        positions = 2 * (self.batch * self.answer - self.batch // 2)
        return StepShape(2 * self.batch, self.width, positions, self.accumulation, stored, 0 if self.rank else 1)

    @property
    def setup(self) -> TrainingSetup:
        return TrainingSetup(
            self.weight_bytes, self.rank, self.bits, self.mixed, self.checkpointing, self.devices, self.devices > 1
        )


BASE = Case()
SETUPS = {
    "full": BASE,
    "full, bf16 autocast": replace(BASE, mixed=True),
    "full, checkpointed": replace(BASE, checkpointing=True),
    "full, two batches an update": replace(BASE, accumulation=2),
    "LoRA": replace(BASE, rank=16),
    "LoRA, weights in bf16": replace(BASE, rank=16, weight_bytes=2),
    "LoRA, base in 8 bits": replace(BASE, rank=16, bits=8),
    "LoRA, base in 4 bits": replace(BASE, rank=16, bits=4),
    "full, FSDP2 on 2 devices": replace(BASE, devices=2),
    "LoRA, FSDP2 on 2 devices": replace(BASE, rank=16, devices=2),
}
SMALL = replace(BASE, hidden=128, layers=2, width=64, answer=24)
SWEEPS = {
    **{f"vocabulary {v}": replace(SMALL, vocabulary=v) for v in (4096, 32768, 131072, 262144)},
    **{f"tokens {t}": replace(SMALL, width=t, answer=t * 3 // 8) for t in (32, 128, 256)},
    **{f"rows {b}": replace(SMALL, batch=b) for b in (2, 8, 16)},
    **{f"hidden {h}": replace(SMALL, hidden=h) for h in (64, 256, 512)},
    **{f"layers {n}": replace(SMALL, layers=n) for n in (1, 4, 8)},
}
CASES = {**SETUPS, **SWEEPS}


def measure(case: Case) -> dict[str, Any]:
    """In the process of the case: largest memory in MiB above that of the imports, CPU seconds of the last step."""
    import numpy as np
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM, TrainerCallback

    from d2unlearn import UnlearnConfig, UnlearnTrainer
    from d2unlearn.methods import METHODS
    from d2unlearn.models import low_rank_config
    from d2unlearn.schema import Tokens

    torch.set_num_threads(1)

    def rows(seed: int) -> list[Tokens]:
        rng, prompt = np.random.default_rng(seed), case.width - case.answer
        lengths = [case.width - number % 2 for number in range(case.rows)]
        return [
            Tokens(
                f"{seed}-{number}",
                tuple(rng.integers(4, case.vocabulary, length).tolist()),
                (False,) * prompt + (True,) * (length - prompt),
                True,
            )
            for number, length in enumerate(lengths)
        ]

    class Clock(TrainerCallback):  # type: ignore[misc]
        seconds: float = 0.0

        def on_step_begin(self, *_: Any, **__: Any) -> None:
            self.began = time.process_time()

        def on_step_end(self, *_: Any, **__: Any) -> None:
            self.seconds = time.process_time() - self.began

    v, h, n, i, heads, kv = case.sizes
    config = LlamaConfig(
        vocab_size=v, hidden_size=h, num_hidden_layers=n, intermediate_size=i, num_attention_heads=heads, num_key_value_heads=kv
    )
    dtype = torch.bfloat16 if case.weight_bytes == 2 else torch.float32
    with tempfile.TemporaryDirectory() as folder:
        torch.manual_seed(0)
        if case.bits:
            import bitsandbytes  # noqa: F401 - a library's own memory is none of the model's

            from d2unlearn.models import load_model

            LlamaForCausalLM(config).save_pretrained(folder)
            before = resident("VmRSS")
            model: Any = load_model(folder, dtype=dtype, quantization=f"{case.bits}bit")
        else:
            before = resident("VmRSS")
            model = LlamaForCausalLM(config).to(dtype)
        arguments = UnlearnConfig(
            folder,
            num_train_epochs=1,
            per_device_train_batch_size=case.batch,
            per_device_eval_batch_size=case.batch,
            gradient_accumulation_steps=case.accumulation,
            eval_strategy="no",
            save_strategy="no",
            disable_tqdm=True,
            use_cpu=True,
            report_to="none",
            bf16=case.mixed,
            activation_checkpointing=case.checkpointing,
            fsdp=case.devices > 1,
        )
        clock = Clock()
        adapter = low_rank_config(case.rank) if case.rank else None
        trainer = UnlearnTrainer(model, arguments, METHODS["eua"](), rows(1), rows(2), peft_config=adapter, callbacks=[clock])
        Path("/proc/self/clear_refs").write_text("5")
        trainer.train()
        trainer.evaluate()
        as_saved = (case.shape.parameters - case.shape.linear_parameters) * case.weight_bytes
        needed = resident("VmHWM") - before - max(0, mapped(folder) - as_saved)
        return {"mib": round(needed / 2**20, 1), "seconds": round(clock.seconds, 3)}


def mapped(folder: str) -> int:
    """Bytes of the folder's files that are resident because they are mapped, which the system takes back when it needs them.

    Of a quantised base embedding and head are used so, and the pages of the weights that were quantised stay beside them.
    """
    total, inside = 0, False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        head = line.split(maxsplit=5)
        if "-" in head[0] and not head[0].endswith(":"):
            inside = len(head) == 6 and head[5].startswith(folder)
        elif inside and head[0] == "Rss:":
            total += int(head[1]) * 1024
    return total


def resident(key: str) -> int:
    """Bytes of this process: VmRSS now, VmHWM at the largest."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(key)) * 1024


def estimated(case: Case) -> dict[str, Any]:
    """The same from the formulas: MiB by part at the peak, and 10^9 operations of a step."""
    memory = peak_memory(case.shape, case.step, case.setup)
    parts = {name: round(value / 2**20, 1) for name, value in memory._asdict().items() if name != "moments"}
    operations = step_operations(case.shape, case.step, case.setup) * case.accumulation
    return {"mib": round(memory.peak / 2**20, 1), "moment": memory.moment, "parts": parts, "gflop": round(operations / 1e9, 2)}


def run(name: str) -> dict[str, Any]:
    """Start the case's process, or torchrun for several, and return what it printed (of several processes the largest)."""
    case = CASES[name]
    launcher = [sys.executable, "-W", "ignore"]
    if case.devices > 1:
        launcher += ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(case.devices)]
    command = [*launcher, __file__, "--measure", name]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "MALLOC_MMAP_THRESHOLD_": "65536"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    found = [json.loads(line) for line in done.stdout.splitlines() if line.startswith('{"mib"')]
    if not found:
        raise SystemExit(f"{name}: {done.stderr[-2000:]}")
    return max(found, key=lambda measured: measured["mib"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--case", nargs="*", default=list(CASES))
    parser.add_argument("--measure")
    given = parser.parse_args()
    if given.measure:
        print(json.dumps(measure(CASES[given.measure])), flush=True)
        return
    results = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    for name in given.case:
        measured = results.get(name, {}).get("measured") or run(name)
        case, said = CASES[name], estimated(CASES[name])
        results[name] = {
            "case": asdict(case),
            "parameters": case.shape.parameters,
            "measured": measured,
            "estimated": said,
            "ratio": round(said["mib"] / measured["mib"], 3),
        }
        kept = {key: results[key] for key in CASES if key in results}
        RESULTS.write_text(json.dumps(kept, indent=1) + "\n")
        print(f"{name}: {measured['mib']} MiB, estimated {said['mib']}; {measured['seconds']} s", flush=True)


if __name__ == "__main__":
    main()
