"""Scribbles: strokes over a few pixels of each class."""

from cam_pipeline.data.scribble_xml import read_scribble_xml

__all__ = ["read_scribble_xml"]
