"""Every command, stage and config key is documented, and what is documented exists."""

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
from cam_pipeline.pipeline import STAGES

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


README = ROOT / "README.md"
PAGES = [README, ROOT / "CONTRIBUTING.md", *sorted(ROOT.glob("docs/**/*.md"))]
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


@pytest.mark.parametrize("path", PAGES, ids=[path.name for path in PAGES])
def test_documented_commands_exist(path: Path) -> None:
    named = re.findall(r"(?:^|[`$/ ])cam-pipeline ([a-z][\w-]*)", code_in(path), flags=re.M)
    unknown = sorted(set(named) - set(COMMANDS))
    assert not unknown, f"{path.name} names commands that do not exist: {unknown}"


def test_the_attention_example_works() -> None:
    (example,) = re.findall(r"```python\n(.*?)```", (ROOT / "docs/methods.md").read_text(), flags=re.S)
    seen: dict[str, Any] = {}
    exec(example, seen)
    assert seen["attention"].shape == (4, 197, 197) and seen["to_patches"].shape == (4, 14, 14)


@pytest.mark.parametrize("name", STAGES)
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
