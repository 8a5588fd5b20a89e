"""Label Studio: a JSON file of tasks, for each class of an image one region of the brush."""

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote
from xml.sax.saxutils import quoteattr

from cam_pipeline.data.label_studio_runs import packed_brush
from cam_pipeline.export.label_maps import IGNORED, LabelMap, regions_of
from cam_pipeline.ops.ignore import IGNORE_INDEX

FILE, SETUP = "tasks.json", "labeling.xml"


def write_label_studio(maps: Iterable[LabelMap], classes: Sequence[str], folder: Path, final: Path) -> int:
    """`tasks.json`, and `labeling.xml`, the project's labelling setup. Undecided pixels are `__ignore__`.

    Images are those of a local storage whose document root is the data root.
    """
    names = {**dict(enumerate(classes, 1)), IGNORE_INDEX: IGNORED}
    tags = "".join(f"<Label value={quoteattr(name)}/>" for name in names.values())
    brush = f'<BrushLabels name="tag" toName="image">{tags}</BrushLabels>'
    setup = f'<View><Image name="image" value="$image" zoom="true"/>{brush}</View>\n'
    (folder / SETUP).write_text(setup, encoding="utf-8")
    tasks = [_task(one, names) for one in maps]
    (folder / FILE).write_text(json.dumps(tasks, ensure_ascii=False), encoding="utf-8")
    return len(tasks)


def _task(one: LabelMap, names: dict[int, str]) -> dict[str, Any]:
    height, width = one.labels.shape
    regions = [
        {
            "id": f"label{label}",
            "from_name": "tag",
            "to_name": "image",
            "type": "brushlabels",
            "original_width": width,
            "original_height": height,
            "image_rotation": 0,
            "value": {"format": "rle", "rle": packed_brush(one.labels == label), "brushlabels": [names[label]]},
        }
        for label in regions_of(one.labels)
    ]
    return {"data": {"image": f"/data/local-files/?d={quote(one.name)}"}, "annotations": [{"result": regions}]}
