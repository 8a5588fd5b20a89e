"""From a TOML file and `--set` overrides to a Config, and back to TOML."""

import copy
import re
import tomllib
from collections.abc import Iterable
from importlib import resources
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from cam_pipeline.config.data import DataSettings
from cam_pipeline.config.mistakes import check_plain, explain, shortened, shown
from cam_pipeline.config.run import OutputSettings
from cam_pipeline.config.settings import Config
from cam_pipeline.config.toml import toml_value
from cam_pipeline.errors import ConfigError


def load_config(source: str | Path, overrides: Iterable[str] = ()) -> Config:
    """Read a TOML file, or a shipped config by name (`"demo"`), and apply `section.key=value` overrides.

    Raises ConfigError with one line that names the file or the command line, the key, and the nearest valid key.
    """
    config = _overridden(_parse(_content(source), str(source)), overrides, str(source))
    return _with_folder(config, Path("outputs") / Path(source).stem)


def default_config(overrides: Iterable[str] = ()) -> Config:
    """The defaults with overrides. Its folder is that of all run folders. Raises ConfigError as `load_config`."""
    return _with_folder(_overridden({}, overrides, "the defaults"), Path("outputs"))


def _with_folder(config: Config, folder: Path) -> Config:
    """The config with an output folder, if it names none itself."""
    return config if config.output.dir is not None else config.model_copy(update={"output": OutputSettings(dir=folder)})


def _overridden(values: dict[str, Any], overrides: Iterable[str], source: str) -> Config:
    """The config of nested settings, which are changed by `overrides`. Raises ConfigError, which names the place."""
    overrides = list(overrides)
    given = copy.deepcopy(values)
    for override in overrides:
        _apply(values, override)
    try:
        return _validated(values)
    except ValueError as error:
        place = "command line" if overrides and _is_valid(given) else source
        reason = explain(error) if isinstance(error, ValidationError) else str(error)
        raise ConfigError(f"{place}: {reason}") from error


def _validated(values: dict[str, Any]) -> Config:
    """The config of nested settings, which may be changed. Raises ValueError (pydantic's is one) for wrong ones."""
    check_plain(values)
    _fill_in_data_root(values)
    return Config.model_validate(values)


def _is_valid(values: dict[str, Any]) -> bool:
    try:
        _validated(values)
    except ValueError:
        return False
    return True


def _content(source: str | Path) -> bytes:
    """The bytes of a config file or of a shipped config. Raises ConfigError if it cannot be read."""
    path = Path(source)
    try:
        if path.suffix != ".toml" and str(source) in shipped_configs():
            return (resources.files("cam_pipeline.configs") / f"{source}.toml").read_bytes()
        return path.read_bytes()
    except IsADirectoryError:
        raise ConfigError(f"{source} is a folder; give a TOML file, for example {path / 'my.toml'}") from None
    except (FileNotFoundError, NotADirectoryError):
        known = ", ".join(shipped_configs())
        raise ConfigError(f"there is no config file {source}; give a path, or one of the shipped: {known}") from None
    except (OSError, ValueError) as error:  # ValueError: a NUL in the path
        reason = error.strerror if isinstance(error, OSError) else error
        raise ConfigError(f"the config file {source} cannot be read ({reason})") from error


def _parse(content: bytes, source: str) -> dict[str, Any]:
    """TOML as nested dicts. Raises ConfigError for anything else."""
    try:
        return tomllib.loads(content.decode("utf-8-sig"))  # a byte order mark, as Notepad writes it, is no part of it
    except RecursionError:
        raise ConfigError(f"{source} is not valid TOML: it is nested too deeply") from None
    except UnicodeDecodeError as error:
        raise ConfigError(f"{source} is not UTF-8, which TOML must be; save it as UTF-8") from error
    except ValueError as error:
        raise ConfigError(f"{source} is not valid TOML: {error}{_line_of(str(error), content)}") from error


def _line_of(message: str, content: bytes) -> str:
    """The line that a message of tomllib names, and what is most often wrong with it; empty if it names none."""
    named = re.search(r"at line (\d+)", message)
    lines = content.decode("utf-8-sig").split("\n")
    if not named or int(named[1]) > len(lines):
        return ""
    line = lines[int(named[1]) - 1].strip()
    hint = r"write / in place of \\" if "\\" in line else 'text needs straight quotes: root = "photos"'
    return f": {shown(line)}; {hint}"


def shipped_configs() -> list[str]:
    """Names of the configs inside the package, usable instead of a path."""
    folder = resources.files("cam_pipeline.configs")
    return sorted(item.name.removesuffix(".toml") for item in folder.iterdir() if item.name.endswith(".toml"))


def to_toml(config: Config) -> str:
    """The resolved config as TOML that `load_config` reads back to an equal config."""
    lines: list[str] = []
    for section, values in config.model_dump(mode="json", exclude_none=True).items():
        lines += [f"[{section}]", *(f"{key} = {toml_value(value)}" for key, value in values.items()), ""]
    return "\n".join(lines)


def _apply(values: dict[str, Any], override: str) -> None:
    """Put one `section.key=value` into the nested settings; the value is TOML, else taken as a string."""
    path, equals, text = override.partition("=")
    *sections, key = path.strip().split(".")
    if not equals or not sections:
        raise ConfigError(f"--set {shortened(override)}: write it as section.key=value, for example train_cls.epochs=5")
    try:
        parsed = tomllib.loads(f"value = {text}")
        value = parsed["value"] if len(parsed) == 1 else text.strip()
    except (ValueError, RecursionError):
        value = text.strip()
    for section in sections:
        values = values.setdefault(section, {})
        if not isinstance(values, dict):
            raise ConfigError(f"--set {shortened(override)}: {section} is a value, not a section")
    values[key] = value


def _fill_in_data_root(values: dict[str, Any]) -> None:
    """Put `data.root` for `{data.root}` in the weights settings, so that weights can lie beside the data."""
    data = values.get("data", {})
    root = data.get("root", DataSettings().root) if isinstance(data, dict) else ""
    if "{data.root}" in str(root):
        raise ValueError("data.root cannot hold {data.root}")
    for section, key in (("classifier", "weights"), ("classifier", "trunk_weights"), ("segmenter", "weights")):
        settings = values.get(section)
        if isinstance(settings, dict) and isinstance(settings.get(key), str):
            settings[key] = settings[key].replace("{data.root}", str(root))
