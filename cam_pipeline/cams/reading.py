"""How maps are read out of a classifier."""

from dataclasses import dataclass

from cam_pipeline.cams.likeness import Border, FeatureWalk
from cam_pipeline.models.attention import attention_modules, block_indices
from cam_pipeline.models.classifier import Classifier
from cam_pipeline.models.levels import feature_levels
from cam_pipeline.models.sfc import Calibration


@dataclass(frozen=True)
class Propagation:
    """Propagation of maps by the network's own attention, its mean over `blocks` (none named: all), `steps` times."""

    blocks: tuple[int, ...] = ()
    steps: int = 1
    normalize: bool = False


@dataclass(frozen=True)
class CamReading:
    """How maps are read.

    `source`: `classifier_weights` (CAM) or `class_token_gradient` (ACR: function `map_function` of the attention of the
    blocks from `start_layer` on, negative: from the end). `propagation`: None, or how maps are propagated.
    `calibration`: None, or how `calibrated_cams` calibrates them. `border`: None, or how the background is told that is
    taken away from them.

    Walk and border compare the features of the deepest `levels` stages, each brought to unit length, so that the cosine
    is nearly the mean of theirs. They are not what some CNNs make of the deepest one for the classifier, which is
    positive everywhere.
    """

    source: str = "classifier_weights"
    map_function: str = "grad"
    start_layer: int = -2
    propagation: Propagation | FeatureWalk | None = None
    calibration: Calibration | None = None
    border: Border | None = None
    levels: int = 1

    @property
    def by_gradient(self) -> bool:
        return self.source == "class_token_gradient"

    @property
    def attention(self) -> Propagation | None:
        return self.propagation if isinstance(self.propagation, Propagation) else None

    @property
    def walk(self) -> FeatureWalk | None:
        return self.propagation if isinstance(self.propagation, FeatureWalk) else None

    @property
    def compares(self) -> bool:
        """Whether features are compared."""
        return self.walk is not None or self.border is not None

    def check(self, classifier: Classifier) -> None:
        """Raise ValueError (NoAttention for a CNN) when this classifier's maps can not be read so."""
        if self.calibration is not None or self.compares:
            count = len(feature_levels(classifier.backbone))
            if self.compares and self.levels > count:
                raise ValueError(f"{self.levels} stages are to be compared, but the network has {count}")
        if not self.by_gradient and self.attention is None:
            return
        count = len(attention_modules(classifier))
        block_indices(count, self.attention.blocks if self.attention else ())
        if self.by_gradient:
            block_indices(count, (self.start_layer,))
            if classifier.pooling != "class_token":
                raise ValueError("its logits are not read from the class token, so they have no gradient there")
