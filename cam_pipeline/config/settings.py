"""The settings: every key with its type, range, default and meaning."""

import math
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationInfo, field_validator, model_validator

from cam_pipeline.errors import ConfigError

Rgb = Annotated[tuple[float, float, float], Field(description="red, green, blue on the 0..1 scale")]
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


class DataSettings(Section):
    """Where the images and their labels are. Relative paths start at the current folder."""

    root: Path = Field(Path("data"), description="folder that holds the data set")
    format: Literal["csv", "voc", "coco", "folders"] = Field(
        "csv",
        description="`csv`: a table `image,labels[,mask,split]`; `voc`: JPEGImages/, ImageSets/, SegmentationClass/; "
        "`coco`: a JSON file of annotations for each split; `folders`: a folder of images for each class; docs/data.md",
    )
    table: str = Field("data.csv", description="`csv` only: the table's file name under `root`")
    labels: str = Field(
        "image_labels.txt",
        description="`voc` only, under `root`: a file of lines `id class class ...`, "
        "or the folder of XML files (`Annotations`)",
    )
    masks: str = Field("SegmentationClass", description="`voc` only: the folder of masks under `root`")
    annotations: str = Field(
        "annotations/instances_{split}.json",
        description="`coco` only: the JSON file of a split under `root`; `{split}` stands for `train` or `val` below",
    )
    images: str = Field("{split}", description="`coco` only: the folder of a split's images under `root`")
    negatives: str = Field(
        "none", description="`folders` only: name of the folder whose images show none of the classes"
    )
    classes: tuple[str, ...] = Field(
        (),
        description="class names without background, in label order; empty: from `classes.txt`, else from the data",
    )
    train: str = Field("train", description="name of the split to train on")
    val: str = Field("val", description="name of the split to report on; may be empty")
    max_pixels: int = Field(
        100_000_000, ge=1, description="image and mask files of more pixels are refused before they are decoded"
    )


class ClassifierSettings(Section):
    """The image classifier that CAMs are read from."""

    backbone: str = Field("resnet50", description="any timm model that gives a feature map: ResNet, other CNN or ViT")
    backbone_args: dict[str, Any] = Field(
        {}, description='extra arguments for `timm.create_model`, e.g. `{pad_type = "same"}`'
    )
    weights: str = Field(
        "pretrained",
        description="`pretrained` (timm's hub), `none`, or the path of a .pth or .safetensors file "
        "made for this backbone; `{data.root}` in it stands for `data.root`",
    )
    stride: int = Field(
        0,
        ge=0,
        le=1024,
        description="input pixels per feature cell of a CNN, reached by undoing late strides; 0: the backbone's own",
    )
    pooling: Literal["patches", "class_token"] = Field(
        "patches",
        description="what the logits are read from: the mean of the feature map, or the class token of a ViT "
        '(`cam.source = "class_token_gradient"` needs the latter)',
    )
    trunk: str = Field(
        "",
        description="for a hybrid ViT: the timm CNN whose feature map, at `stride`, gives the tokens of `backbone`, "
        "a timm ViT; empty: the backbone's own patches",
    )
    trunk_args: dict[str, Any] = Field({}, description="as `backbone_args`, for the trunk")
    trunk_weights: str = Field(
        "pretrained", description="as `weights`, for the trunk; also a `classifier.safetensors` over the same CNN"
    )
    trunk_lr_factor: float = Field(
        1.0, ge=0, description="learning rate of the trunk as a multiple of what it would be; 0 freezes it"
    )
    similar_attention: float = Field(
        0.0,
        ge=0,
        description="for a ViT that starts from `none`: its queries and keys start as this multiple of one random "
        "projection, so that patches attend to those that look alike; 0: as timm starts them",
    )
    freeze_batch_norm: bool = Field(
        False, description="keep BatchNorm statistics as loaded (needed when they were folded, or for tiny batches)"
    )
    mean: Rgb | None = Field(None, description="input mean; unset: from timm's data config of the trunk or backbone")
    std: tuple[Positive, Positive, Positive] | None = Field(
        None, description="input standard deviation; unset: from timm's data config of the trunk or backbone"
    )


