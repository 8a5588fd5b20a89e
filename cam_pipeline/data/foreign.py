"""Kinds of image files that are not read, and how to convert them."""

from pathlib import Path

HEIF = {b"heic", b"heix", b"hevc", b"hevx", b"heim", b"heis", b"mif1", b"msf1", b"avif", b"avis"}
"""What stands at bytes 8 to 12 of files of phones and browsers, whatever their ending."""
STARTS = {
    b"%PDF": "a PDF",
    b"8BPS": "a Photoshop file",
    b"<svg": "an SVG drawing",
    b"%!PS": "a PostScript file",
    b"version https://git-lfs": "a pointer of git-lfs (run: git lfs pull)",
    b"<!DOCTYPE html": "a web page",
    b"<html": "a web page",
}
ENDINGS = {
    ".heic": "HEIC", ".heif": "HEIF", ".avif": "AVIF", ".cr2": "raw data of a camera", ".cr3": "raw data of a camera",
    ".nef": "raw data of a camera", ".arw": "raw data of a camera", ".dng": "raw data of a camera",
    ".psd": "a Photoshop file", ".svg": "an SVG drawing", ".pdf": "a PDF", ".dcm": "DICOM", ".ico": "an icon",
    ".jxl": "JPEG XL", ".tga": "TGA",
}  # fmt: skip


def foreign_kind(path: Path) -> str:
    """The kind of a file that is no image of a kind that is read, by its content or else its ending; "" if unknown."""
    try:
        with path.open("rb") as file:
            start = file.read(32)
    except OSError:
        start = b""
    if start[4:8] == b"ftyp" and start[8:12] in HEIF:
        return "AVIF" if start[8:12] in (b"avif", b"avis") else "HEIC"
    by_content = next((kind for mark, kind in STARTS.items() if start.startswith(mark)), "")
    return by_content or ENDINGS.get(path.suffix.casefold(), "")


def remedy(path: Path) -> str:
    """What to do with a file of a kind that is not read: convert it; empty if nothing is known about it."""
    kind = foreign_kind(path)
    if not kind or "git-lfs" in kind or "web page" in kind:
        return f"it is {kind}; fetch the image itself" if kind else ""
    ending = ".png" if path.suffix.casefold() in (".jpg", ".jpeg") else ".jpg"
    return f"it is {kind}; convert it to JPEG or PNG (magick {path.name} {path.stem}{ending})"
