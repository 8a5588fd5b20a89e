"""Every command, stage and config key is documented, and what is documented exists, links and paths too."""

import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import click
import pytest
from pydantic import BaseModel

from cam_pipeline.cli import main
from cam_pipeline.config import Config
from cam_pipeline.pipeline import load_stages

ROOT = Path(__file__).resolve().parents[1]


def commands(group: click.Group) -> dict[str, click.Command]:
    context = click.Context(group)
    found = {name: group.get_command(context, name) for name in group.list_commands(context)}
    return {name: command for name, command in found.items() if command is not None}


def models_in(annotation: Any) -> Iterator[type[BaseModel]]:
    """The settings models inside an annotation such as `X`, `X | None` or `dict[str, X]`."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for argument in get_args(annotation):
        yield from models_in(argument)


def keys(model: type[BaseModel], prefix: str = "") -> Iterator[tuple[str, str]]:
    """Dotted name and description of every key; a section may be described by its own docstring."""
    for name, field in model.model_fields.items():
        sections = list(models_in(field.annotation))
        yield prefix + name, field.description or " ".join(section.__doc__ or "" for section in sections)
        for section in sections:
            yield from keys(section, f"{prefix}{name}.")


def code_in(path: Path) -> str:
    """Fenced blocks and inline code of a page: where a command is meant as one to type."""
    return "\n".join(re.findall(r"```.*?```|`[^`\n]+`", path.read_text(), flags=re.DOTALL))


def without_code(text: str) -> str:
    """A page's text without fenced blocks and inline code, in which nothing is a link."""
    return re.sub(r"```.*?```|`[^`\n]+`", "", text, flags=re.DOTALL)


def anchors(text: str) -> set[str]:
    """What GitHub makes of a page's headings; the second of two alike gets -1."""
    found: list[str] = []
    for heading in re.findall(r"^#+ +(.+?) *$", re.sub(r"```.*?```", "", text, flags=re.DOTALL), flags=re.M):
        words = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading).lower()
        found.append(re.sub(r"[^\w\- ]", "", words).replace(" ", "-"))
    return {f"{name}-{number}" if (number := found[:place].count(name)) else name for place, name in enumerate(found)}


def broken_links(path: Path, text: str) -> list[str]:
    """Relative links of a page to files or headings that are not there."""
    broken = []
    for target in re.findall(r"\]\(([^)\s]+)\)", without_code(text)):
        file, _, anchor = target.partition("#")
        if re.match(r"[a-z]+:", file):
            continue
        other = (path.parent / file).resolve() if file else path
        inside = other.is_relative_to(ROOT) and other.exists()
        if not inside or (anchor and anchor not in anchors(text if other == path else other.read_text())):
            broken.append(target)
    return broken


def sections(text: str) -> dict[str, str]:
    """The text under each heading of the second level."""
    parts = re.split(r"^## +(.+?) *$", text, flags=re.M)
    return dict(zip(parts[1::2], parts[2::2], strict=True))


README = ROOT / "README.md"
PAGES = [README, ROOT / "CONTRIBUTING.md", *sorted(ROOT.glob("docs/**/*.md"))]
METHODS = [path for path in sorted(ROOT.glob("docs/methods/*.md")) if path.name != "README.md"]
HEADINGS = ["Paper", "Idea", "Switch", "Settings", "Where the code is", "What it brought", "Known limits"]
COMMANDS = commands(main)
KEYS = dict(keys(Config))


@pytest.mark.parametrize("name", COMMANDS)
def test_command_has_help_with_an_example(name: str) -> None:
    text = COMMANDS[name].help or ""
    assert "Example" in text, f"cam-pipeline {name}: the help text needs a line that begins with Example"
    assert f"cam-pipeline {name}" in text, f"cam-pipeline {name}: the example must show the command itself"


@pytest.mark.parametrize("name", COMMANDS)
def test_options_have_help(name: str) -> None:
    options = [option for option in COMMANDS[name].params if isinstance(option, click.Option)]
    silent = [option.opts[-1] for option in options if not option.help and not option.hidden]
    assert not silent, f"cam-pipeline {name}: no help for {silent}"


@pytest.mark.parametrize("name", COMMANDS)
def test_command_is_in_the_readme(name: str) -> None:
    pattern = rf"cam-pipeline {name}(?![\w-])|`{name}`"
    assert re.search(pattern, code_in(README)), f"README.md does not name `cam-pipeline {name}`"


@pytest.mark.parametrize("path", PAGES, ids=[str(path.relative_to(ROOT)) for path in PAGES])
def test_documented_commands_exist(path: Path) -> None:
    named = re.findall(r"(?:^|[`$/ ])cam-pipeline ([a-z][\w-]*)", code_in(path), flags=re.M)
    unknown = sorted(set(named) - set(COMMANDS))
    assert not unknown, f"{path.name} names commands that do not exist: {unknown}"


