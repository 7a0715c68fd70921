"""Tensors as they lie in a folder's safetensors files: which there are, and the rows of one without the rest of it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from safetensors import safe_open
from torch import Tensor

from d2unlearn.errors import ModelError
from d2unlearn.loaded_files import weight_files


class StoredTensor(NamedTuple):
    """A tensor in a safetensors file: where its bytes lie."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    path: Path
    start: int
    length: int


def stored_tensors(folder: Path) -> Iterator[StoredTensor]:
    """Those of the files that a loader opens. Raises `ModelError` where there are none, and for damaged files."""
    files = weight_files(folder)
    if not files:
        raise ModelError(f"{folder} holds no safetensors weights")
    for path in files:
        try:
            with path.open("rb") as file:
                header_length = int.from_bytes(file.read(8), "little")
                header = json.loads(file.read(header_length))
        except (OSError, ValueError, OverflowError, MemoryError) as error:
            raise ModelError(f"{path} is missing, no safetensors file, or cut short: copy or download it again") from error
        for name, entry in header.items():
            if name != "__metadata__":
                start, end = entry["data_offsets"]
                yield StoredTensor(name, entry["dtype"], tuple(entry["shape"]), path, 8 + header_length + start, end - start)


def stored_rows(tensor: StoredTensor, rows: slice) -> Tensor:
    """Those rows of a stored tensor, as they are stored; of a single number that number."""
    with safe_open(str(tensor.path), framework="pt") as file:
        found: Tensor = file.get_slice(tensor.name)[rows] if tensor.shape else file.get_tensor(tensor.name)
    return found
