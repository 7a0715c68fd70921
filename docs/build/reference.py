"""The API reference, from the docstrings of what is public, into build/reference.

`make docs-check` makes it and throws it away. What pdoc warns of is an error, and so is a
public class or function without a docstring.
"""

from __future__ import annotations

import importlib
import inspect
import sys
import warnings
from collections.abc import Iterator
from types import ModuleType
from typing import get_type_hints

import pdoc

from tables import ROOT

OUTPUT = ROOT / "build" / "reference"
PUBLIC = (
    "d2unlearn",
    "d2unlearn.commands",
    "d2unlearn.methods",
    "d2unlearn.methods.base",
    "d2unlearn.guards",
    "d2unlearn.guards.base",
    "d2unlearn.observation",
    "d2unlearn.quantities",
    "d2unlearn.plugins",
    "d2unlearn.schema",
    "d2unlearn.serialization",
    "d2unlearn.errors",
)
"""What is written for those who use the package from Python, or bring a method or a guard of their own."""


def main() -> None:
    pages, wrong = made()
    if wrong:
        sys.exit("\n".join(wrong))
    for name, text in pages.items():
        path = OUTPUT / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    print(OUTPUT / "index.html")


def made() -> tuple[dict[str, str], list[str]]:
    """{file: page}, and what is wrong with them."""
    bare = [f"{name} has no docstring" for module in PUBLIC for name in undocumented(module)]
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        pages = rendered()
    return pages, [*bare, *(str(warning.message) for warning in said if "pdoc" in warning.filename)]


def undocumented(module: str) -> Iterator[str]:
    """The module's public classes and functions that say nothing."""
    found = importlib.import_module(module)
    for name in getattr(found, "__all__", [name for name in vars(found) if not name.startswith("_")]):
        value = getattr(found, name)
        ours = inspect.isclass(value) or inspect.isfunction(value)
        if ours and value.__module__.startswith("d2unlearn") and not (value.__doc__ or "").strip():
            yield f"{module}.{name}"


def rendered() -> dict[str, str]:
    """{file: page} of every public module, with an index and a search over them."""
    for name in PUBLIC:
        resolve(importlib.import_module(name))
    modules = {name: pdoc.doc.Module.from_name(name) for name in PUBLIC}
    pages = {f"{name.replace('.', '/')}.html": pdoc.render.html_module(each, modules) for name, each in modules.items()}
    return {**pages, "index.html": pdoc.render.html_index(modules), "search.js": pdoc.render.search_index(modules)}


def resolve(module: ModuleType) -> None:
    """Puts in place what pdoc cannot look up: what a module loads at first use, and the types of named tuples' fields."""
    for name in getattr(module, "__all__", ()):
        setattr(module, name, getattr(module, name))
    for value in vars(module).values():
        if inspect.isclass(value) and issubclass(value, tuple) and hasattr(value, "_fields"):
            value.__new__.__annotations__ = get_type_hints(value)


if __name__ == "__main__":
    main()
