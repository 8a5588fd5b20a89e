"""Settings of optimisation and augmentation."""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from cam_pipeline.config.conditions import If
from cam_pipeline.config.section import Scale, Section

PSEUDO_LABELS = If("train_seg.supervision", "pseudo-labels") | If("train_seg.supervision", "mixed")


class TrainSettings(Section):
    """Optimisation and augmentation of one training stage."""

    epochs: int = Field(10, ge=1, le=1_000_000, description="passes over the training split")
    batch_size: int = Field(16, ge=1, le=1_000_000, description="images per optimiser step, in total")
    accumulate: int = Field(
        1,
        ge=1,
        le=1_000_000,
        description="a batch is seen in so many equal parts, one after the other, whose gradients add up: less memory "
        "for the same batch. BatchNorm's statistics are those of a part",
    )
    crop: int = Field(256, ge=16, le=16_384, description="side of the square training crop in pixels")
    scale: tuple[Scale, Scale] = Field(
        (0.9, 1.6), description="the longer image side is resized to this many crop sides, drawn evenly from the range"
    )
    color_jitter: float = Field(
        0.0, ge=0, le=1, description="largest change of brightness, contrast and saturation of a view, as a share"
    )
    greyscale: float = Field(0.0, ge=0, le=1, description="share of the views that lose their colours")
    blur: float = Field(0.0, ge=0, le=1, description="share of the views that are blurred (0.1 to 2 px)")
    optimizer: Literal["sgd", "adamw"] = Field("sgd", description="optimiser")
    lr: float = Field(0.01, gt=0, description="learning rate of the backbone")
    head_lr_factor: float = Field(10.0, gt=0, description="multiplies the learning rate of new layers")
    momentum: float = Field(0.9, ge=0, lt=1, description="SGD momentum; beta1 of AdamW")
    weight_decay: float = Field(1e-4, ge=0, description="weight decay of weights with two or more dimensions")
    warmup: float = Field(0.0, ge=0, lt=1, description="linear warm-up of the learning rate, as a share of all steps")
    schedule: Literal["poly", "cosine"] = Field(
        "poly", description="how the learning rate falls: as `poly_power` says, or as half a cosine wave, to 0"
    )
    poly_power: float = Field(0.9, ge=0, description="`poly`: it falls as (1 - step / steps) to this power")
    clip_norm: float = Field(0.0, ge=0, description="largest gradient norm; 0: no clipping")
    checkpoint_seconds: float = Field(
        60.0,
        ge=0,
        allow_inf_nan=True,
        description="seconds between checkpoints; one is always written at the end of an epoch",
    )

    @property
    def colors(self) -> tuple[float, float, float]:
        """How the colours of a view may change: `data.augment.Colors`."""
        return self.color_jitter, self.greyscale, self.blur

    def at_once(self, images: int | None = None) -> int:
        """Images of a forward pass in all processes: a batch's, or its part's; of `images` that there are, if known."""
        return max(1, min(self.batch_size, images or self.batch_size) // self.accumulate)

    @model_validator(mode="after")
    def ordered(self) -> Self:
        if self.scale[0] > self.scale[1]:
            raise ValueError(f"scale must be two rising numbers, not {list(self.scale)}")
        if self.batch_size % self.accumulate:
            raise ValueError(
                f"batch_size = {self.batch_size} cannot be divided into accumulate = {self.accumulate} equal parts"
            )
        return self


class TrainE2eSettings(TrainSettings):
    """Optimisation of the single stage that classifies and segments together."""


class TrainSegSettings(TrainSettings):
    """Optimisation of the segmenter, and what it learns from."""

    supervision: Literal["pseudo-labels", "mixed", "scribbles", "masks"] = Field(
        "pseudo-labels",
        description="what labels pixels. `pseudo-labels`: those of make-cams, in which clicks and scribbles win; "
        "`mixed`: the same, and an error if there are none; `scribbles`: clicks and scribbles alone, and no pixel "
        "without them (see `segmenter.regularizer`); `masks` trains the fully supervised reference. Give the last two "
        "a run folder of their own (`output.dir`)",
    )
    labels_from: Annotated[Literal["make_labels", "train_e2e"], PSEUDO_LABELS] = Field(
        "make_labels", description="whose pseudo-labels: those of make-cams, or those of the single stage (train-e2e)"
    )
    balance: bool = Field(
        False, description="the loss is half the mean over background pixels and half that over pixels of objects"
    )
    average: float = Field(
        0.0,
        ge=0,
        lt=1,
        description="keep a moving average of the weights, of which this share is that of the step before, such as "
        "0.999; it is what is kept at the end. 0: off",
    )
    clip_losses: bool = Field(
        False,
        description="once the mean loss of a batch is below 1.2, a pixel's loss is at most this mean or that of its "
        "patch of 120 pixels, whichever is larger (WeakTr): labels that contradict everything else teach less",
    )
    confidence_power: Annotated[float, PSEUDO_LABELS] = Field(
        0.0,
        ge=0,
        description="a pixel counts as much as its label's confidence (0..1) to this power: 1, say, or more if the "
        "confidence is hardly ever low. 0: all count alike",
    )
    agreement_power: Annotated[float, PSEUDO_LABELS] = Field(
        0.0,
        ge=0,
        description="a pixel counts as much as this network and those of `refine.merge_with` agree about it (0..1), to "
        "this power. 0: all count alike",
    )
    soft_labels: Annotated[bool, PSEUDO_LABELS] = Field(
        False,
        description="in place of labels learn the scores before the CRF, at all pixels, by collision cross entropy: a "
        "score that is undecided leaves the segmenter free",
    )
    potts: float = Field(
        0.0,
        ge=0,
        description="weight of a term that is 0 if neighbours, 4 pixels apart, get the same answer, labelled or not. "
        "0: off",
    )
    teacher: bool = Field(False, description="learn from a moving average of the weights, too; `[teacher]` says how")
    repeat: float = Field(
        0.0,
        ge=0,
        le=1,
        description="show images of classes that fewer than this share of the images show more often, by the square "
        "root of share to share (LVIS; there 0.001, here 0.1, say); an epoch keeps its number of steps. 0: off",
    )

    @property
    def from_labels(self) -> bool:
        """Whether the segmenter learns from the result of make_labels."""
        return self.supervision in ("pseudo-labels", "mixed")

    @property
    def from_e2e(self) -> bool:
        """Whether the segmenter learns from the labels of the single stage."""
        return self.from_labels and self.labels_from == "train_e2e"

    @property
    def soft(self) -> bool:
        """`soft_labels`, if it has an effect."""
        return self.soft_labels and self.from_labels

    @property
    def power(self) -> float:
        """`confidence_power`, if it has an effect, else 0."""
        return self.confidence_power if self.from_labels else 0.0

    @property
    def by_agreement(self) -> float:
        """`agreement_power`, if it has an effect, else 0."""
        return self.agreement_power if self.from_labels else 0.0

    @property
    def powers(self) -> dict[str, float]:
        """By what pixels are weighted, and to which power; what is off is left out."""
        return {name: power for name, power in (("confidence", self.power), ("agreement", self.by_agreement)) if power}

    @model_validator(mode="after")
    def of_labels(self) -> Self:
        """Switches that are about the class of a pixel's label do not go with scores in its place."""
        powers = {f"{name}_power": True for name in self.powers}
        chosen = {"balance": self.balance, "clip_losses": self.clip_losses, **powers}
        others = [name for name, on in chosen.items() if on]
        if self.from_e2e and (self.soft or self.by_agreement):
            raise ValueError(
                "labels_from = 'train_e2e' brings labels alone: switch soft_labels and agreement_power off"
            )
        if self.soft and others:
            raise ValueError(f"soft_labels cannot be combined with {' and '.join(others)}; switch one of them off")
        return self
