"""Settings of reading class activation maps."""

from typing import Literal

from pydantic import Field

from cam_pipeline.config.section import Scale, Section


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
