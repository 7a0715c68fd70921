"""One forward pass of a model over the batches of a step, observed at the answer positions only (or where a method says).

The forward goes through the model as it was wrapped (DDP, PEFT): its LM head is replaced for the length of the pass by a tap
that picks the answer positions of the last hidden states and computes the declared quantities there. So hooks of the wrapper
fire as ever, and the [B, T, V] logits are never made.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from d2unlearn.errors import ConfigError, ModelError
from d2unlearn.head import Head, head_of, head_values
from d2unlearn.likelihood import IGNORE, next_labels
from d2unlearn.positions import Positions, Predicting
from d2unlearn.quantities import Correct, HiddenState, LogSumExp, Nll, Observable, Quantity
from d2unlearn.schema import Role
from d2unlearn.sharding import is_part, is_sharded

Values = Mapping[Observable, Tensor]


@dataclass(frozen=True)
class Batch:
    """Right-padded rows. input_ids, attention_mask, labels: [B, T] int64; labels are token ids or `IGNORE`."""

    input_ids: Tensor
    attention_mask: Tensor
    labels: Tensor

    def to(self, device: torch.device) -> Batch:
        return Batch(self.input_ids.to(device), self.attention_mask.to(device), self.labels.to(device))


@dataclass(frozen=True)
class Observed:
    """What one role of a step looks like to a method's loss: N answer positions (or those it asked for) in B rows.

    policy, reference: {quantity: [N]} ({HiddenState: [N, H]}); rows: [N] int64, the row of each position.
    `total_positions` and `total_rows` (rows that have a position) count the whole effective batch (all accumulation steps and
    ranks), so that the means below add up to the mean over that batch, however it was cut. Both means of nothing are zero.
    """

    policy: Values
    reference: Values
    rows: Tensor
    n_rows: int
    total_positions: float
    total_rows: float

    def mean(self, values: Tensor) -> Tensor:
        """This batch's share of the mean over positions. values: [N]. Returns a scalar."""
        return values.sum() / max(self.total_positions, 1.0)

    def mean_rows(self, values: Tensor) -> Tensor:
        """This batch's share of the mean over the rows that have a position. values: [B]. Returns a scalar."""
        return torch.where(self.lengths > 0, values, 0.0).sum() / max(self.total_rows, 1.0)

    def sum_by_row(self, values: Tensor) -> Tensor:
        """Sum over the positions of each row. values: [N]. Returns [B]."""
        return values.new_zeros(self.n_rows).index_add(0, self.rows, values)

    def mean_by_row(self, values: Tensor) -> Tensor:
        """Mean over the positions of each row, zero where it has none. values: [N]. Returns [B]."""
        return self.sum_by_row(values) / self.lengths.clamp(min=1)

    @property
    def lengths(self) -> Tensor:
        """How many positions each row has, [B] int64."""
        return torch.bincount(self.rows, minlength=self.n_rows)


def observe(
    model: nn.Module,
    batches: Mapping[Role, Batch],
    wanted: Mapping[Role, Sequence[Observable]],
    *,
    positions: Mapping[Role, Positions] | None = None,
    reference: Mapping[Role, Values] | None = None,
    reference_head: Head | None = None,
    vocab_rows: int | None = None,
) -> dict[Role, dict[Observable, Tensor]]:
    """Run all batches in one forward and return each role's quantities at its positions: `Predicting`, unless given.

    Returns {role: {quantity: [N]}}, positions row by row. Gradients flow where grad mode is on. `reference` holds the stored
    values of the frozen reference, for quantities that read its logits. Raises `ModelError` for a head that is not linear,
    `ConfigError` for a likelihood asked for where no answer token follows.
    """
    causal = causal_model(model)
    head_of(causal)
    roles = list(batches)
    joined = join([batches[role] for role in roles])
    found: dict[Role, dict[Observable, Tensor]] = {role: {} for role in roles}
    chosen = {role: (positions or {}).get(role, Predicting()) for role in roles}
    _check_targets(wanted, chosen)
    own = {role: chosen[role].mask(batches[role].labels) for role in roles}
    targets = {role: next_labels(batches[role].labels)[own[role]] for role in roles}
    masks = _in_joined(joined.labels, list(own.values()))

    def tap(hidden: Tensor) -> Tensor:
        head = _whole_head(causal, vocab_rows)  # here, where FSDP2 has gathered it
        for role, mask in zip(roles, masks, strict=True):
            stored = (reference or {}).get(role, {})
            found[role].update(_at_positions(hidden[mask], head, targets[role], wanted.get(role, ()), stored, reference_head))
        return _in_place_of_logits(hidden, found)

    with ExitStack() as stack:
        stack.enter_context(_replaced_forward(causal.get_output_embeddings(), tap))  # type: ignore[operator]
        for name in _modules_asked_for(wanted):
            stack.enter_context(_captured(causal, name, roles, masks, wanted, found))
        output = model(input_ids=joined.input_ids, attention_mask=joined.attention_mask, use_cache=False)
    return _behind(output.logits, found) if is_sharded(model) else found


