"""Methods and guards of other installed packages: entry points, read only for a name that is in no table of this package.

A package offers one in its `pyproject.toml`, and nothing of this one has to be edited:

    [project.entry-points."d2unlearn.methods"]
    my_method = "my_package.my_method:MyMethod"

The class is a frozen dataclass that subclasses `d2unlearn.methods.Method`; under `d2unlearn.guards` one of
`d2unlearn.guards.Guard`. No code of another package is run before a command names what it offers.
"""

from __future__ import annotations

from collections.abc import Collection
from importlib.metadata import EntryPoint, entry_points
from typing import NamedTuple, TypeVar

from d2unlearn.errors import ConfigError, D2Error, reason_of

Offered = TypeVar("Offered")


class Family(NamedTuple):
    """What can be offered: what one of them is called, under which group of entry points, and the names of our own."""

    called: str
    group: str
    own: Collection[str]


def load_plugin(family: Family, name: str, kind: type[Offered]) -> type[Offered]:
    """The class that another package offers under this name.

    Raises `ConfigError` where none does or several do, and where what is offered cannot be imported or is no frozen dataclass
    of this kind.
    """
    point = _entry_point(family, name)
    if point is None:
        offered = [each.name for each in entry_points(group=family.group) if each.name not in family.own]
        also = f", and of other packages: {', '.join(sorted(set(offered)))}" if offered else ""
        raise ConfigError([f"{family.called} {name!r} is not known; known: {', '.join(family.own)}{also}"])
    by = f"{family.called} {name!r} of {_distribution(point)}"
    try:
        made: object = point.load()
    except D2Error:
        raise
    except (Exception, SystemExit) as error:
        raise ConfigError([f"{by} cannot be loaded from {point.value}: {reason_of(error)}"]) from error
    if not (isinstance(made, type) and issubclass(made, kind) and _is_frozen(made)):
        raise ConfigError([f"{by}: {point.value} is no frozen dataclass that subclasses {kind.__module__}.{kind.__name__}"])
    return made


def plugin_origin(family: Family, name: str) -> dict[str, str]:
    """{distribution: version} of what offers this name; empty for a name of our own and for one that nobody offers."""
    point = None if name in family.own else _entry_point(family, name)
    return {} if point is None or point.dist is None else {point.dist.name: point.dist.version}


def is_offered(family: Family, name: str) -> bool:
    """Whether the name is no name of our own and another package offers it. Imports nothing of that package."""
    return name not in family.own and _entry_point(family, name) is not None


def _entry_point(family: Family, name: str) -> EntryPoint | None:
    """The one entry point of this name. Raises `ConfigError` where several packages offer different things under it."""
    points = list(
        {(_distribution(point), point.value): point for point in entry_points(group=family.group, name=name)}.values()
    )
    if len(points) > 1:
        packages = " and ".join(sorted(map(_distribution, points)))
        raise ConfigError([f"{family.called} {name!r} is offered by {packages}: uninstall all but one of them"])
    return points[0] if points else None


def _distribution(point: EntryPoint) -> str:
    return "an unnamed package" if point.dist is None else f"{point.dist.name} {point.dist.version}"


def _is_frozen(made: type) -> bool:
    """Whether it is a dataclass whose instances do not change."""
    parameters: object = getattr(made, "__dataclass_params__", None)
    return bool(getattr(parameters, "frozen", False))
