"""All stages, in order: what each makes, from which results, settings and files.

Nothing here imports torch, so that `status` is quick; a stage's own file is imported when its work starts.
"""

from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

from cam_pipeline.config import Config, ObjectiveSettings
from cam_pipeline.data.dataset import Dataset
from cam_pipeline.data.marks import has_marks
from cam_pipeline.pipeline.stage import Stage
from cam_pipeline.refinement.choice import images_to_choose_by


def _in_file(name: str, function: str) -> Callable[..., Any]:
    """A function of `stages/<name>.py`, which is imported at the first call."""

    def call(*arguments: Any) -> Any:
        return getattr(import_module(f"cam_pipeline.stages.{name}"), function)(*arguments)

    return call


def _training_data(config: Config, dataset: Dataset) -> str:
    train = dataset.digest(dataset.table.split(config.data.train))
    settings = config.classifier
    weights = [settings.weights, *([settings.trunk_weights] if settings.trunk else [])]
    return " ".join([train, *(dataset.digests.of_weights(path) for path in weights)])


def _images_and_labels(config: Config, dataset: Dataset) -> str:
    return dataset.digest(dataset.table.split(*config.cam.splits))


def _labelled_images_and_marks(config: Config, dataset: Dataset) -> str:
    return dataset.digest(dataset.table.split(*config.cam.splits), marks=True)


def _merged_files(config: Config, dataset: Dataset) -> str:
    return "-".join(dataset.digests.of_merged(config.refine.merge_with))


def _images_with_maps(config: Config, dataset: Dataset) -> str:
    return dataset.digest(dataset.table.split(*config.cam.splits), labels=False, marks=True)


def _images_and_masks_to_choose_by(config: Config, dataset: Dataset) -> str:
    digest = _images_with_maps(config, dataset)
    if config.refine.background != "from-split":
        return digest
    samples = dataset.table.split(*config.cam.splits)
    return f"{digest}-{dataset.digest(images_to_choose_by(config.refine, samples), labels=False, masks=True)}"


def _marked_images(config: Config, dataset: Dataset) -> str:
    samples = [sample for sample in dataset.table.split(*config.cam.splits) if has_marks(sample)]
    return dataset.digest(samples, labels=False, marks=True) if samples else ""


def _supervision_data(config: Config, dataset: Dataset) -> str:
    learned = config.train_seg.supervision
    train = dataset.digest(
        dataset.table.split(config.data.train), labels=False, masks=learned == "masks", marks=learned == "scribbles"
    )
    return f"{train} {dataset.digests.of_weights(config.segmenter.weights)}"


def _supervision_results(config: Config) -> tuple[str, ...]:
    if config.train_seg.supervision in ("masks", "scribbles"):
        return ()
    if config.train_seg.from_e2e:
        return ("label_e2e",)
    beside = {"score_cams": config.train_seg.soft, "compare_cams": config.train_seg.by_agreement > 0}
    return ("make_labels", *(name for name, wanted in beside.items() if wanted))


def _records(path: Path) -> str:
    from cam_pipeline.store.hdf5 import records_digest  # late: `status` does not need h5py

    return records_digest(path)


STAGES = (
    Stage(
        name="train_cls",
        makes="classifier.safetensors",
        command="train-cls",
        run=_in_file("train_cls", "train_cls"),
        params=("classifier", "objectives", *sorted(ObjectiveSettings.model_fields), "train_cls", "run.seed",
                "run.precision"),
        ignores=("train_cls.checkpoint_seconds",),
        data=_training_data,
        shared=True,
        divides="train_cls.batch_size",
        version=2,
    ),
    Stage(
        name="train_e2e",
        makes="e2e.safetensors",
        command="train-e2e",
        run=_in_file("train_e2e", "train_e2e"),
        params=("classifier", "tscd", "train_e2e", "run.seed", "run.precision"),
        ignores=("train_e2e.checkpoint_seconds",),
        data=_training_data,
        shared=True,
        check=_in_file("train_e2e", "check"),
        divides="train_e2e.batch_size",
        final=lambda config: config.single_stage,
    ),
    Stage(
        name="label_e2e",
        makes="e2e_labels.h5",
        command="train-e2e",
        run=_in_file("label_e2e", "label_e2e"),
        params=("segmenter.max_side", "run.precision"),
        needs=lambda config: ("train_e2e",),
        final=lambda config: config.single_stage,
        data=_labelled_images_and_marks,
        content=_records,
    ),
    Stage(
        name="extract_cams",
        makes="cams.h5",
        command="make-cams",
        run=_in_file("extract_cams", "extract_cams"),
        params=("cam", "run.precision"),
        ignores=("cam.batch_size",),
        needs=lambda config: (config.cam.network,),
        data=_images_and_labels,
        shared=True,
        memory="cam.batch_size",
        version=4,
        content=_records,
    ),
    Stage(
        name="merge_cams",
        makes="merged_cams.h5",
        command="make-cams",
        run=_in_file("merge_cams", "merge_cams"),
        params=("refine.merge_with",),
        needs=lambda config: ("extract_cams",),
        applies=lambda config: bool(config.refine.merge_with),
        data=_merged_files,
        content=_records,
    ),
    Stage(
        name="refine_cams",
        makes="scores.h5",
        command="make-cams",
        run=_in_file("refine_cams", "refine_cams"),
        params=("refine",),
        ignores=("refine.merge_with", "refine.crf_backend"),
        needs=lambda config: (config.refine.maps_from,),
        data=_images_and_masks_to_choose_by,
        check=_in_file("refine_cams", "check"),
        version=6,
        content=_records,
    ),
    Stage(
        name="make_labels",
        makes="pseudo_labels.h5",
        command="make-cams",
        run=_in_file("make_labels", "make_labels"),
        params=("labels",),
        needs=lambda config: ("refine_cams",),
        data=_marked_images,
        content=_records,
    ),
    Stage(
        name="score_cams",
        makes="soft_scores.h5",
        command="make-cams",
        run=_in_file("score_cams", "score_cams"),
        params=(),  # those of refine_cams, whose run id says all
        needs=lambda config: (config.refine.maps_from, "refine_cams"),
        applies=lambda config: config.train_seg.soft,
        data=_images_with_maps,
        content=_records,
    ),
    Stage(
        name="compare_cams",
        makes="agreement.h5",
        command="make-cams",
        run=_in_file("compare_cams", "compare_cams"),
        params=("refine.merge_with",),
        needs=lambda config: ("extract_cams",),
        applies=lambda config: config.train_seg.by_agreement > 0,
        data=_merged_files,
        content=_records,
    ),
    Stage(
        name="train_seg",
        makes="segmenter.safetensors",
        command="train-seg",
        run=_in_file("train_seg", "train_seg"),
        params=("segmenter", "self_regulation", "dfr", "train_seg", "teacher", "run.seed", "run.precision"),
        ignores=("train_seg.checkpoint_seconds", "segmenter.max_side"),
        needs=_supervision_results,
        final=lambda config: not config.single_stage,
        data=_supervision_data,
        shared=True,
        check=_in_file("train_seg", "check"),
        divides="train_seg.batch_size",
        version=2,
    ),
)  # fmt: skip