class ObjectiveSettings(Section):
    """What the classifier learns beside which classes an image shows. Each has a section of its own settings."""

    acr: bool = Field(False, description="all-pairs consistency of attention between two views (ACR); a ViT only")
    sfc: bool = Field(
        False, description="shared feature calibration (SFC): class maps agree with prototype maps and across scales"
    )


class AcrSettings(Section):
    """ACR: every image is seen in two views, whose attention must agree once the transform between them is undone."""

    activation_weight: float = Field(
        0.217,
        ge=0,
        description="weight of the class token's attention, per row: the L1 distance of a row is at most 2, so the "
        "strength does not change with the number of patches (0.217: the paper's alpha 125 at 576 patches)",
    )
    affinity_weight: float = Field(0.217, ge=0, description="weight of the attention between patches, per row")
    ramp: float = Field(
        0.0,
        ge=0,
        le=1,
        description="share of all steps in which both weights rise evenly from 0: a ViT that starts from nothing must "
        "have something to attend to first, as attention that is the same everywhere agrees, too",
    )
    transforms: tuple[Literal["hflip", "vflip", "rot90"], ...] = Field(
        ("hflip",), min_length=1, description="what the second view may be; one is drawn for each step"
    )
    layers: tuple[int, ...] = Field((), description="blocks whose attention must agree (-1: the last); empty: all")


class SfcSettings(Section):
    """SFC: rare classes are shown again from an image bank, and class maps are drawn to maps of class prototypes."""

    draws: int = Field(
        4, ge=0, le=1024, description="images drawn from the bank in every step, evenly over classes; 0: no bank"
    )
    blank_slots: bool = Field(
        False, description="classes not seen yet can be drawn, as an empty image without labels (the released code)"
    )
    prototype_weight: float = Field(
        1.6, ge=0, description="weight of the distance between classifier and prototype maps; 0: off"
    )
    scale_weight: float = Field(
        0.8,
        ge=0,
        description="weight of the distance between classifier maps at scales 1 and 1/2; 0: scale 1/2 is not seen",
    )
    distribution_weights: bool = Field(
        True, description="weigh classes by how their image counts lie among the others'; off: all alike"
    )
    background_over: Literal["present", "all"] = Field(
        "present", description="the background map is what these classes leave; `all`: the released code"
    )
    extra: float | None = Field(
        None,
        ge=0,
        description="appearances per class and epoch that the bank adds, for those weights; unset: from the data "
        "(396 reproduces the paper's on VOC)",
    )
    ramp: float = Field(
        0.0, ge=0, le=1, description="share of all steps in which both weights rise evenly from 0 (the paper: 0)"
    )

    @property
    def compares_maps(self) -> bool:
        """Whether there is more than the image bank."""
        return self.prototype_weight > 0 or self.scale_weight > 0


class TrainSettings(Section):
    """Optimisation and augmentation of one training stage."""

    epochs: int = Field(10, ge=1, le=1_000_000, description="passes over the training split")
    batch_size: int = Field(16, ge=1, le=1_000_000, description="images per optimiser step, in total")
    crop: int = Field(256, ge=16, le=16_384, description="side of the square training crop in pixels")
    scale: tuple[Scale, Scale] = Field(
        (0.9, 1.6), description="the longer image side is resized to this many crops, drawn evenly from the range"
    )
    optimizer: Literal["sgd", "adamw"] = Field("sgd", description="optimiser")
    lr: float = Field(0.01, gt=0, description="learning rate of the backbone")
    head_lr_factor: float = Field(10.0, gt=0, description="the new layers learn this many times faster")
    momentum: float = Field(0.9, ge=0, lt=1, description="SGD momentum; beta1 of AdamW")
    weight_decay: float = Field(1e-4, ge=0, description="weight decay of weights with two or more dimensions")
    warmup: float = Field(0.0, ge=0, lt=1, description="share of all steps with a linearly rising learning rate")
    poly_power: float = Field(0.9, ge=0, description="learning rate falls as (1 - step / steps) to this power")
    clip_norm: float = Field(0.0, ge=0, description="largest gradient norm; 0: no clipping")
    checkpoint_seconds: float = Field(
        60.0,
        ge=0,
        allow_inf_nan=True,
        description="time between checkpoints; one is always written at the end of an epoch",
    )

    @model_validator(mode="after")
    def ordered(self) -> Self:
        if self.scale[0] > self.scale[1]:
            raise ValueError(f"scale must be two rising numbers, not {list(self.scale)}")
        return self


