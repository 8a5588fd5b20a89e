"""What is wrong with a configuration, in one line: which key, what it must be, what was given."""

import difflib
import math
from collections.abc import Iterable, Iterator, Mapping
from datetime import date, time
from typing import Any

from pydantic import BaseModel, ValidationError

from cam_pipeline.config.settings import Config

DEEPEST = 20
"""Levels of tables and lists in each other; nobody needs more, and Python's own limit would end in a traceback."""

MUST_BE = {
    "int_parsing": "a whole number",
    "int_type": "a whole number",
    "int_parsing_size": "a whole number of fewer digits",
    "int_from_float": "a whole number",
    "float_parsing": "a number",
    "float_type": "a number",
    "finite_number": "a finite number",
    "bool_parsing": "true or false",
    "bool_type": "true or false",
    "string_type": "text",
    "path_type": "a path, as text",
    "tuple_type": "a list",
    "dict_type": "a table such as {{key = value}}",
    "model_type": "a section with keys of its own",
    "literal_error": "{expected}",
    "greater_than": "greater than {gt}",
    "greater_than_equal": "at least {ge}",
    "less_than": "less than {lt}",
    "less_than_equal": "at most {le}",
    "too_short": "a list of at least {min_length}",
    "too_long": "a list of at most {max_length}",
    "missing": "given: the list is too short",
}
"""Pydantic's kinds of errors in plain words; it fills in the names in braces."""


def check_plain(value: Any, key: str = "", depth: int = 0) -> None:
    """Raise ValueError for a value that no setting can have, as it cannot be written and read back."""
    key = shortened(key)
    if depth > DEEPEST:
        raise ValueError(f"{shortened(key)} is nested too deeply")
    if isinstance(value, Mapping):
        for name, item in value.items():
            check_plain(name, f"a key of {key or 'the file'}", depth)
            check_plain(item, f"{key}.{name}" if key else name, depth + 1)
    elif isinstance(value, list):
        for item in value:
            check_plain(item, key, depth + 1)
    elif isinstance(value, str):
        if "\0" in value or not _is_unicode(value):
            raise ValueError(f"{key} holds a character that is not text, given {shown(value)}")
    elif isinstance(value, int) and not -(2**63) <= value < 2**63:
        raise ValueError(f"{key} must be less than 2 to the power of 63, given {shown(value)}")
    elif isinstance(value, float) and not math.isfinite(value) and (math.isnan(value) or depth > 2):
        raise ValueError(f"{key} must be a finite number, given {value}")  # infinity is left to the keys that take it
    elif isinstance(value, date | time):
        raise ValueError(f"{key} must not be a date or time; write text in quotes, given {value}")


def _is_unicode(text: str) -> bool:
    """False for the text that the command line makes of bytes that are not UTF-8."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def explain(error: ValidationError) -> str:
    """The first problem in one line: key, what it must be, and the nearest valid key for an unknown one."""
    first = error.errors()[0]
    path = [str(part) for part in first["loc"] if isinstance(part, str)]
    items = [part for part in first["loc"] if isinstance(part, int)]
    if first["type"] == "extra_forbidden":
        return _unknown(path, first["input"])
    where = ".".join(path) + "".join(f", item {number + 1}," for number in items)
    if first["type"] == "value_error":
        message = first["msg"].removeprefix("Value error, ")
        return f"{where} {message}" if message.startswith("must ") else f"{where}: {message}".removeprefix(": ")
    if first["type"] == "string_pattern_mismatch":
        return f"{where} must be {_described(path)}, given {shown(first['input'])}"
    words = MUST_BE.get(first["type"])
    if words is None:
        return f"{where}: {first['msg']}, given {shown(first['input'])}"
    bounds = {
        name: int(x) if isinstance(x, float) and x.is_integer() else x for name, x in first.get("ctx", {}).items()
    }
    line = f"{where} must be {words.format(**bounds)}, given {shown(first['input'])}"
    if first["type"] == "tuple_type" and isinstance(first["input"], str):
        line += f'; write --set \'{where}=["a", "b"]\', with quotes of both kinds'
    return line


def shown(value: Any, longest: int = 80) -> str:
    """A value as it was given, on one line, shortened."""
    try:
        text = ascii(value) if isinstance(value, str) and not value.isprintable() else repr(value)
    except ValueError:  # Python writes out no number of more than 4300 digits
        return "a number of very many digits"
    return shortened(text, longest)


def shortened(text: str, longest: int = 80) -> str:
    """A long text without its middle."""
    return text if len(text) <= longest else f"{text[: longest // 2]} ... {text[-longest // 2 :]}"


def _unknown(path: list[str], value: Any) -> str:
    """An unknown key, with the nearest that there is."""
    fields = list(_fields_at(path[:-1]))
    near = [".".join([*path[:-1], name]) for name in difflib.get_close_matches(path[-1], fields, n=1)]
    elsewhere = [".".join(key) for key, _ in _keys(Config) if key[-1] == path[-1]]
    stray = len(path) == 1 and not isinstance(value, Mapping)  # a key that lacks its section, rather than a section
    found = (elsewhere + near if stray else near + elsewhere)[:1]
    hint = f"did you mean {found[0]}?" if found else f"valid here: {', '.join(fields)}"
    return f"unknown key {shortened('.'.join(path))}; {hint}"


def _described(path: list[str]) -> str:
    """The description of a key."""
    return next((field.description or "" for key, field in _keys(Config) if list(key) == path), "of another form")


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
