"""When a setting matters: a condition beside the type of its field.

    crf_iterations: Annotated[int, If("refine.crf", True)] = Field(10, description="mean-field iterations")

Several conditions must all hold; `|` joins those of which one suffices. A setting that does not matter itself meets no
condition, so a chain need not be repeated: `gaussian_sxy` depends on `gaussian_weight`, and that on `crf`. A section
can have a condition, too, which all of its keys share.

Of a key that does not matter nothing is in the fingerprint of a result; docs/configuration.md says "only if ...", and
the command line warns whoever has set it.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from operator import attrgetter
from typing import Any, Protocol

from pydantic.fields import FieldInfo

from cam_pipeline.config.toml import toml_value


class Settings(Protocol):
    """What conditions are about: a Config."""

    def why_idle(self, path: str) -> str:
        """Why a key does not matter; empty if it does."""


class Condition:
    """Base of all conditions. `text` is what docs/configuration.md says behind "only if"."""

    @property
    def text(self) -> str:
        raise NotImplementedError

    def why_not(self, settings: Settings) -> str:
        """Why the condition is not met; empty if it is."""
        raise NotImplementedError

    def __or__(self, other: "Condition") -> "AnyOf":
        return AnyOf((self, other))


@dataclass(frozen=True)
class If(Condition):
    """The key (`"section.key"`) has this value."""

    key: str
    value: Any

    @property
    def text(self) -> str:
        return f"`{self.key} = {toml_value(self.value)}`"

    def is_met_by(self, value: Any) -> bool:
        return bool(value == self.value)

    def why_not(self, settings: Settings) -> str:
        value = attrgetter(self.key)(settings)
        unmet = "" if self.is_met_by(value) else f"{self.key} is {toml_value(value)}"
        return settings.why_idle(self.key) or unmet


class IfNot(If):
    """The key has another value than this."""

    @property
    def text(self) -> str:
        return f"`{self.key}` is not `{toml_value(self.value)}`"

    def is_met_by(self, value: Any) -> bool:
        return not super().is_met_by(value)


class IfAbove(If):
    """The key is a number greater than this."""

    @property
    def text(self) -> str:
        return f"`{self.key}` is above {toml_value(self.value)}"

    def is_met_by(self, value: Any) -> bool:
        return bool(value > self.value)


@dataclass(frozen=True)
class AnyOf(Condition):
    """At least one of the conditions is met."""

    conditions: Sequence[Condition]

    @property
    def text(self) -> str:
        return " or ".join(condition.text for condition in self.conditions)

    def why_not(self, settings: Settings) -> str:
        reasons = [condition.why_not(settings) for condition in self.conditions]
        return " and ".join(dict.fromkeys(reasons)) if all(reasons) else ""


def conditions_of(field: FieldInfo) -> list[Condition]:
    """The conditions of a key or section, all of which must be met."""
    return [item for item in field.metadata if isinstance(item, Condition)]


def only_if(field: FieldInfo) -> str:
    """When the key or section matters, in words; empty if it always does."""
    conditions = conditions_of(field)
    return f"only if {' and '.join(condition.text for condition in conditions)}" if conditions else ""
