"""`UnlearnTrainer`: a transformers Trainer whose step is one forward over forget and retained rows and a method's loss."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader
from transformers import PreTrainedModel, PreTrainedTokenizerBase, Trainer, TrainerCallback, TrainingArguments
from transformers.trainer_callback import PrinterCallback
from transformers.trainer_utils import rotate_checkpoints

from d2unlearn.data.batching import pad_tokens, truncate
from d2unlearn.data.records import example_of
from d2unlearn.data.template import Template
from d2unlearn.errors import ConfigError, DataError
from d2unlearn.head import Head, head_of
from d2unlearn.likelihood import answer_targets
from d2unlearn.methods import Method
from d2unlearn.observation import Batch, causal_model, check_head, observe, observed
from d2unlearn.quantities import HiddenState, Observable, Quantity
from d2unlearn.runtime import remove, say
from d2unlearn.schema import Example, Kind, Role, Tokens
from d2unlearn.training.monitor import Snapshot, take_snapshot, warning_of
from d2unlearn.training.reference import Reference, compute_reference
from d2unlearn.training.sampling import EpochSampler, Pair, PairPlan

Rows = Iterable[Example | Tokens | Mapping[str, Any]]
COMPLETE = "checkpoint_complete"


@dataclass
class UnlearnConfig(TrainingArguments):
    """transformers' TrainingArguments with the published recipe as defaults, and what unlearning adds.

    max_length: longer rows are cut there, in tokens. warmup_epochs: length of the warm-up, in epochs (overrides
    warmup_steps). exclude_padded_rows: leave vocabulary rows that the tokenizer does not have out of energies.
    reference_cache: folder for what is computed of the frozen model; None computes it anew. eval_rows: at most so many rows
    of each kind are looked at in an evaluation.
    """

    learning_rate: float = 1e-5
    num_train_epochs: float = 10.0
    per_device_train_batch_size: int = 8
    gradient_accumulation_steps: int = 4
    weight_decay: float = 0.01
    warmup_epochs: float = 1.0
    max_length: int = 512
    exclude_padded_rows: bool = False
    reference_cache: str | None = None
    eval_rows: int = 200
    remove_unused_columns: bool = False
    dataloader_pin_memory: bool = False
    logging_steps: float = 10
    eval_strategy: str = "epoch"
    save_strategy: str = "epoch"
    save_total_limit: int | None = 2
    metric_for_best_model: str | None = "selection"
    greater_is_better: bool | None = True
    load_best_model_at_end: bool = True


class UnlearnTrainer(Trainer):
    """Trains `model` with `method` on pairs of forget and retained rows.

    forget_dataset, retain_dataset: rows as `Example`, as columns (a `datasets.Dataset`, in the formats of
    `d2unlearn.data.records`), both rendered with `processing_class`, or as `Tokens`.
    eval_dataset: {"forget": rows, "retain": rows} for the monitor; without it the forget rows and the first retained rows.
    peft_config: train a low-rank adapter; the reference is the model as given, before the adapter.

    The loss is a mean over answer tokens of the *effective* batch: 8 x 1, 2 x 4 accumulation and two processes give the same
    step. Source of the fault this avoids: open-unlearning issues 139 and 144.
    """

    loss_is_scaled_for_ga = True

    def __init__(
        self,
        model: PreTrainedModel | nn.Module,
        args: UnlearnConfig,
        method: Method,
        forget_dataset: Rows,
        retain_dataset: Rows,
        eval_dataset: Mapping[Kind, Rows] | None = None,
        processing_class: PreTrainedTokenizerBase | None = None,
        peft_config: Any = None,
        callbacks: list[TrainerCallback] | None = None,
    ) -> None:
        self.method = method
        self._rows = _training_rows(forget_dataset, retain_dataset, processing_class, args.max_length)
        self._eval_rows = _monitor_rows(self._rows, eval_dataset, processing_class, args)
        self._vocab_rows = _vocab_rows(args, processing_class)
        device = args.device
        model.to(device)  # type: ignore[arg-type]
        check_head(model)
        with args.main_process_first(desc="reference pass"):
            self._reference = self._computed_reference(model, args)
        self._reference_head = _frozen_head(model, method, self._vocab_rows)
        self.before: Snapshot = take_snapshot(
            model, self._eval_rows, batch_size=args.per_device_eval_batch_size, vocab_rows=self._vocab_rows
        )
        self._monitored: dict[str, Tensor] = {}
        self._monitored_steps = 0
        self._sampler = EpochSampler(self._plan(args))
        _set_warmup(args, len(self._sampler))
        super().__init__(
            model=_adapted(model, peft_config, args),
            args=args,
            data_collator=self._collate,
            train_dataset=self._sampler.plan,
            eval_dataset=self._sampler.plan,  # never drawn from: `evaluate` looks at its own rows
            processing_class=processing_class,
            callbacks=[_EpochSetter(self._sampler), *(callbacks or [])],
        )
        self.remove_callback(PrinterCallback)

    # -- data ---------------------------------------------------------------------------------------------------------

    def _plan(self, args: UnlearnConfig) -> PairPlan:
        effective = args.per_device_train_batch_size * args.gradient_accumulation_steps * args.world_size
        return PairPlan(
            len(self._rows["forget"]),
            len(self._rows["retain"]),
            effective_batch=effective,
            seed=args.seed if args.data_seed is None else args.data_seed,
        )

    def get_train_dataloader(self) -> DataLoader[Any]:
        """Visits in the plan's order; each process takes its own batches of every effective batch."""
        loader: DataLoader[Any] = DataLoader(
            self._sampler.plan,
            batch_size=self.args.per_device_train_batch_size,
            sampler=self._sampler,
            collate_fn=self._collate,
            num_workers=self.args.dataloader_num_workers,
            pin_memory=self.args.dataloader_pin_memory,
            drop_last=True,
        )
        prepared: DataLoader[Any] = self.accelerator.prepare(loader)
        return prepared

    def _collate(self, pairs: Sequence[Pair]) -> dict[str, Any]:
        """{role: {input_ids, attention_mask, labels}} with {"reference": {role: {quantity: [N]}}} beside."""
        inputs: dict[str, Any] = {"reference": {}}
        for role in self.method.needs:
            chosen = [getattr(pair, role) for pair in pairs]
            inputs[role] = vars(pad_tokens([self._rows[role][i] for i in chosen], pad_id=0))
            stored = [self._reference.at(role, i) for i in chosen]
            inputs["reference"][role] = {q: torch.cat([row[q] for row in stored]) for q in stored[0]}
        return inputs

    def get_batch_samples(
        self, epoch_iterator: Iterator[Any], num_batches: int, device: torch.device
    ) -> tuple[list[Any], Tensor | int | None]:
        """The micro-batches of one optimizer step, each told how many answers and rows the whole step has."""
        samples, _ = super().get_batch_samples(epoch_iterator, num_batches, device)
        self._monitored_steps += 1
        for role in self.method.needs:
            labels = [sample[role]["labels"] for sample in samples]
            counts = torch.tensor(
                [sum(len(answer_targets(each)) for each in labels), sum(len(each) for each in labels)],
                dtype=torch.float64,
                device=device,
            )
            positions, rows = self.accelerator.reduce(counts, "sum").tolist()
            for sample in samples:
                sample.setdefault("totals", {})[role] = (positions, rows)
        return samples, None

    # -- the step -----------------------------------------------------------------------------------------------------

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Any:
        """This micro-batch's share of the effective batch's loss, times the number of processes (DDP averages)."""
        if return_outputs:
            raise ConfigError(["the unlearning loss has no model outputs to return"])
        roles: list[Role] = list(self.method.needs)
        batches = {role: Batch(**inputs[role]) for role in roles}
        policy = observe(
            model,
            batches,
            {role: needs.policy for role, needs in self.method.needs.items()},
            reference=inputs["reference"],
            reference_head=self._reference_head,
            vocab_rows=self._vocab_rows,
        )
        totals = inputs.get("totals", {})
        seen = {
            role: observed(batches[role], policy[role], inputs["reference"][role], **_totals(totals.get(role)))
            for role in roles
        }
        for name, value in self.method.monitor(seen).items():
            self._monitored[name] = self._monitored.get(name, torch.zeros_like(value)) + value.detach()
        return self.method.loss(seen) * self.args.world_size

    def floating_point_ops(self, inputs: dict[str, Any]) -> int:
        """Not counted: the head's work depends on the answer positions, not on the shapes transformers reads."""
        return 0

    # -- what a person sees -------------------------------------------------------------------------------------------

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Adds what the method monitors, as means over the optimizer steps since the last log."""
        if "loss" in logs and self._monitored:
            for name, value in self._monitored.items():
                logs[name] = float(self.accelerator.reduce(value, "sum")) / max(1, self._monitored_steps)
            self._monitored, self._monitored_steps = {}, 0
        super().log(logs, start_time)

    def evaluate(
        self, eval_dataset: Any = None, ignore_keys: list[str] | None = None, metric_key_prefix: str = "eval"
    ) -> dict[str, float]:
        """A `Snapshot` of the model on the monitor's rows, logged, with a warning when the model is being destroyed."""
        assert self.model is not None
        now = take_snapshot(
            self.model,
            self._eval_rows,
            batch_size=self.args.per_device_eval_batch_size,
            before=self.before,
            vocab_rows=self._vocab_rows,
        )
        metrics = now.metrics(metric_key_prefix)
        self.log(dict(metrics))
        if self.is_world_process_zero():
            self._tell(now)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    def _tell(self, now: Snapshot) -> None:
        assert self.model is not None
        vocabulary = self._vocab_rows or int(causal_model(self.model).get_output_embeddings().out_features)  # type: ignore[operator]
        hinges = next((log for log in reversed(self.state.log_history) if "forget_hinge_active" in log), None)
        active = (
            ""
            if hinges is None
            else (f" | active hinges {hinges['forget_hinge_active']:.0%} / {hinges['retain_hinge_active']:.0%}")
        )
        say(
            f"epoch {self.state.epoch or 0:.0f}: energy forget {now.forget_energy:.2f}, retain {now.retain_energy:.2f}{active}"
            f" | answer probability {now.forget_probability:.3f} / {now.retain_probability:.3f}"
            f" | retain NLL {now.retain_nll:.3f} | AUROC {now.auroc:.4f} | selection {now.selection:.4f}"
        )
        warning = warning_of(self.before, now, energy_of_nothing=-math.log(vocabulary))
        if warning:
            say(f"warning: {warning}")

    # -- checkpoints --------------------------------------------------------------------------------------------------

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        """Save, mark as complete, and only then delete older ones: a kill at any moment leaves one to resume from."""
        limit, self.args.save_total_limit = self.args.save_total_limit, None
        try:
            super()._save_checkpoint(model, trial)
        finally:
            self.args.save_total_limit = limit
        self.accelerator.wait_for_everyone()
        run_dir = self._get_output_dir(trial=trial)
        if self.args.should_save:
            (Path(run_dir) / f"checkpoint-{self.state.global_step}" / COMPLETE).touch()
            rotate_checkpoints(
                output_dir=run_dir,
                save_total_limit=limit,
                best_model_checkpoint=self.state.best_model_checkpoint,
                use_mtime=True,
            )

    def _computed_reference(self, model: nn.Module, args: UnlearnConfig) -> Reference:
        return compute_reference(
            model,
            self.method,
            self._rows,
            cache=None if args.reference_cache is None else Path(args.reference_cache),
            batch_size=args.per_device_eval_batch_size,
            vocab_rows=self._vocab_rows,
        )