class CamSettings(Section):
    """Reading class activation maps out of the classifier."""

    source: Literal["classifier_weights", "class_token_gradient"] = Field(
        "classifier_weights",
        description="`classifier_weights`: the class's row of the classifier applied to every cell (CAM); "
        "`class_token_gradient`: gradients of its logit with respect to the class token's attention (ACR; a ViT only)",
    )
    map_function: Literal["grad", "grad_s", "cam_grad", "cam_grad_s"] = Field(
        "grad",
        description="`class_token_gradient` only: with G gradient, A attention, + the positive part, <> the mean over "
        "heads: <G+>, <G+>^2, <(G A)+>, <(G A)+> <G+>",
    )
    start_layer: int = Field(
        -2, description="`class_token_gradient` only: first block that is read, up to the last (-2: the last two)"
    )
    propagate: Literal["none", "attention", "features"] = Field(
        "none",
        description="`attention`: every patch gathers the map from the patches it attends to, a ViT only; `features`: "
        "every cell gathers it from the cells whose features are alike, a random walk",
    )
    walk_radius: int = Field(
        0, ge=0, le=1024, description='`propagate = "features"` only: farthest cells it gathers from; 0: all'
    )
    walk_power: float = Field(
        1.0, gt=0, le=100, description='`propagate = "features"` only: power of the cosine between features'
    )
    walk_steps: int = Field(1, ge=1, le=100, description='`propagate = "features"` only: how many times')
    walk_levels: int = Field(
        1,
        ge=1,
        le=4,
        description='`propagate = "features"` and `border` only: features of how many of the backbone\'s stages are '
        "compared, from the deepest on, all alike",
    )
    border: float = Field(
        0.0,
        ge=0,
        le=0.5,
        description="above 0: what is like the cells this near to the image's edge, in shorter sides, is taken for "
        "background, and away from every map; try 0.1 where objects lie inside the frame",
    )
    border_power: float = Field(5.0, gt=0, le=100, description="`border` only: power of the cosine between features")
    border_steps: int = Field(3, ge=1, le=100, description="`border` only: how far likeness to the edge is passed on")
    attention_layers: tuple[int, ...] = Field(
        (), description="`attention` only: blocks whose attention is summed (-1: the last); empty: all"
    )
    attention_steps: int = Field(1, ge=1, le=100, description="`attention` only: how many times")
    attention_normalize: bool = Field(
        False, description="`attention` only: divide by what attention goes to patches, so that constants are kept"
    )
    calibration: Literal["none", "sfc"] = Field(
        "none",
        description="`sfc`: maps of class prototypes beside the maps of the classifier, and a background map "
        "(`refine.prototype_share`, `refine.background_map`); also for a classifier trained without `objectives.sfc`",
    )
    background_over: Literal["present", "all"] = Field(
        "present",
        description="`calibration` only: the background map is what these classes leave; `all`: the released code, "
        "of no effect for maps by gradient, which absent classes have not",
    )
    seed_background: float = Field(
        0.3, ge=0, le=1, description="`calibration` only: factor of the background map before seeds are chosen"
    )
    correlation_steps: int = Field(
        2, ge=0, le=100, description="`calibration` only: how many times maps are spread over pixels that look alike"
    )
    splits: tuple[str, ...] = Field(("train",), min_length=1, description="splits to make CAMs, scores and labels for")
    scales: tuple[Scale, ...] = Field(
        (0.75, 1.0, 1.25, 1.5), min_length=1, description="image scales whose maps are summed"
    )
    flip: bool = Field(True, description="add the horizontally flipped view of every scale")
    max_side: int = Field(1024, ge=32, le=65_536, description="larger images are first reduced to this longer side")
    batch_size: int = Field(16, ge=1, le=1_000_000, description="images per forward pass, each of the same size")
    presence_threshold: float = Field(
        0.5,
        gt=0,
        lt=1,
        description="an image without labels shows the classes predicted above this, at least the likeliest",
    )


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
    def background_score(self) -> float:
        """The number. Raises ValueError where it is still to be chosen (`cam_pipeline.background`)."""
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


