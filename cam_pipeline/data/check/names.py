"""What is doubtful in the names of a table's classes and splits; `check-data` and `run` warn of the same."""

import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator
from difflib import SequenceMatcher

from cam_pipeline.config import DataSettings
from cam_pipeline.data.check.problems import Problems
from cam_pipeline.data.names import (
    BETWEEN_WORDS,
    SEPARATORS,
    UNKNOWN,
    clean,
    fold,
    is_missing,
    is_number,
    joined,
    same_letters,
)
from cam_pipeline.data.readers.listing import given_names
from cam_pipeline.data.table import LONGEST_NAME, Table

LIKENESS = 0.8
"""A name this similar to another (difflib's ratio) may be misspelt: `buss` and `bus` (0.86), not `goat` and `boat`."""
RARE = 1 / 3
"""A class with at most this share of the images of another one may be that class, misspelt; one image is always few."""
SCRIPTS = {"LATIN", "CYRILLIC", "GREEK"}
"""Scripts that share the look of letters."""
SEVERAL = re.compile(rf"{SEPARATORS.pattern}|\band\b")
"""What stands between labels that somebody wrote into one cell, though not all of them are classes by themselves."""
MOST_NAMED = 10
"""Number of classes that one warning names."""


def check_names(table: Table, settings: DataSettings, problems: Problems) -> None:
    """Warn of names that look like another one, like no name of a class, or like several; and of misspelt splits."""
    counts = Counter(class_id for sample in table.samples for class_id in sample.class_ids or ())
    shown = {name: counts[class_id] for class_id, name in enumerate(table.classes, 1)}
    source, _ = given_names(settings)
    negatives = [settings.negatives] if settings.format == "folders" else []
    for other, name, how in _alike([*negatives, *table.classes]):
        message = f"'{other}' and '{name}' differ only in {how}; use one name if they are one class"
        problems.warn("classes with nearly the same name", message)
    for name in table.classes:
        for kind, message in _oddities(name, table, settings, listed=bool(source)):
            problems.warn(kind, message)
    if not source:
        _warn_of_misspelt(shown, problems)
    _warn_of_single_images(table, settings, problems)
    if settings.format == "csv" and not source and table.classes and set(table.classes) <= {"0", "1"}:
        message = "the classes are named 0 and 1: if these stand for no and yes, write the names of the classes"
        problems.warn("classes named 0 and 1", f"{message} that an image shows, joined by ;")
    _warn_of_numbers(table, problems)
    _warn_of_splits(table, settings, problems)


def _alike(names: Iterable[str]) -> Iterator[tuple[str, str, str]]:
    """Two names that look like one to a reader, but are two to the program, and in what they differ."""
    first: dict[str, str] = {}
    for name in names:
        other = first.setdefault(fold(name), name)
        if other != name:
            alike = same_letters(other) == same_letters(name)
            yield other, name, "case or Unicode form" if alike else "blanks, hyphens, quotation marks or zeros"


def _oddities(name: str, table: Table, settings: DataSettings, listed: bool) -> Iterator[tuple[str, str]]:
    """(kind, message) of what is odd in the name of a class by itself. `listed`: somebody has written a class list."""
    nothing = {
        "csv": "leave the cell empty if the image shows none of the classes, write ? if nobody knows",
        "folders": f"set data.negatives = '{name}' if its images show none of the classes",
    }.get(settings.format, "take it out of the labels if it stands for none of the classes")
    if is_missing(name):
        yield "class named like a missing value", f"'{name}': {nothing}"
    elif same_letters(name) in UNKNOWN:
        yield "class named like a missing value", f"'{name}': an image whose labels nobody knows is no class; {nothing}"
    elif same_letters(name) in ("bg", "void", "ignore", "ignored") or (
        _likeness(same_letters(name), "background") >= LIKENESS
    ):
        message = f"'{name}': label 0 is the background and 255 what is to be ignored, and neither is listed as a class"
        yield "class named like the background", message
    if name.startswith(("#", "//")):
        yield "class named like a comment", f"'{name}': delete it from the list of classes if it is one"
    scripts = {unicodedata.name(letter, "").split(" ")[0] for letter in name if letter.isalpha()} & SCRIPTS
    if len(scripts) > 1:
        kind = "class name in letters of two scripts"
        yield kind, f"{name!a} ({name}): write it in one, or it is another class than the one that looks like it"
    parts = joined(name, table.classes, BETWEEN_WORDS) or joined(name, table.classes)
    known = [part for text in SEVERAL.split(name) if (part := clean(text)) in table.classes and part != name]
    if parts and not listed:
        message = (
            f"'{name}' is one class beside {' and '.join(parts)}; if it stands for these, give an image each label"
        )
        yield "class that joins others", f"{message} (joined by ; in a table), else list it in data.classes"
    elif known and not listed:
        message = f"'{name}' is one class beside {' and '.join(known)}; if it stands for several, join them by ;"
        yield "class that joins others", f"{message}, else list it in data.classes"
    elif not listed and settings.format == "csv" and re.search(r"[,|\uff0c\uff1b\u3001]", name):
        signs = "".join(dict.fromkeys(SEPARATORS.findall(name)))
        yield "class that joins others", f"'{name}' is one class: labels are joined by ; and not by {signs}"