class _EpochSetter(TrainerCallback):
    """Tells the sampler which epoch begins, whatever wraps the data loader (a resumed one is wrapped once more)."""

    def __init__(self, sampler: EpochSampler) -> None:
        self._sampler = sampler

    def on_epoch_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._sampler.set_epoch(int(state.epoch or 0))


def last_complete_checkpoint(folder: str | Path) -> Path | None:
    """The newest checkpoint whose writing was finished; half-written ones are removed. None when there is none."""
    complete = []
    for path in Path(folder).glob("checkpoint-*"):
        if (path / COMPLETE).is_file():
            complete.append(path)
        else:
            remove(path)
    return max(complete, key=lambda path: int(path.name.split("-")[1]), default=None)


def render(rows: Rows, tokenizer: PreTrainedTokenizerBase | None, max_length: int) -> list[Tokens]:
    """Rows as token ids, cut at `max_length`. Raises `DataError` when an answer is cut away whole."""
    template: Template | None = None
    rendered: list[Tokens] = []
    for number, row in enumerate(rows, start=1):
        if isinstance(row, Mapping):
            row = example_of(row, f"row {number}")
        if isinstance(row, Example):
            if tokenizer is None:
                raise ConfigError(["rows of text need processing_class=tokenizer"])
            template = template or Template(tokenizer)
            row = template.tokens(row)
        cut = truncate(row, max_length)
        if row.answer_length and not cut.answer_length:
            raise DataError(f"{row.example_id}: the prompt alone is longer than max_length = {max_length} tokens")
        rendered.append(cut)
    return rendered


