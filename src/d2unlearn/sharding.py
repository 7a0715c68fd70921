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


def names_of_weights(model: nn.Module) -> dict[int, list[str]]:
    """The names in its state of each weight and buffer, several where it is tied, as in a model without adapters; by its `id`.

    What adapters add is left out.
    """
    names: dict[int, list[str]] = {}
    for name, tensor in model.state_dict(keep_vars=True).items():
        if ".lora_" not in name:
            names.setdefault(id(tensor), []).append(name.replace(".base_layer.", "."))
    return names


def own_rows(tensor: Tensor) -> slice:
    """Which rows of a tensor that is spread by its first dimension this process holds; all of one that is whole.

    As `torch.chunk` cuts: equal parts, and less or nothing for the last.
    """
    if not is_part(tensor) or not tensor.shape:
        return slice(0, tensor.shape[0] if tensor.shape else None)
    mesh = tensor.device_mesh  # type: ignore[attr-defined]
    total = int(tensor.shape[0])
    each = -(-total // int(mesh.size()))
    start = min(int(mesh.get_local_rank()) * each, total)
    return slice(start, min(start + each, total))


def own_part(tensor: Tensor) -> Tensor:
    """What this process holds of a tensor, as it lies in memory."""
    local: Tensor = tensor.to_local() if is_part(tensor) else tensor  # type: ignore[attr-defined]
    return local
