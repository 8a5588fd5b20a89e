"""All current results -> numbers (evaluation.json) and pictures (contact sheet). Makes nothing that others need."""

import json
from collections.abc import Mapping
from typing import Any

from cam_pipeline.atomic import write_text
from cam_pipeline.data.readers import load_table
from cam_pipeline.evaluation import evaluate
from cam_pipeline.pipeline import Pipeline, read_json
from cam_pipeline.report.run_sheet import run_sheet


def evaluate_run(
    pipeline: Pipeline, *, force: bool = False, split: str = "", every: int = 1, oracle: bool = False
) -> Mapping[str, Any]:
    """Compare the current results with masks; arguments as `evaluation.evaluate`.

    The answer of an earlier call is given again where neither question nor results have changed, unless `force`.
    """
    states = {name: state for name, state in pipeline.states(["train_seg"]).items() if state.kind == "current"}
    config, path = pipeline.config, pipeline.folder / "evaluation.json"
    run_ids = {name: state.run_id for name, state in states.items()}
    key = {"split": split, "every": every, "oracle": oracle, "results": run_ids}
    known = read_json(path)
    if known.get("key") == key and not force:
        return known
    results = {name: pipeline.path(name) for name in states}
    table = load_table(config.data)
    rows = evaluate(config, table, results, split=split, every=every, oracle=oracle)
    sheet = pipeline.folder / "report" / "contact_sheet.png"
    if {"extract_cams", "make_labels"} <= set(results):
        run_sheet(config, table, results, sheet)
    classes = ("background", *table.classes)
    figures = [row.figures(classes, config.run.seed) for row in rows]
    report = {"key": key, "rows": figures, "sheet": str(sheet) if sheet.is_file() else ""}
    write_text(path, json.dumps(report, indent=1))
    return report