def _training_rows(
    forget: Rows, retain: Rows, tokenizer: PreTrainedTokenizerBase | None, max_length: int
) -> dict[Role, list[Tokens]]:
    rows: dict[Role, list[Tokens]] = {
        "forget": render(forget, tokenizer, max_length),
        "retain": render(retain, tokenizer, max_length),
    }
    for role, each in rows.items():
        if not any(row.answer_length for row in each):
            raise DataError(f"the {role} set holds no answer tokens to train on")
    return rows


def _monitor_rows(
    training: Mapping[Role, list[Tokens]],
    given: Mapping[Kind, Rows] | None,
    tokenizer: PreTrainedTokenizerBase | None,
    args: UnlearnConfig,
) -> dict[Kind, list[Tokens]]:
    kinds: tuple[Kind, ...] = ("forget", "retain")
    rows: dict[Kind, list[Tokens]] = {
        kind: render(given[kind], tokenizer, args.max_length) if given and kind in given else training[kind] for kind in kinds
    }
    return {kind: _evenly(each, args.eval_rows) for kind, each in rows.items()}


def _evenly(rows: list[Tokens], count: int) -> list[Tokens]:
    """At most `count` rows, spread evenly over the list, so that every author or document is among them."""
    if len(rows) <= count:
        return rows
    return [rows[index * len(rows) // count] for index in range(count)]


def _vocab_rows(args: UnlearnConfig, tokenizer: PreTrainedTokenizerBase | None) -> int | None:
    if not args.exclude_padded_rows:
        return None
    if tokenizer is None:
        raise ConfigError(["exclude_padded_rows needs processing_class=tokenizer"])
    return len(tokenizer)


def _frozen_head(model: nn.Module, method: Method, vocab_rows: int | None) -> Head | None:
    """A copy of the reference's LM head, for methods that read its logits; None for all others."""
    asked: list[Observable] = [q for needs in method.needs.values() for q in needs.policy]
    if not any(isinstance(q, Quantity) and q.reads_reference_logits for q in asked):
        return None
    if any(HiddenState() not in needs.reference for needs in method.needs.values() if _reads_logits(needs.policy)):
        raise ConfigError(["a method that reads the reference's logits has to ask for its HiddenState() too"])
    head = head_of(causal_model(model), vocab_rows=vocab_rows)
    bias = None if head.bias is None else head.bias.detach().clone()
    return Head(head.weight.detach().clone(), bias, head.transform, head.vocab_rows)


def _reads_logits(quantities: Sequence[Observable]) -> bool:
    return any(isinstance(q, Quantity) and q.reads_reference_logits for q in quantities)


def _totals(counts: tuple[float, float] | None) -> dict[str, float]:
    return {} if counts is None else {"total_positions": counts[0], "total_rows": counts[1]}


def _set_warmup(args: UnlearnConfig, visits_per_epoch: int) -> None:
    """The warm-up's length in optimizer steps."""
    effective = args.per_device_train_batch_size * args.gradient_accumulation_steps * args.world_size
    if args.warmup_epochs:
        args.warmup_steps = round(args.warmup_epochs * visits_per_epoch / effective)


def _adapted(model: nn.Module, peft_config: Any, args: UnlearnConfig) -> nn.Module:
    """The model with a fresh adapter, when one is asked for; adapters behind checkpointing need inputs with gradients."""
    if peft_config is not None:
        from peft import get_peft_model

        model = get_peft_model(model, peft_config)
    if args.gradient_checkpointing and hasattr(model, "peft_config"):
        causal_model(model).enable_input_require_grads()  # type: ignore[operator]
    return model
