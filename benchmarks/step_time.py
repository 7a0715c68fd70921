"""Time and memory of one EUA step: the trainer's own, the reference's restated literally, and the floor.

    reference   two models, five forwards, dense margins                              (reference_step.py)
    ours        `UnlearnTrainer.training_step` with the reference's margins stored    (the real trainer, nothing left out)
    plain       the floor: transformers' own fine-tuning step on the same tokens      (one forward with labels)

Times come from rounds in which every variant runs once, in alternating order; a ratio is taken within a round, so that what
else the machine does falls on both sides. Elapsed time and CPU time are both kept: with one thread the second does not count
what other processes took. Memory is measured in one fresh process a variant. Run by hand, on a machine as idle as can be:

    python benchmarks/step_time.py                       # writes benchmarks/results/step_time.{json,md}
    python benchmarks/step_time.py --sizes 4k --rounds 5 --output runs/step_time
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel, Trainer

from d2unlearn.methods import EUA
from d2unlearn.observation import Batch, join
from d2unlearn.runtime import atomic_write, write_json
from d2unlearn.schema import Role
from d2unlearn.training.frozen import frozen_values
from d2unlearn.training.trainer import UnlearnConfig, UnlearnTrainer
from measuring import in_fresh_process, measured_on, peak_mib, random_llama, random_row, resident_mib, spread
from reference_step import frozen_margins, reference_step_loss

RESULTS = Path(__file__).parent / "results" / "step_time"
VARIANTS = ("reference", "ours", "plain")
BATCH = 8
ROWS = 4 * BATCH
WARM_UP = 2
METHOD = EUA()


class Size(NamedTuple):
    """A random Llama with tied embeddings."""

    vocabulary: int
    width: int = 256
    layers: int = 4
    heads: int = 8
    intermediate: int = 688


SIZES = {"4k": Size(4096), "128k": Size(128_256)}
"""The first has the shape of a small TOFU model, the second a real vocabulary."""
ROUNDS = {"4k": 41, "128k": 9}


@dataclass(frozen=True)
class Variant:
    """One way to do a step. `backward` runs forward and backward and returns the loss; `update` is the optimizer's part."""

    name: str
    model: nn.Module
    backward: Callable[[], Tensor]
    optimizer: torch.optim.Optimizer

    def update(self) -> None:
        nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", nargs="+", choices=list(SIZES), default=list(SIZES))
    parser.add_argument("--rounds", type=int, help=f"default: {ROUNDS}")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--memory-runs", type=int, default=3)
    parser.add_argument("--output", type=Path, default=RESULTS, help="without ending: .json and .md are added")
    parser.add_argument("--memory-of", choices=VARIANTS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    if options.memory_of:
        print(json.dumps(peak_memory(options.memory_of, SIZES[options.sizes[0]])))
        return
    result = {"settings": settings(options), "sizes": {name: measure(name, options) for name in options.sizes}}
    write_json(options.output.with_suffix(".json"), result)
    atomic_write(options.output.with_suffix(".md"), page(result))
    print(page(result))


def settings(options: argparse.Namespace) -> dict[str, Any]:
    """What the numbers depend on beside the code."""
    return {
        **measured_on(),
        "threads": options.threads,
        "batch": f"{BATCH} forget + {BATCH} retained rows of 48 to 80 tokens, the second half of each its answer",
        "method": repr(METHOD),
        "optimizer": "AdamW as the trainer makes it, gradients clipped at 1",
        "memory": "VmHWM (reset before the step) less the resident size once the policy's weights are loaded; one fresh "
        "process a variant; forward, backward and gradients, without the optimizer; the reference's second model counts",
    }


def measure(name: str, options: argparse.Namespace) -> dict[str, Any]:
    """All numbers of one model size."""
    print(f"V = {name}: time", file=sys.stderr)
    rounds = options.rounds or ROUNDS[name]
    variants, batches, trainer = prepare(SIZES[name])
    losses = {variant.name: float(variant.backward()) for variant in variants}
    if not math.isclose(losses["ours"], losses["reference"], rel_tol=1e-4):
        sys.exit(f"ours and the reference do not compute the same loss: {losses}")
    times = timed(variants, rounds)
    frozen = reference_pass(trainer, variants[0], batches, max(3, rounds // 4))
    print(f"V = {name}: memory", file=sys.stderr)
    return {
        "model": SIZES[name]._asdict(),
        "answer_positions": sum(int((b.labels[:, 1:] != -100).sum()) for b in batches.values()),
        "positions": join(list(batches.values())).input_ids.numel(),
        "loss": losses,
        "rounds": rounds,
        "forward_and_backward": summary({variant: steps[:, 0] for variant, steps in times.items()}),
        "forward_and_backward_cpu": summary({variant: steps[:, 1] for variant, steps in times.items()}),
        "with_optimizer": summary({variant: steps[:, 2] for variant, steps in times.items()}),
        "with_optimizer_cpu": summary({variant: steps[:, 3] for variant, steps in times.items()}),
        "reference_pass": frozen,
        "peak_memory": memory(name, options),
    }


# -- the variants -------------------------------------------------------------------------------------------------------


def prepare(size: Size) -> tuple[list[Variant], dict[Role, Batch], UnlearnTrainer]:
    """The three variants on equal weights and the same rows; the trainer collates them as in a run."""
    trainer = make_trainer(make_model(size), size)
    inputs = first_inputs(trainer)
    batches: dict[Role, Batch] = {"forget": Batch(**inputs["forget"]), "retain": Batch(**inputs["retain"])}
    policy, plain = make_model(size), make_model(size)
    frozen = make_model(size)
    variants = [
        Variant("reference", policy, reference_backward(policy, frozen, batches), optimizer_for(policy, trainer.args)),
        Variant("ours", trainer.model, trainer_backward(trainer, inputs), optimizer_for(trainer.model, trainer.args)),
        Variant("plain", plain, plain_backward(plain, batches), optimizer_for(plain, trainer.args)),
    ]
    return variants, batches, trainer


def make_model(size: Size) -> PreTrainedModel:
    """A random Llama; the same weights at every call."""
    return random_llama(**size._asdict(), max_position_embeddings=512, tie_word_embeddings=True, use_cache=False).train()


def make_trainer(model: PreTrainedModel, size: Size) -> UnlearnTrainer:
    rng = np.random.default_rng(0)
    rows = {
        role: [random_row(f"{role}-{index}", int(rng.integers(48, 81)), size.vocabulary, rng) for index in range(ROWS)]
        for role in ("forget", "retain")
    }
    arguments = UnlearnConfig(
        output_dir=tempfile.mkdtemp(prefix="step_time_"),
        per_device_train_batch_size=BATCH,
        gradient_accumulation_steps=1,
        eval_rows=BATCH,
        use_cpu=True,
        report_to="none",
        disable_tqdm=True,
        save_strategy="no",
        load_best_model_at_end=False,
    )
    return UnlearnTrainer(model, arguments, METHOD, rows["forget"], rows["retain"])


def first_inputs(trainer: UnlearnTrainer) -> dict[str, Any]:
    """The first micro-batch as `train` hands it to `training_step`, with the counts of its effective batch."""
    samples, _ = trainer.get_batch_samples(iter(trainer.get_train_dataloader()), 1, trainer.args.device)
    return dict(samples[0])


def optimizer_for(model: nn.Module, args: UnlearnConfig) -> torch.optim.Optimizer:
    kind, options = Trainer.get_optimizer_cls_and_kwargs(args)
    return kind(model.parameters(), **options)  # type: ignore[no-any-return]


def trainer_backward(trainer: UnlearnTrainer, inputs: Mapping[str, Any]) -> Callable[[], Tensor]:
    return lambda: trainer.training_step(trainer.model, dict(inputs))


def reference_backward(policy: nn.Module, frozen: nn.Module, batches: Mapping[Role, Batch]) -> Callable[[], Tensor]:
    frozen.eval()

    def backward() -> Tensor:
        loss = reference_step_loss(policy, frozen, batches["forget"], batches["retain"], METHOD)
        loss.backward()  # type: ignore[no-untyped-call]
        return loss.detach()

    return backward


def plain_backward(model: nn.Module, batches: Mapping[Role, Batch]) -> Callable[[], Tensor]:
    rows = join(list(batches.values()))

    def backward() -> Tensor:
        loss: Tensor = model(input_ids=rows.input_ids, attention_mask=rows.attention_mask, labels=rows.labels).loss
        loss.backward()  # type: ignore[no-untyped-call]
        return loss.detach()

    return backward


# -- time ---------------------------------------------------------------------------------------------------------------


def timed(variants: Sequence[Variant], rounds: int) -> dict[str, np.ndarray]:
    """Each variant's steps, [rounds, 4]. The order turns by one place a round and is reversed every other round."""
    times: dict[str, list[tuple[float, ...]]] = {variant.name: [] for variant in variants}
    for index in range(-WARM_UP, rounds):
        turn = index % len(variants)
        order = [*variants[turn:], *variants[:turn]]
        for variant in order[:: 1 if index % 2 else -1]:
            times[variant.name].append(one_step(variant))
    return {name: np.array(steps[WARM_UP:]) for name, steps in times.items()}


def one_step(variant: Variant) -> tuple[float, ...]:
    """Seconds of forward and backward, elapsed and of the CPU, and the same with the optimizer's part."""
    variant.optimizer.zero_grad(set_to_none=True)
    start, start_cpu = time.perf_counter(), time.process_time()
    variant.backward()
    middle, middle_cpu = time.perf_counter(), time.process_time()
    variant.update()
    end, end_cpu = time.perf_counter(), time.process_time()
    variant.optimizer.zero_grad(set_to_none=True)
    return middle - start, middle_cpu - start_cpu, end - start, end_cpu - start_cpu


def summary(seconds: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """Medians in milliseconds, and ratios taken within rounds: median, 10th and 90th percentile."""
    return {
        "median_ms": {name: milliseconds(steps) for name, steps in seconds.items()},
        "reference_over_ours": spread(seconds["reference"] / seconds["ours"]),
        "ours_over_plain": spread(seconds["ours"] / seconds["plain"]),
    }


def milliseconds(seconds: Sequence[float] | np.ndarray) -> float:
    return round(1e3 * float(np.median(seconds)), 1)


def reference_pass(trainer: UnlearnTrainer, reference: Variant, batches: Mapping[Role, Batch], repeats: int) -> dict[str, Any]:
    """CPU time of our one pass over `ROWS` forget and `ROWS` retained rows, and the frozen forwards of an epoch over them."""
    ours, theirs = [], []
    for _ in range(repeats):
        started = time.process_time()
        frozen_values(trainer.model, METHOD, trainer._rows, batch_size=trainer.args.per_device_eval_batch_size)
        ours.append(time.process_time() - started)
        started = time.process_time()
        for _ in range(ROWS // BATCH):
            frozen_margins(reference.model, batches["forget"], batches["retain"], METHOD)
        theirs.append(time.process_time() - started)
    return {
        "rows": 2 * ROWS,
        "median_ms": milliseconds(ours),
        "frozen_forwards_of_an_epoch_median_ms": milliseconds(theirs),
        "pass_over_epoch": spread(np.array(ours) / np.array(theirs)),
    }


# -- memory -------------------------------------------------------------------------------------------------------------


def memory(name: str, options: argparse.Namespace) -> dict[str, Any]:
    """Peak MiB of each variant, the median of fresh processes, and ratios of the medians."""
    given = ("--sizes", name, "--threads", options.threads, "--memory-of")
    runs = {variant: [in_fresh_process(__file__, *given, variant) for _ in range(options.memory_runs)] for variant in VARIANTS}
    peak = {variant: float(np.median([run["step"] for run in some])) for variant, some in runs.items()}
    return {
        "step_mib": peak,
        "our_reference_pass_mib": float(np.median([run["construction"] for run in runs["ours"]])),
        "ours_over_reference": round(peak["ours"] / peak["reference"], 3),
        "ours_over_plain": round(peak["ours"] / peak["plain"], 3),
    }


def peak_memory(name: str, size: Size) -> dict[str, float]:
    """Peak of two steps above the loaded policy in MiB, and that of what comes before them (our reference pass)."""
    tiny = Size(64, 16, 1, 1, 16)
    warm = make_trainer(make_model(tiny), tiny)
    warm.training_step(warm.model, first_inputs(warm))
    model, made = make_model(size), list[UnlearnTrainer]()
    baseline = resident_mib()
    construction = peak_mib(lambda: made.extend([make_trainer(model, size)] if name == "ours" else [])) - baseline
    backward = backward_of(name, model, made[0] if made else None, size)

    def two_steps() -> None:
        for _ in range(2):
            model.zero_grad(set_to_none=True)
            backward()

    return {"step": round(peak_mib(two_steps) - baseline, 1), "construction": round(construction, 1)}


def backward_of(name: str, model: PreTrainedModel, trainer: UnlearnTrainer | None, size: Size) -> Callable[[], Tensor]:
    """One variant alone. Without a trainer the rows are those of one with a model as small as can be but for its vocabulary."""
    small = Size(size.vocabulary, 8, 1, 1, 8)
    inputs = first_inputs(trainer or make_trainer(make_model(small), small))
    batches: dict[Role, Batch] = {"forget": Batch(**inputs["forget"]), "retain": Batch(**inputs["retain"])}
    if trainer is not None:
        return trainer_backward(trainer, inputs)
    if name == "reference":
        return reference_backward(model, make_model(size), batches)
    return plain_backward(model, batches)


# -- the page -----------------------------------------------------------------------------------------------------------


def page(result: Mapping[str, Any]) -> str:
    """The results as a page of Markdown."""
    given = result["settings"]
    lines = [
        "# One EUA step: time and memory",
        "",
        "Written by `benchmarks/step_time.py`. Ratios are medians over rounds (10th to 90th percentile).",
        "",
        f"{given['hardware']}, {given['threads']} thread; torch {given['torch']}, transformers {given['transformers']}. "
        f"Batch: {given['batch']}. {given['optimizer']}. Memory: {given['memory']}.",
        "",
        "| | better | " + " | ".join(f"V = {name}" for name in result["sizes"]) + " |",
        "|---|---|" + "---|" * len(result["sizes"]),
    ]
    for label, better, cell in ROWS_OF_PAGE:
        lines.append(f"| {label} | {better} | " + " | ".join(cell(size) for size in result["sizes"].values()) + " |")
    return "\n".join(lines) + "\n"


def ratio(value: Mapping[str, float]) -> str:
    return f"{value['median']:.2f} ({value['p10']:.2f} to {value['p90']:.2f})"


def amounts(value: Mapping[str, float]) -> str:
    return " / ".join(f"{value[name]:,.0f}" for name in VARIANTS)


Cell = Callable[[Mapping[str, Any]], str]
SPEED, FLOOR = "reference_over_ours", "ours_over_plain"
ROWS_OF_PAGE: tuple[tuple[str, str, Cell], ...] = (
    ("model: layers x width; rounds", "", lambda s: f"{s['model']['layers']} x {s['model']['width']}; {s['rounds']}"),
    ("answer positions of all positions", "", lambda s: f"{s['answer_positions']} of {s['positions']}"),
    ("**forward + backward: reference / ours**", "higher", lambda s: ratio(s["forward_and_backward"][SPEED])),
    ("the same in CPU time", "higher", lambda s: ratio(s["forward_and_backward_cpu"][SPEED])),
    ("**forward + backward: ours / plain**", "lower", lambda s: ratio(s["forward_and_backward"][FLOOR])),
    ("the same in CPU time", "lower", lambda s: ratio(s["forward_and_backward_cpu"][FLOOR])),
    ("with AdamW: reference / ours", "higher", lambda s: ratio(s["with_optimizer"][SPEED])),
    ("with AdamW: ours / plain", "lower", lambda s: ratio(s["with_optimizer"][FLOOR])),
    ("forward + backward, CPU ms: reference / ours / plain", "", lambda s: amounts(s["forward_and_backward_cpu"]["median_ms"])),
    ("with AdamW, CPU ms: reference / ours / plain", "", lambda s: amounts(s["with_optimizer_cpu"]["median_ms"])),
    ("**peak memory: ours / reference**", "lower", lambda s: f"{s['peak_memory']['ours_over_reference']:.2f}"),
    ("peak memory: ours / plain", "lower", lambda s: f"{s['peak_memory']['ours_over_plain']:.2f}"),
    ("peak memory, MiB: reference / ours / plain", "", lambda s: amounts(s["peak_memory"]["step_mib"])),
    ("our reference pass, peak MiB", "lower", lambda s: f"{s['peak_memory']['our_reference_pass_mib']:,.0f}"),
    (
        "our reference pass / the frozen forwards of one epoch over the same rows",
        "lower",
        lambda s: ratio(s["reference_pass"]["pass_over_epoch"]),
    ),
)


if __name__ == "__main__":
    main()
