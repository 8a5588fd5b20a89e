"""Settings of reading class activation maps."""

from typing import Annotated, Literal

from pydantic import Field

from cam_pipeline.config.conditions import If, IfAbove
from cam_pipeline.config.section import Scale, Section

BY_GRADIENT = If("cam.source", "class_token_gradient")
BY_ATTENTION = If("cam.propagate", "attention")
BY_FEATURES = If("cam.propagate", "features")
BORDER = IfAbove("cam.border", 0)
KEPT = IfAbove("cam.keep_features", 0)
CALIBRATED = If("cam.calibration", "sfc")


class CamSettings(Section):
    """Reading class activation maps out of the classifier."""

    network: Literal["train_cls", "train_e2e"] = Field(
        "train_cls", description="whose classifier is read: that of train-cls, or of the single stage (train-e2e)"
    )
    source: Literal["classifier_weights", "class_token_gradient"] = Field(
        "classifier_weights",
        description="`classifier_weights`: the class's row of the classifier's weights, applied to every cell (CAM); "
        "`class_token_gradient`: gradients of the class's logit with respect to the class token's attention (ACR; a "
        "ViT only)",
    )
    map_function: Annotated[Literal["grad", "grad_s", "cam_grad", "cam_grad_s"], BY_GRADIENT] = Field(
        "grad",
        description="`grad` is <G+>, `grad_s` <G+>^2, `cam_grad` <(G A)+>, `cam_grad_s` <(G A)+> <G+>. G is the "
        "gradient, A the attention, + the positive part, <> the mean over heads",
    )
    start_layer: Annotated[int, BY_GRADIENT] = Field(
        -2, description="first block that is read, up to the last (-2: the last two)"
    )
    propagate: Literal["none", "attention", "features"] = Field(
        "none",
        description="`attention`: every patch gathers the map from the patches it attends to (a ViT only); "
        "`features`: every cell gathers it from the cells with similar features, a random walk",
    )
    walk_radius: Annotated[int, BY_FEATURES] = Field(
        0, ge=0, le=1024, description="farthest cells that a cell gathers from, in cells; 0: all"
    )
    walk_power: Annotated[float, BY_FEATURES] = Field(
        1.0, gt=0, le=100, description="power of the cosine similarity between features"
    )
    walk_steps: Annotated[int, BY_FEATURES] = Field(1, ge=1, le=100, description="random-walk steps")
    walk_levels: Annotated[int, BY_FEATURES | BORDER | KEPT] = Field(
        1,
        ge=1,
        le=4,
        description="number of the backbone's stages whose features are compared, from the deepest on; all count alike",
    )
    border: float = Field(
        0.0,
        ge=0,
        le=0.5,
        description="width of the border strip, as a share of the shorter side. What looks like the strip counts as "
        "background and is subtracted from every map. 0: off; try 0.1 if objects rarely touch the frame",
    )
    border_power: Annotated[float, BORDER] = Field(
        5.0, gt=0, le=100, description="power of the cosine similarity between features"
    )
    border_steps: Annotated[int, BORDER] = Field(
        3, ge=1, le=100, description="random-walk steps that spread similarity to the border"
    )
    keep_features: int = Field(
        0,
        ge=0,
        le=1024,
        description="keep so many numbers a cell that say which cells are alike (try 32, with 3 `walk_levels`), so "
        "that clicks and scribbles spread when scores are made. 0: they count at their own pixels only",
    )
    attention_layers: Annotated[tuple[int, ...], BY_ATTENTION] = Field(
        (), description="blocks whose attention is averaged (-1: the last); empty: all"
    )
    attention_steps: Annotated[int, BY_ATTENTION] = Field(1, ge=1, le=100, description="propagation steps")
    attention_normalize: Annotated[bool, BY_ATTENTION] = Field(
        False, description="divide by the attention that goes to patches, so that a constant map stays as it is"
    )
    calibration: Literal["none", "sfc"] = Field(
        "none",
        description="`sfc`: also make maps of class prototypes and a background map (`refine.prototype_share`, "
        "`refine.background_map`). The classifier need not be trained with `objectives.sfc`",
    )
    background_over: Annotated[Literal["present", "all"], CALIBRATED, If("cam.source", "classifier_weights")] = Field(
        "present",
        description="the background map is 1 minus the maximum over these classes; `all`: as in the released code",
    )
    seed_background: Annotated[float, CALIBRATED] = Field(
        0.3,
        ge=0,
        le=1,
        description="factor of the background map when seeds are chosen; lower means more seeds of classes",
    )
    correlation_steps: Annotated[int, CALIBRATED] = Field(
        2, ge=0, le=100, description="how many times maps are spread over pixels with similar features"
    )
    splits: tuple[str, ...] = Field(("train",), min_length=1, description="splits to make CAMs, scores and labels for")
    scales: tuple[Scale, ...] = Field(
        (0.75, 1.0, 1.25, 1.5), min_length=1, description="image scales whose maps are summed"
    )
    flip: bool = Field(True, description="add the horizontally flipped view of every scale")
    max_side: int = Field(1024, ge=32, le=65_536, description="larger images are first reduced to this longer side")
    batch_size: int = Field(16, ge=1, le=1_000_000, description="images per forward pass, all of the same size")
    presence_threshold: float = Field(
        0.5,
        gt=0,
        lt=1,
        description="an image without labels shows the classes whose predicted probability is above this, perhaps none",
    )
    at_least_one: bool = Field(
        False,
        description="an image without labels shows at least its likeliest class, however improbable",
    )
