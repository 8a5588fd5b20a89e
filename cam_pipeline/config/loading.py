"""From a TOML file and `--set` overrides to a Config, and back to TOML."""

import difflib
import json
import tomllib
from collections.abc import Iterable, Iterator, Mapping
from importlib import resources
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError

from cam_pipeline.config.settings import Config, DataSettings, OutputSettings
from cam_pipeline.errors import ConfigError


def load_config(source: str | Path, overrides: Iterable[str] = ()) -> Config:
    """Read a TOML file, or a shipped config by name (`"demo"`), and apply `section.key=value` overrides.

    Raises ConfigError with one line that names the file or override, the key, and the nearest valid key.
    """
    path = Path(source)
    if path.suffix != ".toml" and str(source) in shipped_configs():
        content = (resources.files("cam_pipeline.configs") / f"{source}.toml").read_bytes()
    elif path.is_file():
        content = path.read_bytes()
    else:
        known = ", ".join(shipped_configs())
        raise ConfigError(f"there is no config file {source}; give a path, or one of the shipped: {known}")
    try:
        values = tomllib.loads(content.decode())
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{source} is not valid TOML: {error}") from error
    for override in overrides:
        _apply(values, override)
    _fill_in_data_root(values)
    try:
        config = Config.model_validate(values)
    except ValidationError as error:
        raise ConfigError(f"{source}: {_explain(error)}") from error
    if config.output.dir is None:
        output = OutputSettings(dir=Path("outputs") / path.stem)
        config = config.model_copy(update={"output": output})
    return config


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


def toml_value(value: Any) -> str:
    """JSON and TOML write strings, numbers, booleans and lists alike; tables, infinity and the DEL character differ."""
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{toml_value(key)} = {toml_value(item)}" for key, item in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(toml_value(item) for item in value) + "]"
    if isinstance(value, float):
        return repr(value)  # inf and nan are spelt as in TOML
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")


def _apply(values: dict[str, Any], override: str) -> None:
    """Put one `section.key=value` into the nested settings; the value is TOML, else taken as a string."""
    path, equals, text = override.partition("=")
    *sections, key = path.strip().split(".")
    if not equals or not sections:
        raise ConfigError(f"--set {override}: write it as section.key=value, for example train_cls.epochs=5")
    try:
        value = tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        value = text.strip()
    for section in sections:
        values = values.setdefault(section, {})
        if not isinstance(values, dict):
            raise ConfigError(f"--set {override}: {section} is a value, not a section")
    values[key] = value


def _fill_in_data_root(values: dict[str, Any]) -> None:
    """Put `data.root` for `{data.root}` in the two weights settings, so that weights can lie beside the data."""
    data = values.get("data", {})
    root = data.get("root", DataSettings().root) if isinstance(data, dict) else ""
    for section in (values.get("classifier"), values.get("segmenter")):
        if isinstance(section, dict) and isinstance(section.get("weights"), str):
            section["weights"] = section["weights"].replace("{data.root}", str(root))


def _explain(error: ValidationError) -> str:
    """The first problem in one line: key, what is wrong, and the nearest valid key for an unknown one."""
    first = error.errors()[0]
    path = [str(part) for part in first["loc"]]
    if first["type"] == "extra_forbidden":
        fields: list[str] = list(_fields_at(path[:-1]))
        near = difflib.get_close_matches(path[-1], fields, n=1)
        elsewhere = [".".join(key) for key, _ in _keys(Config) if key[-1] == path[-1]]
        hint = f"did you mean {'.'.join([*path[:-1], near[0]])}?" if near else f"valid here: {', '.join(fields)}"
        return f"unknown key {'.'.join(path)}; {f'did you mean {elsewhere[0]}?' if elsewhere and not near else hint}"
    message = first["msg"].removeprefix("Value error, ")
    given = "" if isinstance(first["input"], dict) else f" (given: {first['input']!r})"
    return f"{'.'.join(path)}: {message}{given}"


def _fields_at(path: list[str]) -> Iterable[str]:
    model: Any = Config
    for part in path:
        model = model.model_fields[part].annotation
    return model.model_fields if isinstance(model, type) and issubclass(model, BaseModel) else ()


def _keys(model: type[BaseModel], path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    for name, field in model.model_fields.items():
        annotation = field.annotation
        if isinstance(annotation, type) and issubclass(annotation, BaseModel):
            yield from _keys(annotation, (*path, name))
        else:
            yield (*path, name), field
