"""Imports go one way: the order of the package's modules, what each may import, and what loads without torch."""

from __future__ import annotations

import ast
import importlib
import subprocess
import sys
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path
from typing import NamedTuple

import pytest

import d2unlearn

SOURCE = Path(d2unlearn.__file__).parent
CORE = "energy errors head layers likelihood observation positions quantities quantization refusals schema sharding"
FILES = "artifact config fields outputs runtime serialization version yaml_text"

ALLOWED = {
    "version": "",
    "errors": "",
    "schema": "",
    "runtime": "errors",
    "stats": "errors schema",
    "serialization": "errors runtime schema",
    "language": "",
    "refusals": "errors language runtime",
    "metrics": "refusals schema stats",
    "wordings": "errors runtime schema",
    "energy": "errors",
    "rounding": "",
    "signing": "errors runtime",
    "redaction": "schema",
    "loaded_files": "errors runtime schema",
    "template_date": "",
    "adapters": "errors",
    "compatibility": "errors",
    "quantization": "errors",
    "sharding": "",
    "saving": "errors runtime",
    "stored_tensors": "errors loaded_files",
    "gguf": "errors runtime saving",
    "models": "adapters compatibility errors gguf loaded_files quantization runtime schema sharding "
    "stored_tensors template_date",
    "fields": "runtime",
    "yaml_text": "",
    "config": "errors fields runtime yaml_text",
    "outputs": "errors runtime schema",
    "artifact": "errors outputs runtime schema version",
    "likelihood": "",
    "positions": "likelihood",
    "quantities": "energy errors",
    "head": "energy errors quantities",
    "observation": "errors head likelihood positions quantities schema sharding",
    "layers": "errors observation",
    "plugins": "errors",
    "methods": f"{CORE} plugins",
    "data": f"{CORE} runtime template_date",
    "teacher_forcing": f"{CORE} data runtime",
    "fine_tuning": f"{CORE} data runtime",
    "training": f"{CORE} {FILES} data fine_tuning loaded_files methods metrics models plugins stats stored_tensors "
    "teacher_forcing wordings",
    "gate": f"{CORE} {FILES} compatibility data loaded_files metrics models signing stats template_date wordings",
    "generation": f"{CORE} {FILES} compatibility data gate loaded_files models",
    "topic": f"{CORE} {FILES} data generation models wordings",
    "guards": f"{CORE} data fields gate generation models plugins runtime stats",
    "serving": f"{CORE} {FILES} data gate generation models signing",
    "report": "errors metrics outputs redaction runtime schema serialization stats version",
    "evaluation": f"{CORE} {FILES} compatibility data gate generation metrics models redaction stats teacher_forcing",
    "attacks": f"{CORE} data fine_tuning gate generation layers metrics models rounding runtime stats teacher_forcing wordings",
    "audit": f"{CORE} {FILES} attacks data gate generation guards metrics models plugins report stats teacher_forcing "
    "training wordings",
    "benchmark": f"{CORE} {FILES} data evaluation gate generation metrics models stats teacher_forcing",
    "analysis": f"{CORE} {FILES} data evaluation gate generation metrics models report rounding stats",
    "comparison": f"{CORE} {FILES} attacks audit benchmark data evaluation gate generation gguf guards methods metrics "
    "models plugins report stats teacher_forcing training wordings",
    "quickstart": f"{CORE} {FILES} audit data evaluation gate gguf models report saving topic training",
    "commands": "analysis artifact audit benchmark comparison config data errors evaluation fields gate generation gguf models "
    "quickstart report runtime schema serving signing topic training",
    "cli": f"{FILES} analysis audit commands data errors gate generation gguf models quickstart report schema serving signing "
    "stats topic training",
}
"""A module or package, and the modules or packages that it may import: each must stand on a line above.

One line, or one word more on a line, lets new code in. Within a package any import goes that closes no circle; nothing imports
the package's top.
"""

