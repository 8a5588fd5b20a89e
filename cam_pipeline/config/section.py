"""What every section of settings has in common: it is frozen, and knows no key but its own."""

from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationInfo, field_validator

Share = Annotated[float, Field(ge=0, le=1)]
Rgb = Annotated[tuple[Share, Share, Share], Field(description="red, green, blue on the 0..1 scale")]
Spread = Annotated[float, Field(gt=0, le=1)]


Positive = Annotated[float, Field(gt=0)]


Scale = Annotated[float, Field(gt=0, le=16)]


FILES = {"weights", "trunk_weights", "merge_with"}
"""Settings that name files: their content makes results stale (`Stage.data`), not where they lie."""


class Section(BaseModel):
    """A group of settings: frozen, and an unknown key is an error, as is a number that is not finite."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    @field_validator("*", mode="before")
    @classmethod
    def no_truth_for_a_number(cls, value: Any, info: ValidationInfo) -> Any:
        """Python takes true for 1; a setting does not."""
        annotation = cls.model_fields[str(info.field_name)].annotation
        if isinstance(value, bool) and annotation in (int, float):
            raise ValueError(f"must be a {'whole ' if annotation is int else ''}number, given {value}")
        if isinstance(value, list) and any(isinstance(item, bool) for item in value):
            raise ValueError(f"must be a list without true and false, given {value}")
        return value
