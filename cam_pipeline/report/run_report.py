"""All current results -> numbers (evaluation.json) and pictures (contact sheet). No stage needs them."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cam_pipeline.data.table import Table
from cam_pipeline.data.views import image_labels
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
    """Compare the current results with masks, and draw them; arguments as in `evaluation.rows.evaluate`.

    The report of an earlier call is returned again if arguments, settings, results and data are the same, unless
    `force`. Its "left_out" says why rows are missing. Raises StageNotReady if there is no result, or none that can be
    compared on the given split.
    """
    of_all = pipeline.states(["train_seg"])
    states = {name: state for name, state in of_all.items() if state.kind == "current"}
    config = pipeline.config
    path = pipeline.folder / "evaluation.json"
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
    groups = frequency_groups(counts) if any(counts) else {}  # no training image has a label
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
    """Digest of the images and masks to compare with; the stages' run ids do not cover all of them."""
    splits = (split or pipeline.config.data.train, split or pipeline.config.data.val)
    samples = [sample for sample in table.samples if sample.split in splits and sample.mask is not None]
    digest = pipeline.dataset.digest(samples, masks=True)
    pipeline.dataset.digests.save()
    return digest
