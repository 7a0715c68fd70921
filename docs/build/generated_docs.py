"""The pages that are made from the code and from results: written with --write, otherwise checked for being up to date.

docs/cli.md (the commands' own help), docs/results.md (from benchmarks/results), the table in README.md between the `results`
marks, the tables in docs/method.md, docs/methods.md, docs/evaluation.md, docs/serving.md, docs/comparison.md, docs/recipe.md,
docs/audit.md, docs/claims.md, docs/erasure.md, docs/large_models.md, docs/energy.md and benchmarks/README.md between theirs,
and figures. Ends with exit code 1 and the names of stale pages, and with what the API reference, which is not kept, lacks
(reference.py).
"""

from __future__ import annotations

import argparse
import os
import re
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

os.environ.update(COLUMNS="100", TERM="dumb", NO_COLOR="1")

import typer
from typer.testing import CliRunner

from audit_page import audit_blocks, audit_section
from benchmark_page import benchmark_blocks
from claims_page import claim_blocks
from comparison_page import comparison_blocks, comparison_figures, comparison_section
from d2unlearn.cli.main import app
from energy_figures import energy_figures
from energy_page import energy_blocks
from erasure_page import erasure_blocks, erasure_figure
from growth_page import growth_blocks, growth_figure
from method_figures import figure_files
from method_numbers import number_blocks
from methods_page import method_blocks
from recipe_page import recipe_blocks
from reference import made as reference_pages
from serving_table import serving_blocks
from tables import ROOT
from tofu_page import readme_table, results_page
from tofu_suite_page import evaluation_blocks, suite_section
from wordings_figure import wordings_figure

KEPT = ROOT / "benchmarks" / "results"
RESULTS = KEPT / "tofu"
SUITE = KEPT / "tofu-benchmark"
MARKS = re.compile(r"(<!-- results: docs/build/generated_docs.py -->\n).*?(<!-- end of results -->)", re.DOTALL)
BLOCK = re.compile(r"(<!-- made by `make docs`: ([\w-]+) -->\n).*?(<!-- end -->)", re.DOTALL)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--write", action="store_true")
    write = parser.parse_args().write
    stale = []
    for path, text in pages().items():
        if not path.is_file() or path.read_text(encoding="utf-8") != text:
            stale.append(str(path.relative_to(ROOT)))
            if write:
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_text(text, encoding="utf-8")
    if stale:
        print(f"{'written' if write else 'stale, run make docs'}: {', '.join(stale)}")
    wrong = [] if write else reference_pages()[1]
    for line in wrong:
        print(line)
    sys.exit(bool(stale and not write) or bool(wrong))


def pages() -> dict[Path, str]:
    readme = ROOT / "README.md"
    text = readme.read_text(encoding="utf-8")
    if not MARKS.search(text):
        sys.exit("README.md has lost the marks between which its table of results stands")
    return {
        ROOT / "docs" / "cli.md": cli_page(),
        ROOT / "docs" / "results.md": "\n".join(
            [
                results_page(RESULTS),
                audit_section(KEPT / "audit"),
                suite_section(SUITE),
                comparison_section(KEPT / "comparison"),
            ]
        ),
        readme: MARKS.sub(lambda m: m[1] + readme_table(RESULTS) + m[2], text),
        **filled(ROOT / "docs" / "method.md", number_blocks(KEPT)),
        **filled(ROOT / "docs" / "methods.md", method_blocks()),
        **filled(ROOT / "docs" / "energy.md", energy_blocks(KEPT)),
        **energy_figures(KEPT),
        **filled(ROOT / "docs" / "evaluation.md", evaluation_blocks(SUITE)),
        **filled(ROOT / "docs" / "audit.md", audit_blocks(KEPT / "audit")),
        **filled(ROOT / "docs" / "claims.md", claim_blocks(KEPT)),
        **filled(ROOT / "docs" / "erasure.md", erasure_blocks(KEPT)),
        **erasure_figure(KEPT),
        **filled(ROOT / "docs" / "large_models.md", growth_blocks(KEPT)),
        **growth_figure(KEPT),
        **filled(ROOT / "docs" / "recipe.md", recipe_blocks(KEPT)),
        **filled(ROOT / "docs" / "serving.md", serving_blocks(KEPT)),
        **wordings_figure(KEPT),
        **filled(ROOT / "benchmarks" / "README.md", benchmark_blocks(KEPT)),
        **filled(ROOT / "docs" / "comparison.md", comparison_blocks(KEPT / "comparison")),
        **comparison_figures(KEPT / "comparison"),
        **figure_files(),
    }


def filled(page: Path, blocks: Mapping[str, str]) -> dict[Path, str]:
    """A page written by hand whose marked blocks are made: {page: its text with every block as it should be}."""
    text = page.read_text(encoding="utf-8")
    marked = [found[2] for found in BLOCK.finditer(text)]
    if sorted(marked) != sorted(blocks):
        sys.exit(f"{page.relative_to(ROOT)} should have the marks {', '.join(sorted(blocks))}; it has {', '.join(marked)}")
    return {page: BLOCK.sub(lambda found: f"{found[1]}{blocks[found[2]]}\n{found[3]}", text)}


def cli_page() -> str:
    """Every command's help, as the terminal shows it."""
    parts = ["# The commands\n\nMade from the commands' own help by `make docs`.\n"]
    for verb in verbs(typer.main.get_command(app)):
        shown = CliRunner().invoke(app, [*verb.split(), "--help"], prog_name="d2unlearn")
        if shown.exit_code:
            sys.exit(f"d2unlearn {verb} --help failed: {shown.output}")
        lines = "\n".join(line.rstrip() for line in shown.output.strip().splitlines())
        parts.append(f"## d2unlearn {verb}\n\n```text\n{lines}\n```\n")
    return "\n".join(parts)


def verbs(command: Any, *path: str) -> Iterator[str]:
    """The words that each command is called with."""
    if not hasattr(command, "commands"):
        yield " ".join(path)
    for name, verb in getattr(command, "commands", {}).items():
        yield from verbs(verb, *path, name)


if __name__ == "__main__":
    main()
