"""A model whose weights are spread over processes (FSDP2): whether one is, and what is gathered from it."""

from __future__ import annotations

from torch import Tensor, nn


def is_sharded(model: nn.Module) -> bool:
    """Whether FSDP2 has this module's weights."""
    from torch.distributed.fsdp import FSDPModule

    return isinstance(model, FSDPModule)


def is_part(tensor: Tensor) -> bool:
    """Whether a tensor is spread over processes, of which this one holds a part."""
    from torch.distributed.tensor import DTensor

    return isinstance(tensor, DTensor)


def whole(tensor: Tensor) -> Tensor:
    """A tensor's values, gathered where they are spread: all processes have to call this together. Without gradient."""
    kept = tensor.detach()
    gathered: Tensor = kept.full_tensor() if is_part(kept) else kept  # type: ignore[attr-defined]
    return gathered


def reshard(model: nn.Module) -> None:
    """Let go of what FSDP2 has gathered: after a forward without a backward it keeps some, which would become outdated."""
    from torch.distributed.fsdp import FSDPModule

    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.reshard()