LIBRARIES = {
    "version": "",
    "errors": "",
    "schema": "",
    "stats": "numpy scipy",
    "serialization": "",
    "language": "",
    "refusals": "",
    "loaded_files": "",
    "redaction": "",
    "metrics": "numpy rouge_score scipy",
    "wordings": "",
    "energy": "torch",
    "rounding": "torch",
    "template_date": "",
    "adapters": "",
    "likelihood": "torch",
    "positions": "torch",
    "quantities": "torch",
    "head": "torch",
    "observation": "torch",
    "layers": "torch",
    "plugins": "",
    "methods": "torch",
    "teacher_forcing": "numpy torch",
    "fine_tuning": "numpy torch",
    "topic.facts": "",
    "topic.making": "",
    "topic.table": "",
    "gate.asked": "numpy",
    "gate.calibrate": "numpy",
    "gate.choice": "numpy",
    "gate.described": "",
    "gate.families": "numpy",
    "gate.groups": "",
    "gate.guarantees": "numpy",
    "gate.picture": "numpy",
    "gate.simulation": "numpy",
    "gate.score": "numpy",
    "report": "jinja2 markupsafe matplotlib numpy scipy",
    "audit.claims": "",
    "audit.records": "",
    "audit.verdict": "numpy",
    "audit.summary": "numpy",
    "audit.page": "jinja2 markupsafe matplotlib numpy scipy",
    "audit.page_figures": "matplotlib",
    "audit.page_pictures": "",
    "attacks.reading": "",
    "analysis.records": "",
    "analysis.significance": "",
    "analysis.roc": "numpy scipy",
    "analysis.thresholds": "numpy",
    "analysis.distances": "numpy",
    "analysis.page": "jinja2 markupsafe matplotlib numpy scipy",
    "analysis.page_figures": "matplotlib numpy scipy",
    "analysis.page_panels": "markupsafe numpy",
    "analysis.page_tables": "",
    "comparison.records": "",
    "comparison.objective": "numpy",
    "comparison.outcomes": "numpy",
    "comparison.table": "scipy numpy",
    "comparison.markdown": "",
    "comparison.page": "jinja2 markupsafe matplotlib numpy scipy",
    "comparison.win_tie_loss": "matplotlib numpy scipy",
    "comparison.tradeoff": "matplotlib numpy scipy",
    "comparison.plan": "",
    "comparison.questions": "numpy",
}
"""The pure core: all that these may import beside the standard library, even inside a function."""


class Import(NamedTuple):
    """`module` imports `target`; both dotted, ours without the package's own name."""

    module: str
    target: str
    for_types: bool

    def __str__(self) -> str:
        return f"{self.module} imports {self.target}"


def name_of(path: Path) -> str:
    parts = path.relative_to(SOURCE).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {name_of(path): ast.parse(path.read_text(encoding="utf-8")) for path in sorted(SOURCE.rglob("*.py"))}


def nodes(tree: ast.AST, for_types: bool = False) -> Iterator[tuple[ast.AST, bool]]:
    """All nodes, also those inside functions; the second says whether they stand under `if TYPE_CHECKING`."""
    for node in ast.iter_child_nodes(tree):
        under = for_types or (isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test))
        yield node, under
        yield from nodes(node, under)


def targets(node: ast.AST) -> list[str]:
    """Full dotted names that a statement imports; for `from a import b` it is `a.b`."""
    match node:
        case ast.Import(names=names):
            return [name.name for name in names]
        case ast.ImportFrom(module=module, names=names, level=level):
            assert level == 0, f"a relative import: {ast.unparse(node)}"
            return [f"{module}.{name.name}" for name in names]
        case ast.Call(func=ast.Name(id="import_module" | "__import__"), args=[ast.Constant(value=str(value)), *_]):
            return [value]
        case ast.Call(func=ast.Attribute(attr="import_module"), args=[ast.Constant(value=str(value)), *_]):
            return [value]
    return []


def imports() -> Iterator[Import]:
    for module, tree in MODULES.items():
        for node, for_types in nodes(tree):
            for target in targets(node):
                yield Import(module, target, for_types)


def ours() -> list[Import]:
    """Imports of our own modules, named by the module that defines what is imported."""
    found = []
    for each in imports():
        package, _, target = each.target.partition(".")
        if package == "d2unlearn":
            while target not in MODULES:
                target = target.rpartition(".")[0]
            found.append(each._replace(target=target))
    return found


def line_of(module: str, table: dict[str, str]) -> str | None:
    """The most exact line of a table that holds for the module."""
    names = [name for name in table if f"{module}.".startswith(f"{name}.")]
    return max(names, key=len, default=None)


OURS = ours()
CHECKED = [each for each in OURS if each.module and each.module.partition(".")[0] != each.target.partition(".")[0]]


