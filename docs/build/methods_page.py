"""The made parts of docs/methods.md: the table of methods, the example of a new one, what the conventions do."""

from __future__ import annotations

import inspect
import re
import sys
from dataclasses import fields
from pathlib import Path
from typing import Any

from d2unlearn.methods import METHODS, Method
from d2unlearn.quantities import HiddenState
from method_conventions import conventions_table
from tables import ROOT, table

EXAMPLE = ROOT / "examples" / "probability_ceiling.py"


def method_blocks() -> dict[str, str]:
    """What stands between the marks of docs/methods.md."""
    return {
        "methods": method_table(),
        "new-method": f"```python\n{EXAMPLE.read_text(encoding='utf-8')}```",
        "conventions": conventions_table(),
    }


def method_table() -> str:
    """Key, what it does, parameters with defaults, what it reads of the reference, source: from the classes themselves."""
    lines = []
    for key in METHODS:
        method: Any = METHODS[key]()
        home = inspect.getmodule(type(method))
        assert home is not None
        path = Path(inspect.getfile(home)).name
        lines.append(
            [
                f"[`{key}`](../src/d2unlearn/methods/{path})",
                (inspect.getdoc(home) or "").splitlines()[0],
                ", ".join(f"`{each.name}` {_shown(each.default)}" for each in fields(method) if each.name != "convention"),
                _reads(method),
                _source(inspect.getdoc(type(method)) or ""),
            ]
        )
    return table(["key", "what it does", "parameters", "of the frozen model, per token", "source"], lines, "lllll")


def _shown(default: object) -> str:
    return "–" if default is None else f"{default:g}" if isinstance(default, float) else str(default)


def _reads(method: Method) -> str:
    """How many numbers are stored for each token of a role's rows."""
    found = []
    for role, needs in method.needs.items():
        hidden = sum(isinstance(q, HiddenState) for q in needs.reference)
        single = len(needs.reference) - hidden
        sizes = [*(["H"] if hidden else []), *([str(single)] if single else [])]
        found += [f"{role.replace('_', ' ')} {' + '.join(sizes)}"] if sizes else []
    return ", ".join(found) or "nothing"


def _source(doc: str) -> str:
    """The papers of the docstring's `Source:`, as links."""
    said = re.search(r"Source:(.*)", doc, re.DOTALL)
    numbers = [] if said is None else re.findall(r"\b(\d{4}\.\d{5})\b", said[1])
    if not numbers:
        sys.exit(f"a method's docstring names no paper: {doc.splitlines()[0]}")
    return ", ".join(f"[{number}](https://arxiv.org/abs/{number})" for number in numbers)
