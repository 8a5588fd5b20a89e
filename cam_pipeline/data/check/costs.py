"""The steps of a run, and how much each does, before it starts."""

from cam_pipeline.config import CamSettings, Config, TrainSettings
from cam_pipeline.data.check.image import Inspected

FEW_IMAGES, MANY_LEFT_OUT = 10, 0.2
"""Training images of which nothing is said, and the share of them whose loss is worth a line."""


def costs(config: Config, inspected: Inspected) -> tuple[tuple[str, str], ...]:
    """The steps and files of a run, in order: (name, how much)."""
    count = sum(sample.split == config.data.train for sample, _ in inspected)
    mapped = [(sample, one.size) for sample, one in inspected if sample.split in config.cam.splits and one.size]
    strong = ", two views each" if config.train_seg.teacher else ""
    labels = sum(2 * height * width for _, (height, width) in mapped)
    scores = sum((1 + len(sample.class_ids or ())) * height * width for sample, (height, width) in mapped)
    if config.single_stage:
        return (
            ("train_e2e", _training_cost(config.train_e2e, count)),
            ("label_e2e", _counted(len(mapped), "image")),
            ("e2e_labels.h5", f"at most {_megabytes(labels)} (before compression)"),
        )
    soft = [("soft_scores.h5", f"at most {_megabytes(scores)} (before compression)")] if config.train_seg.soft else []
    return (
        ("train_cls", _training_cost(config.train_cls, count) + _extra_cost(config)),
        ("extract_cams", _view_cost(config.cam, len(mapped))),
        ("refine_cams", _counted(len(mapped), "image") + (" through the CRF" if config.refine.crf else "")),
        ("train_seg", _training_cost(config.train_seg, count) + strong),
        ("scores.h5", f"at most {_megabytes(scores)} (before compression)"),
        *soft,
        ("pseudo_labels.h5", f"at most {_megabytes(labels)} (before compression)"),
    )


def left_out(key: str, count: int, batch_size: int) -> str:
    """The line about training images that an epoch leaves out, as they fill no batch; "" if they are few."""
    over = count % batch_size if count > batch_size else 0
    if count < FEW_IMAGES or over <= MANY_LEFT_OUT * count:
        return ""
    why = f"{over} of {count} training images are left out of each epoch, as they fill no batch"
    return f"{why}; lower {key}.batch_size (now {batch_size})"


def uneven_parts(key: str, count: int, settings: TrainSettings, processes: int = 1) -> str:
    """Why the images of a batch cannot be divided over `accumulate` parts and the processes; "" if they can."""
    images = min(count, settings.batch_size)
    if settings.accumulate == 1 or images % (processes * settings.accumulate) == 0:
        return ""
    shared = f" over {processes} processes and" if processes > 1 else ""
    return (
        f"{key}.accumulate = {settings.accumulate}, but the {images} images of a batch cannot be divided{shared} into "
        f"so many equal parts; change it, or {key}.batch_size"
    )


def _view_cost(settings: CamSettings, images: int) -> str:
    """How many views the classifier sees."""
    scales = len(settings.scales)
    mirrored = f" and {'its mirror image' if scales == 1 else 'their mirror images'}" if settings.flip else ""
    views = images * scales * (2 if settings.flip else 1)
    return f"{_counted(views, 'view')}: {_counted(images, 'image')}, {_counted(scales, 'scale')}{mirrored}"


def _extra_cost(config: Config) -> str:
    """The text about what objectives add to a step."""
    acr, sfc = config.objectives.acr, config.objectives.sfc
    parts = [", two views each"] if acr else []
    parts += [f" and {config.sfc.draws} from the image bank"] if sfc and config.sfc.draws else []
    parts += [", also at half their size"] if sfc and config.sfc.scale_weight else []
    return "".join(parts)


def _training_cost(settings: TrainSettings, count: int) -> str:
    if not count:
        return "no images"
    from cam_pipeline.data.batches import EpochBatches  # late: it imports torch

    batches = EpochBatches(count, settings.batch_size, settings.epochs, seed=0)
    epochs, steps = _counted(settings.epochs, "epoch"), _counted(batches.steps_per_epoch, "step")
    parts = f", seen in {settings.accumulate} parts" if settings.accumulate > 1 else ""
    images = _counted(batches.batch_size, "image")
    return f"{_counted(len(batches), 'step')}: {epochs} of {steps}, {images} in each{parts}"


def _counted(count: int, noun: str) -> str:
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


def _megabytes(count: int) -> str:
    return f"{count / 1e6:,.0f} MB" if count >= 1e6 else "1 MB"
