"""How class maps are read out of a classifier: one record of settings."""

from dataclasses import dataclass

from cam_pipeline.cams.likeness import Border, FeatureWalk
from cam_pipeline.models.sfc import Calibration


@dataclass(frozen=True)
class AttentionPropagation:
    """Propagation of maps by the network's own attention (`cams.attention`).

    `blocks`: those whose attention is averaged, negative: from the end, none named: all; `steps`: how many times maps
    are propagated; `normalize`: as in `ops.acr.propagate_attention`.
    """

    blocks: tuple[int, ...] = ()
    steps: int = 1
    normalize: bool = False


@dataclass(frozen=True, kw_only=True)
class CamReading:
    """Settings of `cams.multi_scale.read_maps`; the defaults are the plain CAM of the image as it is.

    `scales` of the views, and `flip`: also their mirror images. `source`: a name in `cams.sources.SOURCES`;
    `map_function` and `start_layer` belong to `class_token_gradient`: the function of gradients and attention
    (`ops.acr.class_token_map`), and the first block read (negative: from the end). `presence_threshold`: an image of
    unknown classes shows those with a higher probability, and with `at_least_one` the likeliest if there is none.

    Extras, all off by default. `propagation`: spread every view's maps by attention, or the sum of all views by feature
    similarity. `calibration`: read SFC's classifier maps and prototype maps. `border`: subtract what looks like the
    border. Feature similarity is that of the deepest `levels` stages. `keep_features`: of every cell give so many
    numbers that tell similarity, too (`ops.clicks.compact_features`).
    """

    scales: tuple[float, ...] = (1.0,)
    flip: bool = False
    source: str = "classifier_weights"
    map_function: str = "grad"
    start_layer: int = -2
    presence_threshold: float = 0.5
    at_least_one: bool = False
    propagation: AttentionPropagation | FeatureWalk | None = None
    calibration: Calibration | None = None
    border: Border | None = None
    levels: int = 1
    keep_features: int = 0

    @property
    def presence(self) -> tuple[float, bool]:
        """What decides which classes an image of unknown ones shows."""
        return self.presence_threshold, self.at_least_one

    @property
    def attention(self) -> AttentionPropagation | None:
        return self.propagation if isinstance(self.propagation, AttentionPropagation) else None

    @property
    def walk(self) -> FeatureWalk | None:
        return self.propagation if isinstance(self.propagation, FeatureWalk) else None

    @property
    def compares(self) -> bool:
        """True if the features of cells are compared."""
        return self.walk is not None or self.border is not None

    @property
    def needs_features(self) -> bool:
        """True if the features of cells are needed, to compare them now or later."""
        return self.compares or self.keep_features > 0
