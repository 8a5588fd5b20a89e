"""All current results -> numbers (evaluation.json) and pictures (contact sheet). Makes nothing that others need."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cam_pipeline.atomic import write_text
from cam_pipeline.data.digest import data_digest
from cam_pipeline.data.readers import load_table
from cam_pipeline.data.table import Table, image_labels
from cam_pipeline.device import memory_errors_named
from cam_pipeline.evaluation import evaluate
from cam_pipeline.ops.metrics import frequency_groups
from cam_pipeline.pipeline import Pipeline, read_json
from cam_pipeline.report.run_sheet import run_sheet


def evaluate_run(
    pipeline: Pipeline, *, force: bool = False, split: str = "", every: int = 1, oracle: bool = False
) -> Mapping[str, Any]:
    """Compare the current results with masks; arguments as `evaluation.evaluate`.

    The answer of an earlier call is given again where question, results and masks are the same, unless `force`.
    """
    states = {name: state for name, state in pipeline.states(["train_seg"]).items() if state.kind == "current"}
    config, path = pipeline.config, pipeline.folder / "evaluation.json"
    table = load_table(config.data)
    run_ids = {name: state.run_id for name, state in states.items()}
    settings = config.pick(("refine", "segmenter.max_side", "run.precision"))
    key: dict[str, Any] = {"split": split, "every": every, "oracle": oracle, "results": run_ids, "settings": settings}
    key["data"] = _data(pipeline, table, split)
    known = read_json(path)
    if known.get("key") == key and not force and (not known["sheet"] or Path(known["sheet"]).is_file()):
        return known
    results = {name: pipeline.path(name) for name in states}
    with memory_errors_named("evaluate", "cam.batch_size", config.cam.batch_size):
        rows = evaluate(config, table, results, split=split, every=every, oracle=oracle)
    sheet = pipeline.folder / "report" / "contact_sheet.png"
    if {"extract_cams", "make_labels"} <= set(results):
        run_sheet(config, table, results, sheet)
    classes = ("background", *table.classes)
    counts = image_labels(table.split(config.data.train), len(table.classes)).sum(dim=0).int().tolist()
    groups = frequency_groups(counts) if any(counts) else {}  # nobody said what the training images show
    report = {
        "key": key,
        "rows": [row.figures(classes, config.run.seed, groups) for row in rows],
        "training_images": dict(zip(table.classes, counts, strict=True)),
        "groups": {name: [table.classes[number] for number in ids] for name, ids in groups.items()},
        "sheet": str(sheet) if sheet.is_file() else "",
    }
    write_text(path, json.dumps(report, indent=1))
    return report


def _data(pipeline: Pipeline, table: Table, split: str) -> str:
    """Digest of the images and masks that are compared with, and of maps merged; not all stages know of them."""
    splits = (split or pipeline.config.data.train, split or pipeline.config.data.val)
    samples = [sample for sample in table.samples if sample.split in splits and sample.mask is not None]
    digest = data_digest(table.classes, samples, pipeline.digests, masks=True)
    merged = pipeline.digests.of_merged(pipeline.config.refine.merge_with)
    pipeline.digests.save()
    return "-".join([digest, *merged])
