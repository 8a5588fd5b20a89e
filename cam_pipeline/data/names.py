"""What the name of a class, a split or a file means, by its letters alone."""

import re
import unicodedata
from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from functools import lru_cache

JOINERS = "\u200c\u200d"
"""Zero width, but letters of Persian and Indian scripts need them."""
INVISIBLE = "\u200b\u200e\u200f\u202a\u202c\u2060\ufeff"
"""Marks that spreadsheets and web pages leave around text; nobody sees them."""
BLANKS = " \t\n\r\v\f\x1c\x1d\x1e\x1f\x85\xa0\u1680\u2028\u2029\u202f\u205f\u3000" + "".join(
    map(chr, range(0x2000, 0x200B))
)
"""All that `str.strip` takes for blanks."""
NUMBER = re.compile(r"[+-]?[0-9]{1,15}(\.0*)?")
"""Whole numbers; pandas writes 3 as 3.0 if a cell of the column is empty."""
SEPARATORS = re.compile(r"[,|/\\+&:\t\uff0c\uff1b\u3001\u060c]")
"""Signs that other tools write between labels. Class names seldom have them."""
LIST_SIGNS = re.compile(r"[,|\t\uff0c\uff1b\u3001\u060c]")
"""Those of them that mean a list; others also stand in names of several levels (left/hand)."""
BETWEEN_WORDS = re.compile(r"\s+and\s+|[\s_-]+")
"""What may as well stand inside the name of one class (fire truck)."""
BRACKETS = {"[": "]", "(": ")", "{": "}"}
QUOTES = "'\"`\u2018\u2019\u201c\u201d"

MISSING = {"nan", "none", "null", "nil", "na", "n/a", "<na>", "#n/a", "#na", "#value!", "undefined", "nat", "-", "--"}
"""Small letters of what programs write into cells without a value."""
UNKNOWN = {"unknown", "unlabelled", "unlabeled", "unannotated", "todo", "tbd", "??", "???"}
"""Small letters of what people write where nobody has looked."""
SYSTEM_FOLDERS = {
    "@eadir", "@recycle", "#recycle", "@recently-snapshot", "#snapshot", "__macosx", "lost+found", "$recycle.bin",
    "system volume information", ".ipynb_checkpoints", ".appledouble", ".trashes", ".spotlight-v100",
    ".fseventsd", ".thumbnails",
}  # fmt: skip
"""Small letters of folders that network disks, zip programs and notebooks make."""
SYSTEM_FILES = {".ds_store", "thumbs.db", "ehthumbs.db", "desktop.ini"}
VOC_NAMES = (
    {"aeroplane", "airplane", "plane"}, {"bicycle", "bike"}, {"diningtable", "table"},
    {"motorbike", "motorcycle", "mbike"}, {"pottedplant", "plant"}, {"sofa", "couch"}, {"tvmonitor", "tv", "monitor"},
)  # fmt: skip
"""Names, folded, that mean one of PASCAL VOC's classes in different files."""


def clean(text: str) -> str:
    """The text without blanks of any kind and invisible marks at its ends."""
    return text.strip() if text.isascii() else text.strip(BLANKS + INVISIBLE)


def same_letters(text: str) -> str:
    """A key that texts share if they differ only in case or Unicode form."""
    return unicodedata.normalize("NFKC", text).casefold()


def fold(text: str) -> str:
    """A key that texts share if a reader takes them for one: also without blanks, hyphens, quotes, leading zeros."""
    text = same_letters(text)
    if is_number(text):
        return str(int(float(text)))
    return re.sub(rf"[\s_\-{QUOTES}{INVISIBLE}{JOINERS}\ufe0e\ufe0f]+", "", text) or text


def is_background(name: str) -> bool:
    """Whether a name means label 0, which is no class: `Background`, `_background_` (Labelme's), `__background__`."""
    return fold(name) == "background"


