"""cam-pipeline: pixel pseudo-labels and a segmenter from image-level labels."""

from typing import TYPE_CHECKING, Any

from cam_pipeline.version import __version__

if TYPE_CHECKING:
    from cam_pipeline.api import Annotation, TrainedRun, open_run

__all__ = ["Annotation", "TrainedRun", "__version__", "open_run"]


def __getattr__(name: str) -> Any:
    """Import the Python interface when it is first asked for: the command line's help must not wait for torch."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from cam_pipeline import api

    return getattr(api, name)