def last_hidden_states(
    model: nn.Module, input_ids: Tensor, attention_mask: Tensor, position_ids: Tensor | None = None
) -> Tensor:
    """What the LM head would read at every position, [B, T, H], by one forward in which no logits are made.

    attention_mask: [B, T], or [B, 1, T, T] of numbers that are added to the attention's scores; position_ids: [B, T] or None.
    """
    seen: list[Tensor] = []

    def tap(hidden: Tensor) -> Tensor:
        seen.append(hidden)
        return hidden.new_zeros(*hidden.shape[:-1], 1)

    given = {} if position_ids is None else {"position_ids": position_ids}
    with _replaced_forward(causal_model(model).get_output_embeddings(), tap):  # type: ignore[operator]
        model(input_ids=input_ids, attention_mask=attention_mask, use_cache=False, **given)
    return seen[0]


def causal_model(model: nn.Module) -> nn.Module:
    """The Hugging Face causal model inside wrappers (DDP's `.module`, PEFT's base model)."""
    while isinstance(getattr(model, "module", None), nn.Module):
        model = model.module  # type: ignore[assignment]
    base: Callable[[], nn.Module] | None = getattr(model, "get_base_model", None)
    return base() if base is not None else model


def join(batches: Sequence[Batch]) -> Batch:
    """Stack batches of different length into one, padding on the right. The padding's attention mask is 0."""
    width = max(batch.input_ids.shape[1] for batch in batches)

    def stacked(name: str, fill: int) -> Tensor:
        parts = [getattr(batch, name) for batch in batches]
        return torch.cat([nn.functional.pad(part, (0, width - part.shape[1]), value=fill) for part in parts])

    return Batch(stacked("input_ids", 0), stacked("attention_mask", 0), stacked("labels", IGNORE))


@torch.no_grad()
def check_head(model: nn.Module, *, tolerance: float | None = None) -> None:
    """Raise `ModelError` unless the head here reproduces the model's own logits' energy on a few tokens.

    Catches models that post-process their logits in a way `head.logit_transform` does not know.
    """
    causal = causal_model(model)
    run = model if is_sharded(model) else causal
    device = causal.get_input_embeddings().weight.device  # type: ignore[operator]
    ids = torch.arange(4, 8, device=device).unsqueeze(0) % int(causal.config.get_text_config().vocab_size)  # type: ignore[union-attr, operator]
    batch = Batch(ids, torch.ones_like(ids), ids)
    training = causal.training
    causal.eval()
    ours = observe(run, {"forget": batch}, {"forget": [LogSumExp()]})["forget"][LogSumExp()]
    logits = run(input_ids=ids, attention_mask=batch.attention_mask).logits[0, :-1]
    causal.train(training)
    theirs = torch.logsumexp(logits.float(), dim=-1)
    allowed = tolerance if tolerance is not None else (1e-3 if logits.dtype == torch.float32 else 0.15)
    error = float((ours.float() - theirs).abs().max())
    if not error <= allowed * max(1.0, float(theirs.abs().max())):
        raise ModelError(
            f"{type(causal).__name__} changes its logits in a way that is not known here (energies differ by {error:.3g} "
            "nats); its configuration's fields are read in d2unlearn.head.logit_transform"
        )


def _in_place_of_logits(hidden: Tensor, found: Mapping[Role, Values]) -> Tensor:
    """Zeros, [B, T, 1], whose graph reaches all that the values' graphs do.

    DDP walks the output's graph to learn which parameters a backward will touch; values beside the output it does not see.
    """
    zeros = hidden.new_zeros(*hidden.shape[:-1], 1)
    touched = [value.sum() for role_values in found.values() for value in role_values.values() if value.requires_grad]
    return zeros + 0 * sum(touched) if touched else zeros


def _whole_head(causal: nn.Module, vocab_rows: int | None) -> Head:
    """The LM head. Raises `ModelError` where this process holds a part of it: energies would be those of some tokens."""
    head = head_of(causal, vocab_rows=vocab_rows)
    if is_part(head.weight):
        raise ModelError("the LM head is spread over processes and was not gathered: call the model that FSDP2 wraps")
    return head