@pytest.mark.parametrize("path", PAGES, ids=[str(path.relative_to(ROOT)) for path in PAGES])
def test_links_lead_somewhere(path: Path) -> None:
    broken = broken_links(path, path.read_text())
    assert not broken, f"{path.relative_to(ROOT)} links to what is not there: {broken}"


@pytest.mark.parametrize(
    ("text", "broken"),
    [
        ("# Top\n[up](#top) [web](https://example.org/x) `[code](nowhere.md)`", []),
        ("[no file](nowhere.md) ![no image](nowhere.png)", ["nowhere.md", "nowhere.png"]),
        ("# Top\n[no heading](#bottom) [there](docs/configuration.md#cam)", ["#bottom"]),
        ("[no heading there](docs/configuration.md#camm) [outside](../x)", ["docs/configuration.md#camm", "../x"]),
        ("# It's `a`: b\n# Twice\n# Twice\n[one](#its-a-b) [two](#twice-1)", []),
        ("```\n# No heading\n[no link](nowhere.md)\n```\n[none](#no-heading)", ["#no-heading"]),
    ],
)
def test_broken_links_are_found(text: str, broken: list[str]) -> None:
    assert broken_links(README, text) == broken


@pytest.mark.parametrize("path", PAGES, ids=[str(path.relative_to(ROOT)) for path in PAGES])
def test_files_of_the_repository_that_a_page_names_are_there(path: Path) -> None:
    named = re.findall(r"`((?:cam_pipeline|stages|configs|docs|tests)/[\w./-]+\.\w+)`", path.read_text())
    missing = sorted({file for file in named if not (ROOT / file).is_file()})
    assert not missing, f"{path.relative_to(ROOT)} names files that are not there: {missing}"


@pytest.mark.parametrize("path", METHODS, ids=[path.stem for path in METHODS])
def test_pages_of_methods_have_the_same_headings(path: Path) -> None:
    assert list(sections(path.read_text())) == HEADINGS


@pytest.mark.parametrize("path", METHODS, ids=[path.stem for path in METHODS])
def test_the_code_of_a_method_is_where_its_page_says(path: Path) -> None:
    named = re.findall(r"`([\w.-]+(?:/[\w.-]+)+)`", sections(path.read_text())["Where the code is"])
    assert len(named) >= 3
    missing = [file for file in named if not (ROOT / file).is_file()]
    assert not missing, f"{path.relative_to(ROOT)} names files that are not there: {missing}"


@pytest.mark.parametrize("folder", ["methods", "results"])
def test_every_page_of_a_folder_is_in_its_index(folder: str) -> None:
    index = {"methods": ROOT / "docs/methods/README.md", "results": ROOT / "docs/results.md"}[folder]
    linked = {(index.parent / target).resolve() for target in re.findall(r"\]\(([^)#\s]+)", index.read_text())}
    lacking = [path.name for path in ROOT.glob(f"docs/{folder}/*.md") if path != index and path not in linked]
    assert not lacking, f"{index.relative_to(ROOT)} does not link to {lacking}"


def test_the_attention_example_works() -> None:
    (example,) = re.findall(r"```python\n(.*?)```", (ROOT / "docs/methods/acr.md").read_text(), flags=re.S)
    seen: dict[str, Any] = {}
    exec(example, seen)
    assert seen["attention"].shape == (4, 197, 197) and seen["to_patches"].shape == (4, 14, 14)


@pytest.mark.parametrize("name", load_stages())
def test_stage_is_documented(name: str) -> None:
    text = (ROOT / "docs/stages.md").read_text()
    assert f"`{name}`" in text, f"docs/stages.md does not describe `{name}`"


@pytest.mark.parametrize("name", KEYS)
def test_config_key_has_a_description(name: str) -> None:
    assert KEYS[name].strip(), f"{name} needs Field(..., description=...); a section needs a docstring"


def test_configuration_reference_is_current() -> None:
    command = [sys.executable, "-m", "cam_pipeline.config"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    advice = "docs/configuration.md is old. Run: .venv/bin/python -m cam_pipeline.config > docs/configuration.md"
    assert (ROOT / "docs/configuration.md").read_text() == done.stdout, advice


def test_configuration_reference_names_every_key() -> None:
    text = (ROOT / "docs/configuration.md").read_text()
    missing = [key for key in KEYS if (f"`{key}`" if "." in key else f"[{key}]") not in text]
    assert not missing, f"docs/configuration.md does not name {missing}"
