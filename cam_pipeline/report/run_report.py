"""All current results -> numbers (evaluation.json) and pictures (contact sheet). No stage needs them."""

import json
from collections.abc import Callable, Mapping, Sequence
from functools import cache, partial
from pathlib import Path
from typing import Any

from cam_pipeline.assembly.single_stage import trained_classifier
from cam_pipeline.cams.image_classes import SEEN, ImageClasses, classifier_file, with_threshold
from cam_pipeline.config import Config
from cam_pipeline.data.table import Table
from cam_pipeline.data.views import image_labels
from cam_pipeline.errors import StageNotReady
from cam_pipeline.evaluation.rows import evaluate, left_out, titles_of
from cam_pipeline.machine.atomic import read_json, write_text
from cam_pipeline.machine.device import memory_errors_named, pick_device
from cam_pipeline.models.classifier import Classifier
from cam_pipeline.models.placing import place
from cam_pipeline.ops.metrics import frequency_groups
from cam_pipeline.pipeline import Pipeline, State
from cam_pipeline.prediction.label_maps import PresencesOf
from cam_pipeline.report.choice import named
from cam_pipeline.report.run_sheet import run_sheet


def evaluate_run(
    pipeline: Pipeline,
    *,
    force: bool = False,
    split: str = "",
    every: int = 1,
    oracle: bool = False,
    images: int | None = None,
    ids: Sequence[str] = (),
) -> Mapping[str, Any]:
    """Compare the current results with masks, and draw them.

    Arguments as in `evaluation.rows.evaluate`; `images` and `ids` as in `run_sheet`.

    What an earlier call made is returned again if arguments, settings, results and data are the same, unless `force`.
    "left_out" says why rows are missing, and "next" what makes the results that are not current; "" if all are. Raises
    StageNotReady if no result is current, or none can be compared on the given split, DataError for an unknown id.
    """
    of_all = pipeline.states(pipeline.shown())
    states = {name: state for name, state in of_all.items() if state.kind == "current"}
    config = pipeline.config
    path = pipeline.folder / "evaluation.json"
    sheet = pipeline.folder / "report" / "contact_sheet.png"
    table = pipeline.dataset.table
    named(table, ids)
    results = {name: pipeline.path(name) for name in states if name in titles_of(config)}
    if not results:
        raise StageNotReady(_nothing_current(pipeline, of_all))
    by_classifier = config.predict.network in results and config.predict.classes == "classifier"
    classifier = cache(partial(_classifier, pipeline))
    if by_classifier:
        config = _settled(pipeline, classifier)
    run_ids = {name: state.run_id for name, state in states.items()}
    settings = config.pick(("refine", "segmenter.max_side", "run.precision"))
    key: dict[str, Any] = {"split": split, "every": every, "oracle": oracle, "results": run_ids, "settings": settings}
    key["data"] = _data(pipeline, table, split)
    if by_classifier:
        key["classifier"] = pipeline.dataset.digests.of(pipeline.path(config.cam.network))
        key["settings"] |= config.pick(("predict", *SEEN))
    shown = {"images": images, "ids": list(ids)}
    not_ready = {name: f"{state.kind} ({state.reason})" for name, state in of_all.items() if name not in states}
    missing = left_out(config, table, states, not_ready, split=split, every=every, oracle=oracle)
    told = {"left_out": missing, "next": _remedy(pipeline, of_all)}
    known = read_json(path)
    same = known.get("key") == key and not force
    if same and known.get("shown") == shown and Path(known["sheet"]).is_file():
        return known | told
    presences = ImageClasses(classifier(), config).presences if by_classifier else None
    report = known if same else _figures(config, table, results, split, every, oracle, presences, missing)
    run_sheet(config, table, results, sheet, images=images, ids=ids, presences=presences)
    report = {"key": key, **report, "sheet": str(sheet), "shown": shown, "left_out": missing}
    write_text(path, json.dumps(report, indent=1))
    return report | told


def _settled(pipeline: Pipeline, classifier: Callable[[], Classifier]) -> Config:
    """The config with a number as `predict.threshold`. Raises StageNotReady if the classifier is not current."""
    config = pipeline.config
    classifier_file(config)
    pipeline.ensure(config.cam.network)
    with memory_errors_named("evaluate", "cam.batch_size", config.cam.batch_size):
        return with_threshold(config, pipeline.dataset, classifier, look_at_data=True)


def _classifier(pipeline: Pipeline) -> Classifier:
    """The run's classifier, on its device."""
    config = pipeline.config
    classifier = trained_classifier(config, pipeline.path(config.cam.network), pipeline.dataset.table.classes)
    place(classifier, pick_device(config.run))
    return classifier


def _figures(
    config: Config,
    table: Table,
    results: Mapping[str, Path],
    split: str,
    every: int,
    oracle: bool,
    presences: PresencesOf | None,
    missing: Sequence[str],
) -> dict[str, Any]:
    """The rows of the report, and how often the training images show each class."""
    with memory_errors_named("evaluate", "cam.batch_size", config.cam.batch_size):
        rows = evaluate(config, table, results, split=split, every=every, oracle=oracle, presences=presences)
    if split and not rows:
        raise StageNotReady(f"nothing can be compared on split '{split}': {'; '.join(missing)}")
    classes = ("background", *table.classes)
    counts = image_labels(table.split(config.data.train), len(table.classes)).sum(dim=0).int().tolist()
    groups = frequency_groups(counts) if any(counts) else {}  # no training image has a label
    return {
        "rows": [row.figures(classes, config.run.seed, groups) for row in rows],
        "training_images": dict(zip(table.classes, counts, strict=True)),
        "groups": {name: [table.classes[number] for number in ids] for name, ids in groups.items()},
    }


def _nothing_current(pipeline: Pipeline, states: Mapping[str, State]) -> str:
    """The message if no result can be evaluated: the state of each, why, and what to do."""
    remedy = _remedy(pipeline, states)
    if all(state.kind == "missing" for state in states.values()):
        return f"there is nothing to evaluate yet. {remedy}"
    found = [
        f"{pipeline.stages[name].makes} is {state.kind} ({state.reason})"
        for name, state in states.items()
        if state.kind != "current"
    ]
    return f"nothing is current that can be evaluated: {', '.join(found)}. {remedy}"


def _remedy(pipeline: Pipeline, states: Mapping[str, State]) -> str:
    """What makes the results that are not current; "" if all are."""
    waiting = {name: state for name, state in states.items() if state.kind != "current"}
    if not waiting:
        return ""
    damaged = [name for name, state in waiting.items() if state.kind == "damaged"]
    if damaged:
        return f"Run: {pipeline.command(damaged[0])} --force"
    commands = list(dict.fromkeys(pipeline.command(name) for name in waiting))
    return f"Run: {commands[0] if len(commands) == 1 else f'cam-pipeline run {pipeline.same}'.strip()}"


def _data(pipeline: Pipeline, table: Table, split: str) -> str:
    """Digest of the images and masks to compare with; the stages' run ids do not cover all of them."""
    splits = (split or pipeline.config.data.train, split or pipeline.config.data.val)
    samples = [sample for sample in table.samples if sample.split in splits and sample.mask is not None]
    digest = pipeline.dataset.digest(samples, masks=True)
    pipeline.dataset.digests.save()
    return digest