def is_ignored(name: str) -> bool:
    """Whether a name means label 255, which is no class: `__ignore__` (Labelme's), `_ignore_`."""
    return re.fullmatch(r"_+ignored?_+", name.casefold()) is not None


def is_class(name: str) -> bool:
    """Whether a name means neither the background nor what is to be ignored."""
    return not is_background(name) and not is_ignored(name)


def is_missing(name: str) -> bool:
    """Whether a name is what programs write into a cell without a value (nan, None, null, N/A)."""
    return name.casefold() in MISSING


def is_number(name: str) -> bool:
    """Whether a name is a whole number."""
    return NUMBER.fullmatch(name) is not None


def in_order(names: Iterable[str]) -> list[str]:
    """Each name once: sorted by number if all are whole numbers, else as text."""
    found = sorted(set(names))
    if all(is_number(name) for name in found if is_class(name)):
        found.sort(key=lambda name: float(name) if is_number(name) else -1.0)
    return found


def in_brackets(cell: str) -> list[str] | None:
    """The names in a list as Python and JSON write it, `['cat', 'dog']`; None if the cell is no such list."""
    if len(cell) < 2 or BRACKETS.get(cell[0]) != cell[-1]:
        return None
    inside = cell[1:-1]
    quoted = re.findall(rf"[{QUOTES}]([^{QUOTES}]+)[{QUOTES}]", inside)
    return [name for part in quoted or re.split(r"[,;|\s]+", inside) if (name := clean(part))]


def joined(name: str, known: Collection[str], between: re.Pattern[str] = SEPARATORS) -> list[str]:
    """The names that `name` joins by a sign that is no `;`; empty unless there are two or more, all of them known."""
    parts = [part for text in between.split(name) if (part := clean(text))]
    return parts if len(parts) > 1 and all(part in known for part in parts) else []


def all_joined(names: Collection[str]) -> dict[str, list[str]]:
    """The names that join others (see `joined`), and which. A part is known if it is a name, or part of two lists."""
    parts = {name: {part for text in LIST_SIGNS.split(name) if (part := clean(text))} for name in names}
    shared = Counter(part for found in parts.values() if len(found) > 1 for part in found)
    known = {*names, *(part for part, count in shared.items() if count > 1)}
    signs = {name: BETWEEN_WORDS if _is_numbers(name) else SEPARATORS for name in names}
    return {name: found for name in names if (found := joined(name, known, signs[name]))}


def _is_numbers(name: str) -> bool:
    """Whether a name is numbers with blanks between them, which can be no single word."""
    return all(map(is_number, name.split()))


def system_part(parts: Sequence[str]) -> str:
    """The part of a path that a system has made, such as a NAS or a zip program, and no person; else empty."""
    for part in parts:
        small = part.casefold()
        if small in SYSTEM_FOLDERS or small in SYSTEM_FILES or small.startswith("._"):
            return part
    return ""


def label_of(name: str, classes: Sequence[str]) -> int | None:
    """The label of a class name: 1..C, 0 for the background; None if there is no such class.

    VOC's short names and long ones serve for each other (`plane`, `aeroplane`), as in files of scribbles.
    """
    exact, other = _labels(tuple(classes))
    label = exact.get(unicodedata.normalize("NFC", name))
    if label is None and (is_background(name) or fold(name) in ("bkg", "bg")):
        return 0
    return other.get(fold(name)) if label is None else label


@lru_cache(maxsize=4)
def _labels(classes: tuple[str, ...]) -> tuple[dict[str, int], dict[str, int]]:
    """Labels by the class name, and by the folded other names of VOC's classes, which mean one class each."""
    exact = {unicodedata.normalize("NFC", name): label for label, name in enumerate(classes, 1)}
    other: dict[str, int] = {}
    for group in VOC_NAMES:
        labels = [label for name, label in exact.items() if fold(name) in group]
        if len(labels) == 1:
            other.update(dict.fromkeys(group, labels[0]))
    return exact, other
