"""Rows with a common beginning as one tree of tokens, so that what they share is computed once.

A question with its true, paraphrased and wrong answers is up to seven rows whose prompts are equal and whose answers often
begin alike. Laid out as a tree, every distinct beginning is one node, which sees its ancestors and itself and nothing else: the
same numbers as row by row, with a third to two thirds of the tokens less and no padding between short and long answers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from d2unlearn.schema import Tokens


@dataclass(frozen=True)
class Tree:
    """M nodes. ids, parents, depths: [M], parents before children, -1 for a root. paths: for each row the nodes of its tokens
    but the last, which predicts nothing.
    """

    ids: tuple[int, ...]
    parents: tuple[int, ...]
    depths: tuple[int, ...]
    paths: tuple[tuple[int, ...], ...]

    def sees(self) -> NDArray[np.bool_]:
        """[M, M]: whether the node of that row sees the node of that column."""
        seen = np.eye(len(self.ids), dtype=np.bool_)
        for node, parent in enumerate(self.parents):
            if parent >= 0:
                seen[node] |= seen[parent]
        return seen


def grow(rows: Sequence[Tokens]) -> Tree:
    """The tree of some rows. A row of one token has an empty path."""
    nodes: dict[tuple[int, int], int] = {}
    ids, parents, depths, paths = list[int](), list[int](), list[int](), list[tuple[int, ...]]()
    for row in rows:
        path: list[int] = []
        for depth, token in enumerate(row.input_ids[:-1]):
            parent = path[-1] if path else -1
            node = nodes.setdefault((parent, token), len(ids))
            if node == len(ids):
                ids.append(token)
                parents.append(parent)
                depths.append(depth)
            path.append(node)
        paths.append(tuple(path))
    return Tree(tuple(ids), tuple(parents), tuple(depths), tuple(paths))


def pad_trees(trees: Sequence[Tree], dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    """(input_ids [B, T], mask [B, 1, T, T], position_ids [B, T]) of trees side by side.

    The mask is added to the attention's scores: 0 where a node sees another, the dtype's lowest number elsewhere. Padding sees
    itself alone and is seen by none.
    """
    width = max(len(tree.ids) for tree in trees)
    ids = torch.zeros(len(trees), width, dtype=torch.long)
    positions = torch.zeros_like(ids)
    seen = torch.eye(width, dtype=torch.bool).repeat(len(trees), 1, 1)
    for row, tree in enumerate(trees):
        size = len(tree.ids)
        ids[row, :size] = torch.tensor(tree.ids)
        positions[row, :size] = torch.tensor(tree.depths)
        seen[row, :size, :size] = torch.from_numpy(tree.sees())
    mask = torch.zeros(len(trees), 1, width, width, dtype=dtype).masked_fill_(~seen.unsqueeze(1), torch.finfo(dtype).min)
    return ids, mask, positions