class SegmenterSettings(Section):
    """The DeepLab network that learns from the pseudo-labels."""

    architecture: Literal["deeplabv3plus", "deeplabv2"] = Field(
        "deeplabv3plus", description="`deeplabv3plus` (segmentation-models-pytorch) or a DeepLabV2-style ASPP head"
    )
    encoder: str = Field("resnet101", description="any timm CNN")
    encoder_args: dict[str, Any] = Field({}, description="extra arguments for `timm.create_model`")
    weights: str = Field("pretrained", description="as `classifier.weights`, for the encoder")
    stride: Literal[8, 16] = Field(
        16, description="input pixels per cell of the encoder's last feature map (by dilation)"
    )
    freeze_batch_norm: bool = Field(False, description="keep the encoder's BatchNorm statistics as loaded")
    mean: Rgb | None = Field(None, description="input mean; unset: from timm's data config of the encoder")
    std: tuple[Positive, Positive, Positive] | None = Field(
        None, description="input standard deviation; unset: from timm's data config of the encoder"
    )
    max_side: int = Field(
        1024, ge=32, le=65_536, description="at prediction, larger images are first reduced to this longer side"
    )


class TrainSegSettings(TrainSettings):
    """Optimisation of the segmenter, and what it learns from."""

    supervision: Literal["pseudo-labels", "masks"] = Field(
        "pseudo-labels",
        description="`masks` trains the fully supervised reference (give it a run folder of its own by `output.dir`)",
    )


class RunSettings(Section):
    """How to compute, not what: of these only `seed` and `precision` make results stale."""

    seed: int = Field(
        0, ge=0, le=2**32 - 1, description="seed of initial weights, order of images, augmentation and dropout"
    )
    device: str = Field(
        "auto", pattern=r"^(auto|cpu|cuda(:\d{1,2})?)$", description="`auto`, `cpu` or `cuda[:n]` (also `--device`)"
    )
    workers: int = Field(
        0,
        ge=0,
        le=1024,
        description="processes that load images and run the CRF; 0: as many as cores, at most 8 (also `--workers`)",
    )
    backend: Literal["loky", "threading", "dask", "ray"] = Field(
        "loky",
        description="what runs the CRF, by joblib: `loky` (processes here), `threading`, `dask` (the scheduler at "
        "DASK_SCHEDULER_ADDRESS, else processes here) or `ray`",
    )
    precision: Literal["float32", "bfloat16"] = Field(
        "float32", description="`bfloat16`: autocast where the processor is made for it, which is faster there"
    )
    compile: bool = Field(
        False,
        description="compile the networks for training (`torch.compile`): a slow first step, faster ones after it",
    )


class OutputSettings(Section):
    """Where results go."""

    dir: Path | None = Field(None, description="run folder; unset: `outputs/<name of the config file>`")


