"""cam-pipeline: pixel pseudo-labels and a segmenter from image-level labels."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from cam_pipeline.trained import Annotation, TrainedRun, open_run

__version__ = "0.1.0"
__all__ = ["Annotation", "TrainedRun", "open_run"]


def __getattr__(name: str) -> Any:
    """Import the Python interface when it is first asked for: the command line's help must not wait for torch."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from cam_pipeline import trained

    return getattr(trained, name)
