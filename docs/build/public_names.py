"""Public names of the package that are defined more than once, otherwise than CONTRIBUTING's table of names says.

    python docs/build/public_names.py        a line each: the name, and the files; ends with exit code 1 when there is one

A name is public when it stands at the top of a module without a leading underscore: a class, a function, a constant, a type.
"""

from __future__ import annotations

import ast
import re
import sys
from collections import defaultdict
from collections.abc import Iterator

from tables import ROOT

SOURCE = ROOT / "src" / "d2unlearn"
ROW = re.compile(r"^\| `(\w+)` \| ([^|]*\.py`) \|", re.MULTILINE)
"""Of CONTRIBUTING's table: a name, and the files that define it."""


def main() -> None:
    found, justified = repeated(), justified_names()
    wrong = [name for name in {**found, **justified} if found.get(name) != justified.get(name)]
    for name in wrong:
        print(f"{name}: {', '.join(found.get(name, ['in the table, and not defined twice']))}")
    sys.exit(bool(wrong))


def repeated() -> dict[str, list[str]]:
    """{name: files that define it}, where there is more than one."""
    found = defaultdict[str, list[str]](list)
    for path in sorted(SOURCE.rglob("*.py")):
        for name in dict.fromkeys(defined(ast.parse(path.read_text(encoding="utf-8")))):
            found[name].append(path.relative_to(SOURCE).as_posix())
    return {name: files for name, files in sorted(found.items()) if len(files) > 1 and not name.startswith("_")}


def defined(module: ast.Module) -> Iterator[str]:
    """The names that the statements at the top of a module define."""
    for statement in module.body:
        match statement:
            case ast.ClassDef(name=name) | ast.FunctionDef(name=name) | ast.AsyncFunctionDef(name=name):
                yield name
            case ast.Assign(targets=targets):
                yield from (node.id for target in targets for node in ast.walk(target) if isinstance(node, ast.Name))
            case ast.AnnAssign(target=ast.Name(id=name)):
                yield name


def justified_names() -> dict[str, list[str]]:
    rows = ROW.findall((ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8"))
    return {name: sorted(re.findall(r"`([^`]+)`", files)) for name, files in rows}


if __name__ == "__main__":
    main()
