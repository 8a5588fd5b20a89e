"""cam-pipeline: pixel pseudo-labels and a segmenter from image-level labels."""

__version__ = "0.1.0"
