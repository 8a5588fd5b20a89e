"""Settings from maps to scores, and from scores to pseudo-labels."""

import math
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import Field, field_validator, model_validator

from cam_pipeline.config.section import Section


class RefineSettings(Section):
    """From CAMs to per-pixel scores."""

    normalize: Literal["max", "minmax"] = Field(
        "max", description="what is 0 and what is 1 in a class map: `max`: 0 and its maximum; `minmax`: its minimum too"
    )
    background: float | Literal["auto", "from-split"] = Field(
        0.35,
        description="score of the background before the CRF, above 0 and below 1: where objects end; `auto`: amid "
        "those where the refined objects explain most of the images' colours, without masks; `from-split`: amid those "
        "where the refined labels agree most with the masks of `background_split`",
    )
    background_images: int = Field(
        200, ge=1, description="`auto` and `from-split` only: how many images, evenly spread, are refined to choose by"
    )
    background_split: str = Field(
        "val", min_length=1, description="`from-split` only: the split, one of `cam.splits`, whose masks are looked at"
    )
    merge_with: tuple[Path, ...] = Field(
        (),
        description="`cams.h5` of other runs, of the same images and classes: each map becomes the mean of theirs and "
        "its own, all divided by their maxima first and not again afterwards (`normalize` has no say)",
    )
    band: float = Field(
        0.0,
        ge=0,
        lt=1,
        description="above 0 every image is refined twice more, with `background` this much higher and lower, for "
        '`labels.undecided = "backgrounds"`',
    )
    prototype_share: float = Field(
        0.5,
        ge=0,
        le=1,
        description="`cam.calibration` only: share of prototype maps beside the classifier's",
    )
    background_map: float = Field(
        0.5,
        ge=0,
        le=1,
        description="`cam.calibration` only: this share of the background map is added to `background` (the paper: .5, "
        "with a background of .2)",
    )
    kernel: Literal["none", "color", "par", "varm"] = Field(
        "none",
        description="local refinement: every pixel repeatedly takes the mean of 48 neighbours that look alike; `color` "
        "by colour alone, `par` (AFA) and a share of position, `varm` (TSCD) less a share of variation",
    )
    kernel_iterations: int = Field(10, ge=1, le=1000, description="`kernel` only: how many times")
    kernel_guide: float = Field(
        0.5,
        gt=0,
        le=1,
        description="`kernel` only: image size at which it works; the papers halve it, which doubles its reach",
    )
    kernel_sigma_floor: float = Field(
        0.0,
        ge=0,
        le=1,
        description="`kernel` only: least standard deviation of colour, of 1; 0.008 keeps noise in flat areas unseen",
    )
    max_pixels: int = Field(
        2_000_000,
        ge=10_000,
        le=100_000_000,
        description="larger images go through kernel and CRF at this many pixels, whose memory grows with them",
    )
    crf: bool = Field(True, description="refine the scores with a dense CRF")
    crf_iterations: int = Field(10, ge=1, le=10_000, description="mean-field iterations")
    gaussian_sxy: float = Field(3.0, gt=0, description="CRF smoothness kernel: standard deviation in pixels")
    gaussian_weight: float = Field(3.0, ge=0, description="CRF smoothness kernel: weight")
    bilateral_sxy: float = Field(50.0, gt=0, description="CRF appearance kernel: standard deviation in pixels")
    bilateral_srgb: float = Field(5.0, gt=0, description="CRF appearance kernel: standard deviation in grey levels")
    bilateral_weight: float = Field(10.0, ge=0, description="CRF appearance kernel: weight")

    @field_validator("background", mode="before")
    @classmethod
    def number_or_word(cls, value: Any) -> Any:
        """One line for what is neither; of a union pydantic would name every member's complaint."""
        if value in ("auto", "from-split"):
            return value
        try:
            number = math.nan if isinstance(value, bool) else float(value)
        except (TypeError, ValueError):
            number = math.nan
        if not 0 < number < 1:
            raise ValueError(f"must be a number above 0 and below 1, 'auto' or 'from-split', given {value!r}")
        return number

    @property
    def maps_from(self) -> str:
        """The stage whose maps are refined."""
        return "merge_cams" if self.merge_with else "extract_cams"

    @property
    def background_score(self) -> float:
        """The number. Raises ValueError where it is still to be chosen (`cam_pipeline.refinement.background`)."""
        if isinstance(self.background, str):
            raise ValueError(f"the background score is still to be chosen ({self.background})")
        return self.background

    def at(self, background: float) -> "RefineSettings":
        """These settings with this background score."""
        return self.model_copy(update={"background": background})

    @property
    def refines(self) -> bool:
        """Whether local refinement or the CRF changes anything."""
        return self.crf or self.kernel != "none"


class LabelSettings(Section):
    """From scores to pseudo-labels: what is left undecided. Changing these costs seconds."""

    undecided: Literal["scores", "agreement", "backgrounds"] = Field(
        "scores",
        description="which pixels are ignored: `scores`, by `low` and `high`; `agreement`, where refinement changed "
        "the label; `backgrounds`, what is a class with a low background score alone (`refine.band`)",
    )
    low: float = Field(
        0.35, ge=0, le=1, description="`scores` only: pixels whose best class score is below this become background"
    )
    high: float = Field(
        0.55,
        ge=0,
        le=1,
        description="`scores` only: pixels whose best channel is a class with at least this score keep it; the rest is "
        "ignored",
    )

    @model_validator(mode="after")
    def ordered(self) -> Self:
        if self.low > self.high:
            raise ValueError(f"low ({self.low}) must not exceed high ({self.high})")
        return self
