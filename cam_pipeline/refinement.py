"""Per-pixel scores of one image from its class activation maps."""

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cam_pipeline.config import RefineSettings
from cam_pipeline.data.images import UInt8
from cam_pipeline.ops.cam import cam_scores, to_probabilities, with_background
from cam_pipeline.ops.crf import dense_crf
from cam_pipeline.store.cams import StoredCam


def refined_scores(cam: StoredCam, read_image: Callable[[], UInt8], settings: RefineSettings) -> NDArray[np.float32]:
    """Background score, then a dense CRF over the present classes: scores (1 + n, H, W) that sum to 1 over channels.

    `read_image` gives the image (H, W, 3) and is called only if it is needed. Raises ValueError when the image is not
    of `cam.size`.
    """
    scores = with_background(cam_scores(cam.cam, cam.size, settings.normalize), settings.background)
    probabilities: NDArray[np.float32] = to_probabilities(scores).numpy()
    if not settings.crf or not cam.class_ids:
        return probabilities
    kernels: dict[str, Any] = settings.model_dump(exclude={"normalize", "background", "crf", "crf_iterations"})
    return dense_crf(read_image(), probabilities, iterations=settings.crf_iterations, **kernels)