def test_the_reader_of_imports_sees_functions_types_and_calls() -> None:
    source = (
        "from d2unlearn.gate import EnergyGate\nif TYPE_CHECKING:\n    import torch\n"
        "def f():\n    from d2unlearn import energy\n    importlib.import_module('d2unlearn.head')"
    )
    found = [(target, for_types) for node, for_types in nodes(ast.parse(source)) for target in targets(node)]
    assert sorted(found) == [
        ("d2unlearn.energy", False),
        ("d2unlearn.gate.EnergyGate", False),
        ("d2unlearn.head", False),
        ("torch", True),
    ]
    assert Import("gate.gate", "gate.calibrate", False) in OURS
    assert Import("", "training.trainer", True) in OURS


def test_every_module_has_a_line() -> None:
    assert [name for name in MODULES if name and line_of(name, ALLOWED) is None] == []


def test_every_line_is_of_a_module_and_allows_only_what_stands_above_it() -> None:
    above: list[str] = []
    for name, allowed in ALLOWED.items():
        assert name in MODULES
        assert "." not in name, "no line for a single file of a package"
        for other in allowed.split():
            assert other in MODULES
            assert line_of(other, dict.fromkeys(above, "")), f"{name} may import {other}, which does not stand above it"
        above.append(name)


def test_modules_import_only_what_their_line_allows() -> None:
    mistakes = []
    for each in CHECKED:
        line = line_of(each.module, ALLOWED)
        if line is not None and line_of(each.target, dict.fromkeys(ALLOWED[line].split(), "")) is None:
            mistakes.append(f"{each}: not on the line of {line}")
    assert mistakes == []


def test_no_module_imports_itself_round_a_circle() -> None:
    graph: dict[str, set[str]] = {name: set() for name in MODULES}
    for each in OURS:
        graph[each.module].add(each.target)
    try:
        order = list(TopologicalSorter(graph).static_order())
    except CycleError as error:
        pytest.fail(" -> ".join(error.args[1]))
    assert order.index("energy") < order.index("head") < order.index("training.trainer") < order.index("cli.main")


def test_nothing_imports_the_package_s_top_from_inside() -> None:
    assert [str(each) for each in OURS if not each.target] == []


def test_nothing_imports_the_command_line() -> None:
    assert [str(each) for each in OURS if each.target.startswith("cli") and not each.module.startswith("cli")] == []


def test_the_pure_core_imports_only_its_libraries() -> None:
    mistakes = []
    for each in imports():
        line, library = line_of(each.module, LIBRARIES), each.target.partition(".")[0]
        known = {"d2unlearn", "__future__", *sys.stdlib_module_names}
        if line is not None and library not in {*known, *LIBRARIES[line].split()}:
            mistakes.append(str(each))
    assert mistakes == []


PAGES = ("report", "audit.page", "analysis.page", "comparison.page")
REPORT = sorted(f"d2unlearn.{name}" for name in MODULES if name.startswith(PAGES))


@pytest.mark.parametrize(
    "program",
    [
        pytest.param("import d2unlearn; dir(d2unlearn); d2unlearn.__version__", id="the package"),
        pytest.param(f"import {', '.join(REPORT)}", id="the report"),
        pytest.param("sys.argv = ['d2unlearn', '--help']; from d2unlearn.cli.main import run; run()", id="--help"),
    ],
)
def test_what_should_be_quick_does_not_load_torch(program: str) -> None:
    watched = "{m for m in sys.modules if m.partition('.')[0] in ('torch', 'transformers')}"
    source = f"import sys\ntry:\n    {program}\nexcept SystemExit as end:\n    assert not end.code\nprint(sorted({watched}))"
    done = subprocess.run([sys.executable, "-c", source], capture_output=True, text=True, timeout=120, check=True)
    assert done.stdout.splitlines()[-1] == "[]"


def test_the_public_names_are_the_things_that_they_name() -> None:
    for name in d2unlearn.__all__:
        assert name == "METHODS" or getattr(d2unlearn, name).__name__ == name
        assert name in dir(d2unlearn)
    assert d2unlearn.METHODS is importlib.import_module("d2unlearn.methods").METHODS
    assert d2unlearn.free_energy is importlib.import_module("d2unlearn.energy").free_energy
    with pytest.raises(AttributeError, match="'d2unlearn' has no attribute 'no_such_name'"):
        _ = d2unlearn.no_such_name