def _likeness(name: str, other: str) -> float:
    """difflib's ratio, or 0 for names that are too long or clearly differ."""
    if max(len(name), len(other)) > LONGEST_NAME:
        return 0.0
    matcher = SequenceMatcher(None, name, other)
    return matcher.ratio() if min(matcher.real_quick_ratio(), matcher.quick_ratio()) >= LIKENESS else 0.0


def _swapped(name: str, other: str) -> bool:
    """Whether two names differ in the order of two neighbouring letters: `cta` and `cat`."""
    differ = [place for place, (one, two) in enumerate(zip(name, other, strict=False)) if one != two]
    return len(name) == len(other) and len(differ) == 2 and differ[1] == differ[0] + 1 and sorted(name) == sorted(other)


def _letters(name: str) -> str:
    """A name without numbers: class10 is not class1, misspelt."""
    return re.sub(r"\d+", "", fold(name))


def _warn_of_misspelt(shown: dict[str, int], problems: Problems) -> None:
    """Warn of rare classes whose name is nearly that of a frequent one. `shown`: number of images of each."""
    for name, count in shown.items():
        for other, more in shown.items():
            few = 0 < count < more and count <= max(1, RARE * more)
            alike = _likeness(fold(name), fold(other)) >= LIKENESS or _swapped(fold(name), fold(other))
            if few and _letters(name) != _letters(other) and alike:
                message = f"'{name}' ({count} image{'s' * (count > 1)}) is nearly '{other}' ({more} images)"
                problems.warn("class that may be misspelt", f"{message}; correct it, or name both in data.classes")
                break


def _warn_of_single_images(table: Table, settings: DataSettings, problems: Problems) -> None:
    """Warn of classes that one training image shows, while others have several."""
    train = [sample for sample in table.samples if sample.split == settings.train]
    counts = Counter(class_id for sample in train for class_id in sample.class_ids or ())
    single = [table.classes[class_id - 1] for class_id, count in sorted(counts.items()) if count == 1]
    if single and max(counts.values()) > 2:
        more = f" and {len(single) - MOST_NAMED} more" if len(single) > MOST_NAMED else ""
        message = f"{', '.join(single[:MOST_NAMED])}{more}; add images, or correct the label if it is misspelt"
        problems.warn("class that a single training image shows", message)


def check_negatives(table: Table, settings: DataSettings, problems: Problems) -> None:
    """Warn of a single class that every training image shows."""
    train = [sample for sample in table.samples if sample.split == settings.train]
    if len(table.classes) == 1 and train and all(sample.class_ids for sample in train):
        message = f"{table.classes[0]}: every training image shows it, so nothing separates it from the background"
        problems.warn("one class and no negatives", f"{message}; add images with an empty label")


def _warn_of_numbers(table: Table, problems: Problems) -> None:
    """Warn of classes named by numbers that are not their labels, or ordered as text, if there are masks."""
    if not any(sample.mask is not None for sample in table.samples):
        return
    for label, name in enumerate(table.classes, 1):
        if all(map(is_number, table.classes)) and float(name) != label:
            message = f"class '{name}' is label {label} in masks; list all numbers from 1 on in data.classes, if masks"
            problems.warn("class whose name is another number than its label", f"{message} hold these names")
            return
    ends = [re.fullmatch(r"(.*?)([0-9]{1,15})", name) for name in table.classes]
    by_number = sorted(table.classes, key=lambda name: [int(part) for part in re.findall(r"[0-9]{1,15}$", name)])
    if all(ends) and len({end[1] for end in ends if end}) == 1 and by_number != [*table.classes]:
        message = f"{', '.join(table.classes[:3])} ... are labels 1, 2, 3 ...; give data.classes for another order"
        problems.warn("classes that end in numbers, ordered as text", message)


def _warn_of_splits(table: Table, settings: DataSettings, problems: Problems) -> None:
    """Warn of splits that look like another one, or are named like a missing value."""
    counts = Counter(sample.split for sample in table.samples)
    # Of others that have no images a mistake tells.
    used = [name for name in (settings.train, settings.val) if name in counts or name == DataSettings().val]
    images = {name: f"'{name}' ({counts[name]:,} image{'s' * (counts[name] != 1)})" for name in [*used, *counts]}
    for other, name, how in _alike(images):
        message = f"{images[other]} and {images[name]} differ only in {how}; use one name if they are one split"
        problems.warn("splits with nearly the same name", message)
    for name in counts:
        near = next((one for one in used if name not in used and _likeness(fold(name), fold(one)) >= LIKENESS), "")
        if near and fold(near) != fold(name):
            problems.warn(
                "splits with nearly the same name", f"{images[name]} is nearly '{near}'; correct it if it is misspelt"
            )
        if name in table.classes and name not in used:
            problems.warn(
                "split named like a class", f"{images[name]} is also a class: are two cells of a row swapped?"
            )
        if is_missing(name):
            problems.warn(
                "split named like a missing value", f"{images[name]}; leave the cell empty for '{settings.train}'"
            )
