"""The formats of label maps by name. A new one is a file beside this and a line here."""

from cam_pipeline.export.coco import write_coco
from cam_pipeline.export.label_maps import Writer
from cam_pipeline.export.labelme import write_labelme
from cam_pipeline.export.png import write_png

WRITERS: dict[str, Writer] = {"png": write_png, "coco": write_coco, "labelme": write_labelme}
