"""Settings from maps to scores, and from scores to pseudo-labels."""

import math
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import Field, field_validator, model_validator

from cam_pipeline.config.conditions import If, IfAbove, IfNot
from cam_pipeline.config.section import Section

CALIBRATED = If("cam.calibration", "sfc")
KERNEL = IfNot("refine.kernel", "none")
CRF = If("refine.crf", True)
BY_SCORES = If("labels.undecided", "scores")


class RefineSettings(Section):
    """From CAMs to per-pixel scores."""

    normalize: Annotated[Literal["max", "minmax"], If("refine.merge_with", ())] = Field(
        "max",
        description="what becomes 0 and 1 in a class map. `max`: 0 and the map's maximum; `minmax`: its minimum and "
        "maximum",
    )
    background: float | Literal["auto", "from-split"] = Field(
        0.35,
        description="background score before the CRF, above 0 and below 1; higher means smaller objects. `auto`: "
        "chosen without masks, so that object and surroundings differ most in colour; `from-split`: chosen for the "
        "best mIoU on the masks of `background_split`",
    )
    background_images: Annotated[int, If("refine.background", "auto") | If("refine.background", "from-split")] = Field(
        200, ge=1, description="number of images, evenly spread, that are refined to choose the background score by"
    )
    background_split: Annotated[str, If("refine.background", "from-split")] = Field(
        "val", min_length=1, description="the split, one of `cam.splits`, whose masks decide"
    )
    merge_with: tuple[Path, ...] = Field(
        (),
        description="`cams.h5` of other runs, of the same images and classes. Every map is divided by its maximum, "
        "then averaged over the runs",
    )
    band: float = Field(
        0.0,
        ge=0,
        lt=1,
        description="if above 0, every image is refined twice more, with `background` this much higher and lower, for "
        '`labels.undecided = "backgrounds"`',
    )
    prototype_share: Annotated[float, CALIBRATED] = Field(
        0.5, ge=0, le=1, description="share of the prototype maps in the mean of these and the classifier's maps"
    )
    background_map: Annotated[float, CALIBRATED] = Field(
        0.5,
        ge=0,
        le=1,
        description="share of the background map that is added to `background` (the paper: 0.5, with a background of "
        "0.2)",
    )
    kernel: Literal["none", "color", "par", "varm"] = Field(
        "none",
        description="local refinement: every pixel repeatedly becomes the mean of 48 neighbours, weighted by their "
        "similarity. `color`: of colour alone; `par` (AFA): plus a share of position; `varm` (TSCD): minus a share of "
        "variation",
    )
    kernel_iterations: Annotated[int, KERNEL] = Field(10, ge=1, le=1000, description="iterations of the kernel")
    kernel_guide: Annotated[float, KERNEL] = Field(
        0.5,
        gt=0,
        le=1,
        description="image scale at which the kernel works; the papers take 0.5, which doubles the kernel's reach",
    )
    kernel_sigma_floor: Annotated[float, KERNEL] = Field(
        0.0,
        ge=0,
        le=1,
        description="least standard deviation of colour, on the 0..1 scale; 0.008 hides noise in flat areas",
    )
    max_pixels: Annotated[int, CRF | KERNEL] = Field(
        2_000_000,
        ge=10_000,
        le=100_000_000,
        description="larger images are reduced to this many pixels for kernel and CRF, whose memory grows with them",
    )
    crf: bool = Field(True, description="refine the scores with a dense CRF")
    crf_backend: Annotated[Literal["auto", "pydensecrf", "torch"], CRF] = Field(
        "auto",
        description="what computes the CRF; labels hardly differ (docs/methods/crf.md). `torch`: on CPU or GPU; "
        "`pydensecrf`: on the CPU, if it is installed; `auto`: `torch` on a GPU, else the faster of those installed",
    )
    crf_iterations: Annotated[int, CRF] = Field(10, ge=1, le=10_000, description="mean-field iterations")
    gaussian_sxy: Annotated[float, IfAbove("refine.gaussian_weight", 0)] = Field(
        3.0, ge=0.001, description="standard deviation of the CRF's smoothness kernel, in pixels"
    )
    gaussian_weight: Annotated[float, CRF] = Field(
        3.0, ge=0, description="weight of the CRF's smoothness kernel; 0: off"
    )
    bilateral_sxy: Annotated[float, IfAbove("refine.bilateral_weight", 0)] = Field(
        50.0, ge=0.001, description="standard deviation of the CRF's appearance kernel, in pixels"
    )
    bilateral_srgb: Annotated[float, IfAbove("refine.bilateral_weight", 0)] = Field(
        5.0, ge=0.001, description="standard deviation of the CRF's appearance kernel, in grey levels"
    )
    bilateral_weight: Annotated[float, CRF] = Field(
        10.0, ge=0, description="weight of the CRF's appearance kernel; 0: off"
    )

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
        """The number. Raises ValueError if it is still to be chosen (`cam_pipeline.refinement.background`)."""
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
        description="which pixels are ignored. `scores`: as `low` and `high` say; `agreement`: those whose label "
        "refinement changed; `backgrounds`: those that are a class only with a low background score (`refine.band`)",
    )
    low: Annotated[float, BY_SCORES] = Field(
        0.35, ge=0, le=1, description="pixels whose best class score is below this become background"
    )
    high: Annotated[float, BY_SCORES] = Field(
        0.55,
        ge=0,
        le=1,
        description="pixels whose best channel is a class with at least this score keep the class. The rest is ignored",
    )

    @model_validator(mode="after")
    def ordered(self) -> Self:
        if self.low > self.high:
            raise ValueError(f"low ({self.low}) must not exceed high ({self.high})")
        return self
