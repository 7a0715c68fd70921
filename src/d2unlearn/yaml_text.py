"""YAML as values, where no few lines may stand for more values than a memory holds."""

from __future__ import annotations

from typing import Any

import yaml

MAX_VALUES = 100_000
"""Values and keys of a text, each counted as often as aliases repeat it."""


def read_values(text: str) -> Any:
    """`yaml.safe_load`. Raises `yaml.YAMLError` for what is no YAML too, for a key that stands twice in a mapping, for an alias
    within what it names, and for more than `MAX_VALUES` values once every alias is written out (nine lines can stand for a
    billion).
    """
    node = yaml.compose(text, Loader=yaml.SafeLoader)
    if node is not None and _size(node, {}) > MAX_VALUES:
        raise yaml.YAMLError(f"its aliases stand for more than {MAX_VALUES} values; write them out, or use fewer")
    return yaml.load(text, _OnceLoader)


def _size(node: yaml.Node, sizes: dict[yaml.Node, int | None]) -> int:
    """Values below a node and itself. sizes: of the nodes that are known; None while a node's own is being found."""
    if node not in sizes:
        sizes[node] = None
        parts = [part for pair in node.value for part in pair] if isinstance(node, yaml.MappingNode) else node.value
        sizes[node] = 1 + (0 if isinstance(node, yaml.ScalarNode) else sum(_size(part, sizes) for part in parts))
    size = sizes[node]
    if size is None:
        raise yaml.YAMLError("an alias stands within what it names")
    return size


class _OnceLoader(yaml.SafeLoader):
    """YAML's safe loader, for which a key that stands twice in a mapping is a mistake."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        names = [
            key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode) and key.tag != "tag:yaml.org,2002:merge"
        ]
        twice = next((name for name in names if names.count(name) > 1), None)
        if twice is not None:
            raise yaml.constructor.ConstructorError(None, None, f"{twice} is given twice", node.start_mark)
        return super().construct_mapping(node, deep)
