"""A folder of images for each class: `root/<split>/<class>/x.jpg`, or `root/<class>/x.jpg`."""

from collections.abc import Collection, Iterator
from pathlib import Path

from cam_pipeline.config import DataSettings
from cam_pipeline.data.check.problems import Problems
from cam_pipeline.data.foreign import remedy
from cam_pipeline.data.names import in_order, is_class, system_part
from cam_pipeline.data.readers.listing import IMAGE_SUFFIXES, Listing, class_names
from cam_pipeline.data.table import Sample, Table
from cam_pipeline.errors import DataError

VALIDATION_NAMES = {"val", "valid", "validation", "dev"}
SPLIT_NAMES = {"train", "training", "trainval", "test", "testing"} | VALIDATION_NAMES


def read_folders(settings: DataSettings, problems: Problems) -> Table:
    """Every image shows the one class that its folder is named after; those in `data.negatives` show none.

    Folders in a class folder count as part of it. The id is the path below the root without suffix: files of one name
    in two class folders are two images. Without split folders all images are in the training split.
    """
    split_folders = _split_folders(settings)
    scribbles = settings.root / settings.scribbles if settings.scribbles else None  # no class, if it lies here
    by_split = {
        split: [one for one in _class_folders(folder) if one != scribbles] for split, folder in split_folders.items()
    }
    found = {folder.name for folders in by_split.values() for folder in folders} - {settings.negatives}
    if not any(by_split.values()):
        raise DataError(
            f"{settings.root}: there is no class folder in it; put the images of each class into a folder of its name"
        )
    _check_wrapper(settings, by_split[settings.train])
    listing = Listing(settings, class_names(settings, in_order(filter(is_class, found)), problems), problems)
    _warn_of_splits(settings, by_split, problems)
    _warn_of_validation(settings, split_folders.values(), problems)
    for folder in dict.fromkeys([settings.root, *split_folders.values()]):
        _warn_of_system_folders(folder, problems)
    for split, folders in by_split.items():
        for folder in folders:
            names = [] if folder.name == settings.negatives else [folder.name]
            no_class = f"set data.negatives to '{folder.name}' if its images show none of the classes"
            class_ids = listing.class_ids(names, str(folder), no_class)
            for file in _images_in(folder, problems):
                path = listing.path(file.relative_to(settings.root).as_posix(), str(folder))
                if path is not None:
                    sample = Sample(path.with_suffix("").as_posix(), settings.root / path, split, class_ids)
                    listing.add(sample, str(folder))
    return listing.table()


def _check_wrapper(settings: DataSettings, folders: list[Path]) -> None:
    """Raise DataError if the only class folder holds the splits, as an unpacked archive does."""
    if len(folders) == 1 and any(_class_folders(folders[0] / settings.train)):
        raise DataError(f"{folders[0]} holds the splits, one folder deeper; set data.root = '{folders[0]}'")


def _split_folders(settings: DataSettings) -> dict[str, Path]:
    """Folder of each split. A folder with the training split's name and images of its own is a class (trains, say)."""
    train, val = settings.root / settings.train, settings.root / settings.val
    if not (settings.train and any(_class_folders(train))) or any(_is_image(path) for path in train.iterdir()):
        return {settings.train: settings.root}
    splits = {settings.train: train}
    return splits | {settings.val: val} if settings.val and val.is_dir() else splits


def _warn_of_validation(settings: DataSettings, splits: Collection[Path], problems: Problems) -> None:
    """Warn of a folder beside that of the training split that looks like the validation split, if that is absent."""
    if len(splits) < 2 and settings.val and (settings.root / settings.train) in splits:
        for folder in _class_folders(settings.root):
            if folder.name.casefold() in VALIDATION_NAMES | {settings.val.casefold()}:
                problems.warn("split that is not used", f"{folder}: set data.val = '{folder.name}' to report on it")


def _warn_of_splits(settings: DataSettings, by_split: dict[str, list[Path]], problems: Problems) -> None:
    """Warn of class folders that are named like splits, unless they lie in a split or `data.classes` names them."""
    names = SPLIT_NAMES | {settings.train.casefold(), settings.val.casefold()}
    for folder in by_split[settings.train]:
        named = folder.parent != settings.root or folder.name in settings.classes
        if folder.name.casefold() in names and not named:
            message = (
                f"{folder}: read as the class '{folder.name}'; if it is a split, name it by data.train or data.val and "
                "put its images into a folder for each class"
            )
            problems.warn("class named like a split", message)


def _class_folders(folder: Path) -> Iterator[Path]:
    """The folders in a folder, by name, without hidden ones and those of systems; none if there is no such folder."""
    paths = sorted(folder.iterdir()) if folder.is_dir() else []
    return (path for path in paths if path.is_dir() and not path.name.startswith(".") and not system_part([path.name]))


def _warn_of_system_folders(folder: Path, problems: Problems) -> None:
    """Warn of folders that a system has made (a NAS, a zip program), which are left out; of hidden ones nobody asks."""
    for path in sorted(folder.iterdir()):
        if path.is_dir() and not path.name.startswith(".") and system_part([path.name]):
            problems.warn("file left out", f"{path}: systems make such folders, such as network disks; it is no class")


def _images_in(folder: Path, problems: Problems) -> Iterator[Path]:
    """All image files in a folder and the folders in it, by name; warns of other files."""
    for path in sorted(folder.rglob("*")):
        parts = path.relative_to(folder).parts
        if any(part.startswith(".") for part in parts) or system_part(parts[:-1]):
            continue
        if system_part(parts):
            problems.warn("file left out", f"{path}: systems make such files and folders, such as network disks")
        elif _is_image(path):
            yield path
        elif path.is_symlink() and path.is_dir():
            problems.warn(
                "file left out", f"{path}: links to folders are not followed; put the images themselves there"
            )
        elif not path.is_dir():
            reason = remedy(path) or f"its ending is none of {' '.join(IMAGE_SUFFIXES)}"
            problems.warn("file left out", f"{path}: {reason}")


def _is_image(path: Path) -> bool:
    return path.suffix.lower() in IMAGE_SUFFIXES and not path.name.startswith(".") and not path.is_dir()