class Config(Section):
    """All settings of a run."""

    data: DataSettings = DataSettings()
    classifier: ClassifierSettings = ClassifierSettings()
    objectives: ObjectiveSettings = ObjectiveSettings()
    acr: AcrSettings = AcrSettings()
    sfc: SfcSettings = SfcSettings()
    train_cls: TrainSettings = TrainSettings()
    cam: CamSettings = CamSettings()
    refine: RefineSettings = RefineSettings()
    labels: LabelSettings = LabelSettings()
    segmenter: SegmenterSettings = SegmenterSettings()
    train_seg: TrainSegSettings = TrainSegSettings()
    run: RunSettings = RunSettings()
    output: OutputSettings = OutputSettings()

    @model_validator(mode="after")
    def fitting(self) -> Self:
        if self.labels.undecided == "backgrounds" and not self.refine.band:
            raise ValueError("labels.undecided = 'backgrounds' needs refine.band above 0, say 0.1")
        if self.refine.background == "from-split" and self.refine.background_split not in self.cam.splits:
            split, splits = self.refine.background_split, [*self.cam.splits, self.refine.background_split]
            raise ValueError(
                f"refine.background = 'from-split' needs maps of split '{split}': set cam.splits = {splits}"
            )
        return self

    @property
    def folder(self) -> Path:
        """The run folder."""
        if self.output.dir is None:
            raise ConfigError("output.dir is not set")
        return self.output.dir

    def _without_effect(self) -> list[str]:
        """Sections and keys of parts that are off."""
        idle = [name for name, on in self.objectives if not on]
        if not self.sfc.draws:
            idle.append("sfc.blank_slots")
        if not self.sfc.compares_maps:
            idle += ["sfc.ramp", "sfc.background_over", "sfc.distribution_weights", "sfc.extra"]
        elif not self.sfc.distribution_weights:
            idle.append("sfc.extra")
        if self.cam.source != "class_token_gradient":
            idle += ["cam.map_function", "cam.start_layer"]
        if self.cam.propagate != "attention":
            idle += ["cam.attention_layers", "cam.attention_steps", "cam.attention_normalize"]
        if self.cam.propagate != "features":
            idle += ["cam.walk_radius", "cam.walk_power", "cam.walk_steps"]
        if not self.cam.border:
            idle += ["cam.border_power", "cam.border_steps"]
            if self.cam.propagate != "features":
                idle.append("cam.walk_levels")
        if self.cam.calibration == "none":
            idle += ["refine.prototype_share", "refine.background_map", "cam.correlation_steps"]
            idle += ["cam.background_over", "cam.seed_background"]
        if self.refine.background != "from-split":
            idle.append("refine.background_split")
        if self.refine.background not in ("auto", "from-split"):
            idle.append("refine.background_images")
        idle.append("refine.normalize" if self.refine.merge_with else "refine.merge_with")
        if self.labels.undecided != "scores":
            idle += ["labels.low", "labels.high"]
        if self.refine.kernel == "none":
            idle += ["refine.kernel_iterations", "refine.kernel_guide", "refine.kernel_sigma_floor"]
        if not self.classifier.trunk:
            idle += ["classifier.trunk_args", "classifier.trunk_weights"]
        return idle

    def pick(self, paths: Iterable[str], without: Iterable[str] = ()) -> dict[str, Any]:
        """The named sections or keys (`"refine"`, `"run.seed"`), less the keys `without`, as plain data.

        Settings of a part that is off are left out: they change nothing.
        """
        everything = self.model_dump(mode="json")
        for path in self._without_effect():
            section, _, key = path.partition(".")
            if key:
                everything[section].pop(key, None)
            else:
                everything[section] = {}
        for path in without:
            section, key = path.split(".")
            everything[section].pop(key, None)
        picked: dict[str, Any] = {}
        for path in paths:
            value: Any = everything
            for part in path.split("."):
                value = value[part]
            picked[path] = value
        for settings in (value for value in picked.values() if isinstance(value, dict)):
            for key in FILES & settings.keys():
                if isinstance(settings[key], list):
                    settings[key] = len(settings[key])
                elif settings[key] not in ("pretrained", "none"):
                    settings[key] = "file"
        return picked
