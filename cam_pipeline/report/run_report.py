"""All current results -> numbers (evaluation.json) and pictures (contact sheet). Makes nothing that others need."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cam_pipeline.data.table import Table, image_labels
from cam_pipeline.errors import StageNotReady
from cam_pipeline.evaluation.rows import evaluate, left_out, titles_of
from cam_pipeline.machine.atomic import read_json, write_text
from cam_pipeline.machine.device import memory_errors_named
from cam_pipeline.ops.metrics import frequency_groups
from cam_pipeline.pipeline import Pipeline
from cam_pipeline.report.run_sheet import run_sheet


def evaluate_run(
    pipeline: Pipeline, *, force: bool = False, split: str = "", every: int = 1, oracle: bool = False
) -> Mapping[str, Any]:
    """Compare the current results with masks, and draw them; arguments as `evaluation.evaluate`.

    The answer of an earlier call is given again where question, results and masks are the same, unless `force`.
    "left_out" of it says why rows are missing. Raises StageNotReady when nothing was made that could be looked at, or
    nothing that could be compared on the split asked for.
    """
    of_all = pipeline.states(["train_seg"])
    states = {name: state for name, state in of_all.items() if state.kind == "current"}
    config, path = pipeline.config, pipeline.folder / "evaluation.json"
    table = pipeline.dataset.table
    run_ids = {name: state.run_id for name, state in states.items()}
    settings = config.pick(("refine", "segmenter.max_side", "run.precision"))
    key: dict[str, Any] = {"split": split, "every": every, "oracle": oracle, "results": run_ids, "settings": settings}
    key["data"] = _data(pipeline, table, split)
    known = read_json(path)
    not_ready = {name: f"{state.kind} ({state.reason})" for name, state in of_all.items() if name not in states}
    missing = left_out(config, table, states, not_ready, split=split, every=every)
    if known.get("key") == key and not force and Path(known["sheet"]).is_file():
        return known | {"left_out": missing}
    results = {name: pipeline.path(name) for name in states if name in titles_of(config)}
    if not results:
        raise StageNotReady("there is nothing to evaluate yet. Run: cam-pipeline run")
    with memory_errors_named("evaluate", "cam.batch_size", config.cam.batch_size):
        rows = evaluate(config, table, results, split=split, every=every, oracle=oracle)
    if split and not rows:
        raise StageNotReady(f"nothing can be compared on split '{split}': {'; '.join(missing)}")
    sheet = pipeline.folder / "report" / "contact_sheet.png"
    run_sheet(config, table, results, sheet)
    classes = ("background", *table.classes)
    counts = image_labels(table.split(config.data.train), len(table.classes)).sum(dim=0).int().tolist()
    groups = frequency_groups(counts) if any(counts) else {}  # nobody said what the training images show
    report = {
        "key": key,
        "rows": [row.figures(classes, config.run.seed, groups) for row in rows],
        "training_images": dict(zip(table.classes, counts, strict=True)),
        "groups": {name: [table.classes[number] for number in ids] for name, ids in groups.items()},
        "sheet": str(sheet),
        "left_out": missing,
    }
    write_text(path, json.dumps(report, indent=1))
    return report


def _data(pipeline: Pipeline, table: Table, split: str) -> str:
    """Digest of the images and masks that are compared with; not all stages know of them."""
    splits = (split or pipeline.config.data.train, split or pipeline.config.data.val)
    samples = [sample for sample in table.samples if sample.split in splits and sample.mask is not None]
    digest = pipeline.dataset.digest(samples, masks=True)
    pipeline.dataset.digests.save()
    return digest
