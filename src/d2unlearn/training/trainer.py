"""`UnlearnTrainer`: a transformers Trainer whose step is one forward over forget and retained rows and a method's loss."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Mapping, Sequence
from copy import copy
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader
from transformers import PreTrainedModel, PreTrainedTokenizerBase, Trainer, TrainerCallback
from transformers.trainer_callback import PrinterCallback, ProgressCallback

from d2unlearn.artifact import check_no_artifact
from d2unlearn.data.batching import pad_tokens
from d2unlearn.errors import ConfigError
from d2unlearn.head import head_of
from d2unlearn.methods import AdaptiveMethod, Method, seen_by
from d2unlearn.metrics.level_shift import level_warning
from d2unlearn.observation import Batch, Observed, causal_model, check_head
from d2unlearn.quantization import is_quantised
from d2unlearn.runtime import say, seed_everything
from d2unlearn.schema import Kind, Role
from d2unlearn.sharding import is_sharded, reshard
from d2unlearn.teacher_forcing import Original
from d2unlearn.training.adaptation import Adaptation
from d2unlearn.training.adapter import adapted, train_only_named
from d2unlearn.training.alternates import RowsOfKind, alternate_rows
from d2unlearn.training.arguments import UnlearnConfig, check_parallelism, vocabulary_rows, warmup_steps_of
from d2unlearn.training.checkpoints import COMPLETE, CompleteCheckpoints, last_complete_checkpoint
from d2unlearn.training.frozen import copied_head, frozen_head, frozen_values
from d2unlearn.training.gathered import save_gathered
from d2unlearn.training.monitor import Snapshot, WatchedRows, epoch_lines, first_look, how_far, take_snapshot, warning_of
from d2unlearn.training.rows import Rows, Watched, monitor_rows, training_rows
from d2unlearn.training.sampling import EpochSampler, Pair, PairPlan
from d2unlearn.training.self_written import Writer
from d2unlearn.training.sharded import check_shardable, sharded_model, spread_over_cpus
from d2unlearn.training.steering import Steering, standing_metrics


class UnlearnTrainer(Trainer):
    """Trains `model` with `method` on pairs of forget and retained rows.

    forget_dataset, retain_dataset: rows as `Example`, as columns (a `datasets.Dataset`, in the formats of
    `d2unlearn.data.records`), both rendered with `processing_class`, or as `Tokens`.
    eval_dataset: {"forget": rows, "retain": rows, "near": rows} for the monitor; without it the rows trained on, and as
    neighbours ("near") the retained rows nearest to the forget rows by the model's own hidden states.
    alternate_dataset, retain_alternate_dataset: for methods that read other answers to the forget and the retained questions,
    a row for each row. Without them a method has refusals, drawn by `seed`, or what the model writes itself before training.
    peft_config: train a low-rank adapter; the reference is the model as given, before the adapter (one that came with an
    adapter has that merged into its weights).

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
        eval_dataset: Mapping[Watched, Rows] | None = None,
        processing_class: PreTrainedTokenizerBase | None = None,
        peft_config: Any = None,
        callbacks: list[TrainerCallback] | None = None,
        *,
        alternate_dataset: Rows | None = None,
        retain_alternate_dataset: Rows | None = None,
    ) -> None:
        check_parallelism(args)
        sharded = bool(args.fsdp)
        if sharded:
            check_shardable(model, method, args, peft_config)
        checkpoints = CompleteCheckpoints(args.save_total_limit)
        args = copy(args)
        args.save_total_limit = None  # older ones are deleted by `checkpoints`
        self.method = method.for_model(model)
        forget, retain = list(forget_dataset), list(retain_dataset)
        self._rows = training_rows(forget, retain, processing_class, args.max_length)
        watched = monitor_rows(eval_dataset, self._rows, processing_class, args.max_length, args.eval_rows)
        self._vocab_rows = vocabulary_rows(args, processing_class)
        asked: dict[Kind, RowsOfKind] = {
            "forget": RowsOfKind(forget, self._rows["forget"], alternate_dataset),
            "retain": RowsOfKind(retain, self._rows["retain"], retain_alternate_dataset),
        }
        if not sharded:
            if not is_quantised(model):
                model.to(args.device)  # type: ignore[arg-type]
            with args.main_process_first(desc="reference pass"):
                self._read_frozen(model, args, asked, processing_class)
            self._look_first(model, args, watched, own_head=peft_config is not None)
        self._level_told = False
        self.evaluation_seconds = 0.0
        self._began = time.monotonic(), 0
        self._monitored: dict[str, Tensor] = {}
        self._monitored_steps = 0
        self._last_monitored: dict[str, float] = {}
        plan = PairPlan(
            len(forget),
            len(retain),
            effective_batch=args.per_device_train_batch_size * args.gradient_accumulation_steps * args.world_size,
            seed=args.seed if args.data_seed is None else args.data_seed,
        )
        self._sampler = EpochSampler(plan)
        self.steps_per_epoch = steps_per_epoch = len(plan) // plan.effective_batch
        if args.warmup_epochs:
            args.warmup_steps = warmup_steps_of(args, steps_per_epoch)
        seed_everything(args.seed)  # the adapter's first weights
        config: Any = causal_model(model).config
        use_cache = getattr(config, "use_cache", True)
        super().__init__(
            model=train_only_named(adapted(model, peft_config, checkpointing=bool(args.gradient_checkpointing)), self.method),
            args=args,
            data_collator=self._collate,
            train_dataset=plan,
            eval_dataset=plan,  # never drawn from: `evaluate` looks at its own rows
            processing_class=processing_class,
            callbacks=[_EpochSetter(self._sampler), checkpoints, *(callbacks or [])],
        )
        config.use_cache = use_cache  # transformers switches it off, and saves it so
        if sharded:
            whole_model: Any = self.model
            self.model = self.model_wrapped = spread = sharded_model(self.accelerator, whole_model, seed=args.seed)
            self._read_frozen(spread, args, asked, processing_class)
            self._look_first(spread, args, watched, own_head=False)
            reshard(spread)
        self._adaptation: Adaptation | None = None
        if isinstance(self.method, AdaptiveMethod):
            self._adaptation = Adaptation(self, steps_per_epoch)
            self.add_callback(self._adaptation)
        self.remove_callback(PrinterCallback)
        if self.pop_callback(ProgressCallback) is not None:
            self.add_callback(TrainingBar)

    def _read_frozen(
        self, model: nn.Module, args: UnlearnConfig, asked: Mapping[Kind, RowsOfKind], tokenizer: PreTrainedTokenizerBase | None
    ) -> None:
        """What the model writes and says before it is trained: the rows of other answers, and the reference's values."""
        check_head(model)
        cache = None if args.reference_cache is None else Path(args.reference_cache)
        batch_size, how = args.per_device_eval_batch_size, self.method.self_written
        writer = None if how is None else Writer(model, tokenizer, how, batch_size, args.seed, cache)
        self._rows |= alternate_rows(self.method, asked, writer, tokenizer, max_length=args.max_length, seed=args.seed)
        self._frozen = frozen_values(
            model, self.method, self._rows, cache=cache, batch_size=batch_size, vocab_rows=self._vocab_rows
        )

    def create_accelerator_and_postprocess(self) -> None:
        """As in transformers, and FSDP on CPUs too."""
        super().create_accelerator_and_postprocess()
        if self.args.fsdp:
            spread_over_cpus(self)

    def _look_first(self, model: nn.Module, args: UnlearnConfig, watched: WatchedRows, *, own_head: bool) -> None:
        """Look at the model before it is trained. own_head: its LM head stays as it is, and needs no copy."""
        self._frozen_head = frozen_head(model, self.method, self._vocab_rows)
        copied = not own_head
        head = copied_head(model, self._vocab_rows) if copied else head_of(causal_model(model), vocab_rows=self._vocab_rows)
        look = first_look(model, watched, head, batch_size=args.per_device_eval_batch_size, vocab_rows=self._vocab_rows)
        self.before: Snapshot = look.before
        self.original, self.watched = look.original, look.rows

    @property
    def mean_pair_length(self) -> float:
        """Tokens of a row of each role together, on average."""
        return sum(sum(len(row.input_ids) for row in rows) / len(rows) for rows in self._rows.values())

    # -- data ---------------------------------------------------------------------------------------------------------

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
        for role, needs in self.method.needs.items():
            chosen = [pair.row_of(role) for pair in pairs]
            batch = pad_tokens([self._rows[role][i] for i in chosen], pad_id=0)
            inputs[role] = vars(batch)
            stored = [self._frozen[role][i] for i in chosen]
            lengths = needs.positions.mask(batch.labels).sum(dim=1).tolist()
            inputs["reference"][role] = {
                q: torch.cat([row[q][:length] for row, length in zip(stored, lengths, strict=True)]) for q in stored[0]
            }
        return inputs

    def get_batch_samples(
        self, epoch_iterator: Iterator[Any], num_batches: int, device: torch.device
    ) -> tuple[list[Any], Tensor | int | None]:
        """The micro-batches of one optimizer step, each told how many positions and rows the whole step has."""
        samples, _ = super().get_batch_samples(epoch_iterator, num_batches, device)
        self._monitored_steps += 1
        for role, needs in self.method.needs.items():
            masks = [needs.positions.mask(sample[role]["labels"]) for sample in samples]
            counts = torch.tensor(
                [sum(int(mask.sum()) for mask in masks), sum(int(mask.any(dim=1).sum()) for mask in masks)], device=device
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
        seen = self._seen(model, inputs)
        monitored = self.method.monitor(seen)
        for name, value in monitored.items():
            self._monitored[name] = self._monitored.get(name, torch.zeros_like(value)) + value.detach()
        if self._adaptation is not None:
            self._adaptation.see(monitored)
        return self.method.loss(seen) * self.args.world_size

    def _precision(self) -> torch.autocast:
        """The precision that the model is trained in, for what runs beside training."""
        return torch.autocast(self.args.device.type, torch.bfloat16, enabled=bool(self.args.bf16))

    def _seen(self, model: nn.Module, inputs: Mapping[str, Any]) -> dict[Role, Observed]:
        return seen_by(
            self.method,
            model,
            {role: Batch(**inputs[role]) for role in self.method.needs},
            inputs["reference"],
            self._frozen_head,
            vocab_rows=self._vocab_rows,
            totals=inputs.get("totals"),
        )

    def backward_of(self, step: int) -> None:
        """Adds the gradient of a step of the plan to the model's, outside of training; nothing that is logged counts it.

        Each micro-batch is a mean of its own, and all of them weigh alike.
        """
        assert self.model is not None
        args, plan = self.args, self._sampler.plan
        size, parts = args.per_device_train_batch_size, args.gradient_accumulation_steps
        for part in range(parts):
            start = ((step * parts + part) * args.world_size + args.process_index) * size
            inputs = self._prepare_inputs(self._collate([plan[start + index] for index in range(size)]))
            with self._precision():
                loss = self.method.loss(self._seen(self.model, inputs))
            torch.autograd.backward(loss / parts)
        if args.world_size > 1:
            for parameter in (p for p in self.model.parameters() if p.grad is not None):
                parameter.grad = self.accelerator.reduce(parameter.grad, "mean")

    def floating_point_ops(self, inputs: dict[str, Any]) -> int:
        """Not counted: the head's work depends on the answer positions, not on the shapes transformers reads."""
        return 0

    # -- what a person sees -------------------------------------------------------------------------------------------

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Adds what the method monitors, as means over the optimizer steps since the last log."""
        if "loss" in logs:
            logs.update(self._monitored_means())
            self._monitored, self._monitored_steps = {}, 0
        super().log(logs, start_time)

    def _monitored_means(self) -> dict[str, float]:
        """What the method monitors, over the optimizer steps since the last log; the last log's where there was none since."""
        if self._monitored:
            self._last_monitored = {
                name: float(self.accelerator.reduce(value, "sum")) / max(1, self._monitored_steps)
                for name, value in self._monitored.items()
            }
        return self._last_monitored

    def evaluate(
        self, eval_dataset: Any = None, ignore_keys: list[str] | None = None, metric_key_prefix: str = "eval"
    ) -> dict[str, float]:
        """A `Snapshot` of the model on the monitor's rows, logged, with a warning when the model is being destroyed.

        eval_dataset: other rows, as `UnlearnTrainer` takes them.
        """
        assert self.model is not None
        args: Any = self.args
        rows: WatchedRows = self.watched
        original: Original | None = self.original
        if eval_dataset is not None:
            tokenizer: Any = self.processing_class
            rows, original = monitor_rows(eval_dataset, self._rows, tokenizer, args.max_length, args.eval_rows), None
        started = time.monotonic()
        now = self.look(rows, before=self.before, original=original)
        self.evaluation_seconds += time.monotonic() - started
        step, epoch = self.state.global_step, self.state.epoch or 0.0
        found = {**now.numbers(), **standing_metrics(self, now.numbers(), step=step, epoch=epoch)}
        metrics = {f"{metric_key_prefix}_{name}": value for name, value in found.items()}
        self.log(dict(metrics))
        monitored = self._monitored_means()
        if self.is_world_process_zero():
            self._tell(now, monitored)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    def look(self, rows: WatchedRows, *, before: Snapshot | None = None, original: Original | None = None) -> Snapshot:
        """The model as it is now on these rows, in the precision that it is trained in (`take_snapshot`)."""
        assert self.model is not None
        args: Any = self.args
        with self._precision():
            seen = take_snapshot(
                self.model,
                rows,
                batch_size=args.per_device_eval_batch_size,
                before=before,
                vocab_rows=self._vocab_rows,
                original=original,
            )
        reshard(self.model)
        return seen

    def _tell(self, now: Snapshot, monitored: Mapping[str, float]) -> None:
        assert self.model is not None
        vocabulary = self._vocab_rows or int(causal_model(self.model).get_output_embeddings().out_features)  # type: ignore[operator]
        for line in epoch_lines(now, self._how_far(), monitored):
            say(line)
        step, steps = self.state.global_step, self.state.max_steps
        warming_up = step <= self.args.get_warmup_steps(steps) and step < steps
        warning = warning_of(self.before, now, energy_of_nothing=-math.log(vocabulary), warming_up=warming_up)
        if warning:
            say(f"warning: {warning}")
        level = level_warning(self.before.forget_shape, now.forget_shape, "at the forget positions")
        if level and not (warming_up or self._level_told):
            say(f"warning: {level}")
            self._level_told = True

    def _how_far(self) -> str:
        """Which epoch it is, of how many, and how long the rest will take as things have gone since training began here."""
        args: Any = self.args
        began, first = self._began
        step, steps = self.state.global_step, self.state.max_steps
        left = (time.monotonic() - began) / (step - first) * (steps - step) if step > first else math.nan
        epochs = steps / self.steps_per_epoch
        return how_far(self.state.epoch or 0.0, epochs, left, may_end_before=args.forget_below is not None)

    # -- checkpoints --------------------------------------------------------------------------------------------------

    def train(self, resume_from_checkpoint: str | bool | None = None, *args: Any, **kwargs: Any) -> Any:
        """As in transformers, from checkpoints whose writing was finished; True goes on from the last of them."""
        folder = self.args.output_dir or ""
        if resume_from_checkpoint is True:
            checkpoint = last_complete_checkpoint(folder)
            if checkpoint is None:
                raise ConfigError([f"{folder} holds no complete checkpoint to resume from"])
            resume_from_checkpoint = str(checkpoint)
        elif resume_from_checkpoint and not (Path(resume_from_checkpoint) / COMPLETE).is_file():
            raise ConfigError([f"{resume_from_checkpoint} is no checkpoint whose writing was finished"])
        self._steer()
        self._began = time.monotonic(), _steps_done(resume_from_checkpoint)
        try:
            return super().train(resume_from_checkpoint, *args, **kwargs)
        except Exception:
            last_complete_checkpoint(folder)  # a half-written one goes: what filled a disk does not go on filling it
            raise

    def _steer(self) -> None:
        """With targets, let them steer."""
        args: Any = self.args
        self.pop_callback(Steering)
        if args.forget_below is not None:
            self.add_callback(Steering(self))

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """As transformers does. Raises `ArtifactError` for an artifact's folder, whose manifest and gate would be wrong."""
        if output_dir is not None:
            check_no_artifact(Path(output_dir))
        assert self.model is not None
        folder = Path(output_dir or str(self.args.output_dir))
        if not is_sharded(self.model):
            super().save_model(output_dir, _internal_call)
        elif _internal_call:
            folder.mkdir(parents=True, exist_ok=True)  # transformers asks next whether it is there, and writes weights later
        else:
            save_gathered(self, folder)


class _EpochSetter(TrainerCallback):
    """Tells the sampler which epoch begins, whatever wraps the data loader (a resumed one is wrapped once more)."""

    def __init__(self, sampler: EpochSampler) -> None:
        self._sampler = sampler

    def on_epoch_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._sampler.set_epoch(int(state.epoch or 0))


class TrainingBar(ProgressCallback):
    """transformers' bar over the optimizer steps, with the loss beside it in place of a line for every log."""

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        bar: Any = self.training_bar
        if state.is_world_process_zero and bar is not None and "loss" in (logs or {}):
            bar.set_postfix(loss=f"{logs['loss']:.4g}", refresh=False)


def _steps_done(checkpoint: str | bool | None) -> int:
    """As a checkpoint's name says; 0 for none."""
    return int(Path(checkpoint).name.rsplit("-", 1)[-1]) if isinstance(checkpoint, str) else 0
