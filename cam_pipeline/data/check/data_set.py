"""The contents of a data set, its mistakes, and the cost of a run on it; nothing is written."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

from joblib import delayed

from cam_pipeline.config import Config
from cam_pipeline.data.check.costs import costs, left_out, uneven_parts
from cam_pipeline.data.check.depth import told_of_dark
from cam_pipeline.data.check.image import Inspected, Inspection, inspect
from cam_pipeline.data.check.marks import check_clicks_on_masks
from cam_pipeline.data.check.masks import check_denied, check_palettes, check_shown
from cam_pipeline.data.check.names import check_names, check_negatives
from cam_pipeline.data.check.problems import AllProblems, Problem
from cam_pipeline.data.check.training_marks import unmarked, without_marks
from cam_pipeline.data.digest import without_maps
from cam_pipeline.data.marks import has_scribble
from cam_pipeline.data.readers import load_table
from cam_pipeline.data.table import Sample, Table, absent_classes, without_classes, without_labels, without_mask
from cam_pipeline.errors import DataError
from cam_pipeline.machine.parallel import joblib_workers, results_of
from cam_pipeline.machine.progress import track


@dataclass(frozen=True)
class SplitFacts:
    """Counts of one split's images: all, of each class, by number of classes, without labels, with a mask, with marks.

    `clicks`, `scribbles` and `corrected` are images that have such, `clicked` is the number of clicks on all of them.
    """

    name: str
    images: int
    by_class: Counter[int]
    by_number: Counter[int]
    unlabelled: int
    masks: int
    clicks: int = 0
    clicked: int = 0
    scribbles: int = 0
    corrected: int = 0


@dataclass(frozen=True)
class DataCheck:
    """Findings of `check_data`. A run, or `evaluate` after it, fails at any of `errors`; `warnings` are worth a look.

    `sizes` are (height, width) of all images that can be read; `costs` are the steps of a run, and how much each does;
    `table` is None if it cannot be read.
    """

    classes: tuple[str, ...]
    splits: tuple[SplitFacts, ...]
    sizes: tuple[tuple[int, int], ...]
    costs: tuple[tuple[str, str], ...]
    errors: tuple[Problem, ...]
    warnings: tuple[Problem, ...]
    table: Table | None = None


def check_data(config: Config, workers: int, problems: AllProblems | None = None) -> DataCheck:
    """Read the data set of a config and decode every image and mask of it in worker processes.

    Findings are appended to `problems`. In splits that the config does not use, a wrong image is only a warning. Raises
    UserError only for causes outside the data, such as a missing library.
    """
    problems = problems or AllProblems()
    _check_merged(config, problems)
    try:
        table = load_table(config.data, problems)
    except DataError as error:
        problems.report("data set that cannot be read", str(error))
        return DataCheck((), (), (), (), tuple(problems.errors), tuple(problems.warnings))
    inspected = _inspect_all(table, workers)
    used = used_splits(config)
    for sample, inspection in inspected:
        found = inspection.problems
        (problems.errors if sample.split in used else problems.warnings).extend(found.errors)
        problems.warnings.extend(found.warnings)
    _check_splits(config, table, problems)
    _check_training(config, table, problems)
    _check_pictures(inspected, problems)
    _check_masks(config, table, inspected, problems)
    return DataCheck(
        table.classes,
        tuple(_facts(name, table) for name in _split_names(used, table)),
        tuple(inspection.size for _, inspection in inspected if inspection.size),
        costs(config, inspected),
        tuple(problems.errors),
        tuple(problems.warnings),
        table,
    )


def used_splits(config: Config) -> tuple[str, ...]:
    """The splits whose images a run, or `evaluate` after it, opens."""
    splits = (config.data.train, config.data.val, *config.cam.splits)
    return tuple(dict.fromkeys(split for split in splits if split))


def _inspect_all(table: Table, workers: int) -> Inspected:
    task = delayed(partial(inspect, classes=table.classes))
    found: list[tuple[Sample, Inspection]] = []
    with (
        joblib_workers("loky", workers) as parallel,
        track("check-data", len(table.samples)) as progress,
        results_of(parallel, (task(sample) for sample in table.samples)) as results,
    ):
        for sample, inspection in zip(table.samples, results, strict=True):
            found.append((sample, inspection))
            progress.advance()
    return found


def _split_names(used: Sequence[str], table: Table) -> list[str]:
    """The splits that have images, those that the config uses first."""
    present = dict.fromkeys(sample.split for sample in table.samples)
    return [name for name in dict.fromkeys([*used, *present]) if name in present]


def _facts(name: str, table: Table) -> SplitFacts:
    samples = table.split(name)
    labels = [sample.class_ids for sample in samples if sample.class_ids is not None]
    return SplitFacts(
        name=name,
        images=len(samples),
        by_class=Counter(class_id for class_ids in labels for class_id in class_ids),
        by_number=Counter(map(len, labels)),
        unlabelled=len(samples) - len(labels),
        masks=sum(sample.mask is not None for sample in samples),
        clicks=sum(bool(sample.clicks) for sample in samples),
        clicked=sum(len(sample.clicks) for sample in samples),
        scribbles=sum(map(has_scribble, samples)),
        corrected=sum(sample.corrected is not None for sample in samples),
    )


def _check_merged(config: Config, problems: AllProblems) -> None:
    """Report missing maps of other runs, at which a run would stop only after it has made its own."""
    for path in config.refine.merge_with:
        if not path.is_file():
            problems.report("missing file of maps", without_maps(path))


def _check_splits(config: Config, table: Table, problems: AllProblems) -> None:
    """Every split that the config names must have images; a validation split that has its default name need not."""
    for name in sorted({config.data.train, *config.cam.splits}):
        try:
            table.split(name)
        except DataError as error:
            problems.report("split without images", f"{error}; see data.train and cam.splits")
    try:
        missing = config.data.val and not table.validation(config.data.val)
    except DataError as error:
        missing = False
        problems.report("split without images", str(error))
    if missing:
        others = sorted({sample.split for sample in table.samples} - {config.data.train})
        instead = f"; set data.val = '{others[0]}'?" if others else ""
        message = f"no images in split '{config.data.val}', so training reports no mAP and F1{instead}"
        problems.warn("split without images", message)
    compared = [config.data.train] * (config.data.train in config.cam.splits) + [config.data.val or config.data.train]
    for name in dict.fromkeys(compared):
        samples = [sample for sample in table.samples if sample.split == name]
        if samples and all(sample.mask is None for sample in samples):
            message = f"no image of split '{name}' has a mask: evaluate has nothing to compare with there"
            problems.warn("split without masks", message)


def _check_training(config: Config, table: Table, problems: AllProblems) -> None:
    """Check what training needs of the images of its split, taken together."""
    train = [sample for sample in table.samples if sample.split == config.data.train]
    for sample in train:
        if sample.class_ids is None:
            problems.report("training image without labels", without_labels(sample))
        if config.train_seg.supervision == "masks" and sample.mask is None:
            problems.report("training image without mask", without_mask(sample))
    if train and all(sample.class_ids == () for sample in train):
        problems.report("training split without a class", without_classes(train, config.data.train))
    supervision = config.train_seg.supervision
    if train and supervision in ("scribbles", "mixed"):
        if message := without_marks(supervision, config.data.train, train):
            problems.report("training split without a click or scribble", message)
        elif supervision == "scribbles" and (message := unmarked(train)):
            problems.warn("training images without click and scribble", message)
    if train and not config.single_stage and (message := too_few_images(config, len(train))):
        problems.report("too few images", message)
    staged = {"train_cls": config.train_cls, "train_seg": config.train_seg}
    for key, settings in ({"train_e2e": config.train_e2e} if config.single_stage else staged).items():
        if 0 < len(train) < settings.batch_size:
            message = (
                f"{len(train)} training images, {key}.batch_size = {settings.batch_size}: each step takes them all"
            )
            problems.warn("fewer images than a batch", message)
        elif message := left_out(key, len(train), settings.batch_size):
            problems.warn("images that fill no batch", message)
        if train and (message := uneven_parts(key, len(train), settings)):
            problems.report("batch that cannot be divided", message)
    _check_classes(config, table, train, problems)


def too_few_images(config: Config, count: int) -> str:
    """Why the segmenter cannot be trained on `count` images (DeepLabV3+ normalises pooled features); "" if it can."""
    settings = config.train_seg
    if config.segmenter.architecture != "deeplabv3plus" or settings.at_once(count) >= 2:
        return ""
    parts = f", train_seg.accumulate is {settings.accumulate}" if settings.accumulate > 1 else ""
    return (
        f"DeepLabV3+ needs two images in a batch; there are {count}, train_seg.batch_size is {settings.batch_size}"
        f"{parts}; {'change' if parts else 'raise'} these, or set another segmenter.architecture"
    )


def _check_classes(config: Config, table: Table, train: Sequence[Sample], problems: AllProblems) -> None:
    check_names(table, config.data, problems)
    check_negatives(table, config.data, problems)
    absent = absent_classes(table.classes, train) if train else []
    for name in absent:
        message = f"{name}: nothing is learned about it; add images, or drop the class"
        problems.warn("class without a training image", message)
    for sample in table.samples:
        if sample.split == config.data.val and sample.class_ids:
            unseen = [name for name in absent if table.classes.index(name) + 1 in sample.class_ids]
            if unseen:
                message = f"image {sample.id}{sample.named_in} shows {', '.join(unseen)}"
                problems.warn("validation image of a class without training images", message)


def _check_masks(config: Config, table: Table, inspected: Inspected, problems: AllProblems) -> None:
    """Compare masks with one another and with labels, each split as a whole."""
    masks = [(sample, inspection.mask) for sample, inspection in inspected if inspection.mask]
    trained_on = config.data.train if config.train_seg.supervision == "masks" else ""
    chosen_on = config.refine.background_split if config.refine.background == "from-split" else ""
    check_shown(masks, table.classes, problems, trained_on, chosen_on)
    check_palettes(masks, problems)
    check_denied(masks, table.classes, problems)
    check_clicks_on_masks((found.clicks for _, found in masks), problems)


def _check_pictures(inspected: Inspected, problems: AllProblems) -> None:
    """Warn of images that look black, and of the same file content under two ids.

    The latter is worst if it is trained on and reported on.
    """
    known = [(sample, inspection.brightest) for sample, inspection in inspected if inspection.brightest]
    for message in told_of_dark(known):
        problems.warn("images that look black", message)
    first: dict[str, Sample] = {}
    for sample, inspection in inspected:
        other = first.setdefault(inspection.digest, sample) if inspection.digest else sample
        if other is not sample:
            kind = "same image in two splits" if sample.split != other.split else "same image twice in a split"
            unlike = "" if sample.class_ids == other.class_ids else ", with other labels"
            problems.warn(kind, f"{other.image} ({other.split}) and {sample.image} ({sample.split}){unlike}")
