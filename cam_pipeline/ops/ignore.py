"""The label that means "not known"; in a file of its own, as reading a data set needs it and needs no torch."""

IGNORE_INDEX = 255
"""Label of pixels that are neither trained on nor evaluated."""
