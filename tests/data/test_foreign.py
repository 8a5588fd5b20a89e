from pathlib import Path

import pytest

from cam_pipeline.data.foreign import remedy
from cam_pipeline.data.images import read_image
from cam_pipeline.errors import DataError

FTYP = b"\0\0\0\x20ftyp"


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("a.heic", FTYP + b"heic", r"it is HEIC; convert it to JPEG or PNG \(magick a.heic a.jpg\)$"),
        ("a.jpg", FTYP + b"mif1", r"it is HEIC; convert it to JPEG or PNG \(magick a.jpg a.png\)$"),
        ("a.avif", FTYP + b"avif", r"it is AVIF; convert it to JPEG or PNG \(magick a.avif a.jpg\)$"),
        ("a.HEIF", b"nonsense", r"it is HEIF; convert it"),
        ("a.psd", b"8BPS\0\1", r"it is a Photoshop file; convert it"),
        ("a.svg", b"<svg xmlns=", r"it is an SVG drawing; convert it"),
        ("a.jpg", b"<!DOCTYPE html><html>", r"it is a web page; fetch the image itself"),
        ("a.jpg", b"version https://git-lfs.github.com/spec/v1", r"it is a pointer of git-lfs .*; fetch the image"),
        ("a.jpg", b"nonsense", r"replace it, or take it out of the data set$"),
        ("a.jpg", b"", r"replace it, or take it out of the data set$"),
    ],
)
def test_images_of_other_kinds_say_what_to_do(tmp_path: Path, name: str, content: bytes, said: str) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(DataError, match=rf"{name} cannot be read as an image \(.*\); .*{said}"):
        read_image(path)


def test_nothing_is_known_of_what_is_not_there(tmp_path: Path) -> None:
    assert remedy(tmp_path / "a.jpg") == ""