def _behind(logits: Tensor, found: Mapping[Role, Values]) -> dict[Role, dict[Observable, Tensor]]:
    """The values, with the model's output ahead of them on the way back.

    FSDP2 learns from the output's gradient, before all others, that a backward begins: nothing else gathers the head again.
    """
    nothing = 0 * logits.sum()
    return {
        role: {quantity: value + nothing if value.requires_grad else value for quantity, value in values.items()}
        for role, values in found.items()
    }


def _check_targets(wanted: Mapping[Role, Sequence[Observable]], positions: Mapping[Role, Positions]) -> None:
    """Raises `ConfigError` for a quantity of the next token at positions that no answer token follows."""
    for role, chosen in positions.items():
        asked = [q for q in wanted.get(role, ()) if isinstance(q, Nll | Correct)]
        if asked and not chosen.has_targets:
            raise ConfigError(
                [f"{asked[0]} cannot be asked for at {chosen}: not every position there predicts an answer token"]
            )


def _in_joined(labels: Tensor, own: Sequence[Tensor]) -> list[Tensor]:
    """Each role's mask, bool [b, t], as one over the joined batch, bool [B, T]: its rows stand one role after another."""
    masks, start = [], 0
    for role_mask in own:
        mask = torch.zeros_like(labels, dtype=torch.bool)
        mask[start : start + role_mask.shape[0], : role_mask.shape[1]] = role_mask
        masks.append(mask)
        start += role_mask.shape[0]
    return masks


def _at_positions(
    hidden: Tensor, head: Head, targets: Tensor, wanted: Sequence[Observable], stored: Values, reference_head: Head | None
) -> dict[Observable, Tensor]:
    """The head's quantities, and its own input where asked for, at the N positions of one role. hidden: [N, H]."""
    quantities = [q for q in wanted if isinstance(q, Quantity)]
    values = head_values(
        hidden, head, targets, quantities, reference_hidden=stored.get(HiddenState()), reference_head=reference_head
    )
    found: dict[Observable, Tensor] = {quantity: values[quantity] for quantity in quantities}
    if HiddenState() in wanted:
        found[HiddenState()] = hidden
    return found


def _modules_asked_for(wanted: Mapping[Role, Sequence[Observable]]) -> list[str]:
    return sorted({q.module for quantities in wanted.values() for q in quantities if isinstance(q, HiddenState) and q.module})


@contextmanager
def _captured(
    causal: nn.Module,
    name: str,
    roles: Sequence[Role],
    masks: Sequence[Tensor],
    wanted: Mapping[Role, Sequence[Observable]],
    found: dict[Role, dict[Observable, Tensor]],
) -> Iterator[None]:
    """Keep the output of the submodule `name` at the positions of the roles that ask for it."""
    key = HiddenState(name)

    def hook(_module: nn.Module, _inputs: object, output: Tensor | tuple[Tensor, ...]) -> None:
        states = output if isinstance(output, Tensor) else output[0]
        for role, mask in zip(roles, masks, strict=True):
            if key in wanted.get(role, ()):
                found[role][key] = states[mask]

    try:
        module = causal.get_submodule(name)
    except AttributeError:
        raise ModelError(f"{type(causal).__name__} has no submodule {name!r}; see model.named_modules()") from None
    handle = module.register_forward_hook(hook)
    try:
        yield
    finally:
        handle.remove()


@contextmanager
def _replaced_forward(module: nn.Module, forward: Callable[[Tensor], Tensor]) -> Iterator[None]:
    """Replace a module's forward for a while; what stood there before comes back."""
    before = module.__dict__.get("forward")
    module.__dict__["forward"] = forward
    try:
        yield
    finally:
        if before is None:
            del module.__dict__["forward"]
        else:
            module.__dict__["forward"] = before


def observed(
    batch: Batch,
    policy: Values,
    reference: Values,
    *,
    positions: Positions | None = None,
    total_positions: float | None = None,
    total_rows: float | None = None,
) -> Observed:
    """Bundle one role's values for a method's loss. Totals default to this batch's own counts."""
    mask = (positions or Predicting()).mask(batch.labels)
    return Observed(
        policy=policy,
        reference=reference,
        rows=mask.nonzero(as_tuple=True)[0],
        n_rows=len(mask),
        total_positions=float(mask.sum()) if total_positions is None else total_positions,
        total_rows=float(mask.any(dim=1).sum()) if total_rows is None else total_rows,
    )
