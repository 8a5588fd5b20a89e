"""The formats of label maps by name. A new one is a file beside this and a line here."""

from cam_pipeline.export.coco import write_coco
from cam_pipeline.export.cvat import write_cvat
from cam_pipeline.export.label_maps import Writer
from cam_pipeline.export.label_studio import write_label_studio
from cam_pipeline.export.labelme import write_labelme
from cam_pipeline.export.png import write_png
from cam_pipeline.export.yolo import write_yolo

WRITERS: dict[str, Writer] = {
    "png": write_png,
    "coco": write_coco,
    "labelme": write_labelme,
    "cvat": write_cvat,
    "label-studio": write_label_studio,
    "yolo": write_yolo,
}
