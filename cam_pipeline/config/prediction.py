"""Settings of prediction with a trained segmenter."""

import math
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator

from cam_pipeline.config.conditions import If
from cam_pipeline.config.section import Section


class PredictSettings(Section):
    """The segmenter's answer to an image. No result of a stage depends on these."""

    network: Literal["train_seg", "train_e2e"] = Field(
        "train_seg",
        description="which segmenter answers, and is what `run` makes: that of train-seg, or the single stage of "
        "train-e2e",
    )
    classes: Literal["all", "classifier"] = Field(
        "all",
        description="`classifier`: the run's classifier says which classes an image shows, and this changes the "
        "segmenter's answer; `all`: it does not",
    )
    by: Annotated[Literal["threshold", "multiply"], If("predict.classes", "classifier")] = Field(
        "threshold",
        description="how the classifier's probability of a class changes that of the class at every pixel. "
        "`threshold`: a class below `predict.threshold` is taken out; `multiply`: both are multiplied. The background "
        "keeps its probability; then all are divided by their sum",
    )
    threshold: Annotated[float | Literal["auto"], If("predict.by", "threshold")] = Field(
        "auto",
        description="classes whose probability is below this are taken out, 0 to 1. `auto`: the number that best "
        "agrees with the image labels of `data.val` (docs/methods/image-classes.md); no masks are looked at",
    )

    @field_validator("threshold", mode="before")
    @classmethod
    def number_or_auto(cls, value: Any) -> Any:
        """One line for what is neither; of a union pydantic would name every member's complaint."""
        if value == "auto":
            return value
        try:
            number = math.nan if isinstance(value, bool) else float(value)
        except (TypeError, ValueError):
            number = math.nan
        if not 0 <= number <= 1:
            raise ValueError(f"must be a number from 0 to 1 or 'auto', given {value!r}")
        return number

    @property
    def chooses(self) -> bool:
        """Whether a threshold is still to be chosen."""
        return self.classes == "classifier" and self.by == "threshold" and self.threshold == "auto"

    @property
    def fixed_threshold(self) -> float | None:
        """The threshold below which classes are taken out; None: probabilities are multiplied.

        Raises ValueError if it is still to be chosen (`cam_pipeline.cams.image_classes`).
        """
        if self.by == "multiply":
            return None
        if isinstance(self.threshold, str):
            raise ValueError(f"the threshold is still to be chosen ({self.threshold})")
        return self.threshold

    def at(self, threshold: float) -> "PredictSettings":
        """These settings with this threshold."""
        return self.model_copy(update={"threshold": threshold})
