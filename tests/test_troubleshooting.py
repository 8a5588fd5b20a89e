"""Every line that docs/troubleshooting.md quotes is one that the program can print."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "troubleshooting.md"
SOURCES = sorted([*ROOT.glob("cam_pipeline/**/*.py"), *ROOT.glob("stages/**/*.py")])
SHARE = 0.4
"""Of a quoted line, what the texts of the program must account for; the rest is filled in: paths, names, numbers."""


def quoted(page: str) -> list[str]:
    """The indented lines of a page."""
    return [line.strip() for line in page.splitlines() if line.startswith("    ")]


def templates(source: str) -> Iterator[list[str]]:
    """The fixed parts of every text in a module, in order; between them stands what is filled in at run time."""
    tree = ast.parse(source)
    inner = {id(part) for node in ast.walk(tree) if isinstance(node, ast.JoinedStr) for part in node.values}
    for node in ast.walk(tree):
        if id(node) in inner:
            continue
        if isinstance(node, ast.JoinedStr):
            parts = "".join(part.value if isinstance(part, ast.Constant) else "\0" for part in node.values).split("\0")
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and "\n" not in node.value:
            parts = re.split(r"%[ds]|{\w+}", node.value)
        else:
            continue
        if max(map(len, parts)) >= 7:
            yield parts


TEMPLATES = [
    (parts, re.compile(".*?".join(f"({re.escape(part)})" for part in parts)))
    for path in SOURCES
    for parts in templates(path.read_text())
]


def is_printed(line: str) -> bool:
    """Whether texts of the program, each as a whole, account for enough of a line."""
    letters = set()
    for parts, pattern in TEMPLATES:
        if found := pattern.search(line):
            for number in range(1, 1 + len(parts)):
                letters.update(range(*found.span(number)))
    return len(letters) >= max(1, SHARE * len(line))


@pytest.mark.parametrize("line", quoted(PAGE.read_text()))
def test_quoted_line_is_in_the_program(line: str) -> None:
    assert is_printed(line), f"nothing in the sources prints: {line}"


def test_the_page_quotes_many_lines() -> None:
    assert len(quoted(PAGE.read_text())) >= 40


@pytest.mark.parametrize(
    "line", ["the disk is full, buy another", "data/a.jpg cannot be read as a picture; replace it", "Error", ""]
)
def test_other_lines_are_not_taken_for_messages(line: str) -> None:
    assert not is_printed(line)
