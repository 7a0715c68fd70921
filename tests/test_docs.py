"""The pages a person reads: links lead somewhere, figures come in both colours, numbers stated in prose are the code's."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest

from d2unlearn.data.holdout import hold_out, split_validation
from d2unlearn.schema import Example, Message
from d2unlearn.stats import smallest_n
from d2unlearn.version import __version__

ROOT = Path(__file__).resolve().parents[1]
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), ROOT / "benchmarks" / "README.md"])
LINK = re.compile(r"\]\(([^)\s]+)\)|(?:src|srcset)=\"([^\"]+)\"")
FENCED = re.compile(r"^```.*?^```", re.DOTALL | re.MULTILINE)
HEADING = re.compile(r"^#+ (.+)$", re.MULTILINE)
BLOCK = re.compile(r"<!-- made by `make docs`: [\w-]+ -->\n.*?<!-- end -->", re.DOTALL)


def anchors(page: Path) -> set[str]:
    """The names that GitHub gives to a page's headings."""
    headings = HEADING.findall(FENCED.sub("", page.read_text(encoding="utf-8")))
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_link_within_the_repository_leads_somewhere(page: Path) -> None:
    broken = []
    for link in ("".join(groups) for groups in LINK.findall(FENCED.sub("", page.read_text(encoding="utf-8")))):
        path, _, anchor = link.partition("#")
        if path.startswith(("http://", "https://")):
            continue
        target = page if not path else page.parent / path
        if not target.exists() or (anchor and anchor not in anchors(target)):
            broken.append(link)
    assert broken == []


def test_every_file_that_the_architecture_page_names_exists() -> None:
    text = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    named = re.findall(r"`((?:[\w.-]+/)*[\w-]+(?:\.\w+)+|[\w/]+/)`", text)
    named = [path for path in named if path.endswith("/") or path.endswith((".py", ".j2"))]
    assert len(named) > 60
    assert [path for path in named if not ((ROOT / path).exists() or (ROOT / "src" / "d2unlearn" / path).exists())] == []


def test_the_readme_s_tree_has_every_room() -> None:
    rooms = {path.name for path in (ROOT / "src" / "d2unlearn").iterdir() if (path / "__init__.py").is_file()}
    tree = (ROOT / "README.md").read_text(encoding="utf-8").partition("    src/d2unlearn/\n")[2]
    assert set(re.findall(r"^      (\w+)/ ", tree, re.MULTILINE)) == rooms


def test_the_changelog_s_first_version_is_the_package_s_and_has_a_date() -> None:
    headings = re.findall(r"^## (.+)$", (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"), re.MULTILINE)
    versions = [heading for heading in headings if heading != "Unreleased"]
    assert re.fullmatch(re.escape(__version__) + r" - \d{4}-\d\d-\d\d", versions[0])


def test_the_readme_says_which_oldest_versions_are_allowed() -> None:
    allowed = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    oldest = dict(re.findall(r"\b(torch|transformers)>=([\d.]+)", str(allowed["dependencies"])))
    oldest["Python"] = allowed["requires-python"].removeprefix(">=")
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    for name, row in (("Python", "Python"), ("torch", "PyTorch"), ("transformers", "transformers")):
        assert f"| {row} | {oldest[name]} or newer" in text


def test_no_formula_is_broken_over_two_lines() -> None:
    text = FENCED.sub("", (ROOT / "docs" / "method.md").read_text(encoding="utf-8"))
    assert [line for line in text.splitlines() if line.count("$") % 2] == []


def test_every_figure_is_drawn_for_light_and_for_dark_pages_in_the_same_shape() -> None:
    drawn = sorted(path.name for path in (ROOT / "docs" / "figures").glob("*.svg"))
    light = [name for name in drawn if not name.endswith("-dark.svg")]
    assert drawn == sorted([*light, *(name.replace(".svg", "-dark.svg") for name in light)])
    text = "".join(page.read_text(encoding="utf-8") for page in (ROOT / "docs").glob("*.md"))
    assert sorted(re.findall(r'(?:src|srcset)="figures/([^"]+)"', text)) == drawn
    for name in light:
        paths = [
            re.findall(r' d="([^"]*)"', (ROOT / "docs" / "figures" / n).read_text()) for n in (name, name[:-4] + "-dark.svg")
        ]
        assert paths[0] == paths[1]


def test_the_method_page_states_in_prose_the_counts_that_the_code_asks_for() -> None:
    prose = BLOCK.sub("", (ROOT / "docs" / "method.md").read_text(encoding="utf-8"))
    assert re.findall(r"\*\*(\d+)\*\*\s+(?:calibration\s+)?prompts", prose) == [
        str(smallest_n(0.01)),
        str(smallest_n(0.01, 0.9)),
    ]
    assert re.findall(r"Nine\s+looks\s+at\s+1%\s+refuse\s+([\d.]+%)", prose) == [f"{1 - 0.99**9:.2%}"]


def test_the_readme_names_the_fewest_retained_rows_that_leave_enough_to_calibrate_at_one_percent() -> None:
    (stated,) = re.findall(r"retain\s+file\s+needs\s+(\d+)\s", (ROOT / "README.md").read_text(encoding="utf-8"))
    rows = [Example(str(i), (Message("user", f"question {i}"),), "answer", f"row {i}") for i in range(int(stated))]

    def left(count: int) -> int:
        return len(split_validation(hold_out(rows[:count], seed=3).held_out, seed=3)[1])

    assert left(int(stated)) >= smallest_n(0.01) > left(int(stated) - 1)
