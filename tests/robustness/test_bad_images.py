"""Image files of every kind in a whole run: what can be handled is, the rest is named in one line."""

import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from cam_pipeline.data.images import read_image
from cam_pipeline.store.labels import LabelStore

VICTIM = "data/images/train_00003.jpg"


def bomb(path: Path) -> None:
    """A few bytes that claim to be 60000 x 60000 pixels."""
    header = struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0)
    parts = [(b"IHDR", header), (b"IDAT", zlib.compress(bytes(999))), (b"IEND", b"")]
    chunks = (
        struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))
        for kind, content in parts
    )
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(chunks))


def of_floats(path: Path) -> None:
    Image.fromarray(np.zeros((48, 64), np.float32)).save(path, "TIFF")


REFUSED: dict[str, tuple[Callable[[Path], object], str]] = {
    "empty": (lambda path: path.write_bytes(b""), f"{VICTIM} cannot be read as an image (cannot identify image file"),
    "text": (lambda path: path.write_text("404 not found"), f"{VICTIM} cannot be read as an image (cannot identify"),
    "half": (
        lambda path: path.write_bytes(path.read_bytes()[: path.stat().st_size // 2]),
        f"{VICTIM} cannot be read as an image (image file is truncated",
    ),
    "bomb": (bomb, f"{VICTIM}: 60000 x 60000 pixels are more than data.max_pixels (100000000); raise that if the file"),
    "floats": (of_floats, f"{VICTIM}: pixel values of unknown range (mode F); convert it to 8 bits per channel"),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_file_that_can_not_be_decoded(mistake: Callable[..., str], finished: Path, kind: str) -> None:
    spoil, line = REFUSED[kind]
    spoil(finished / VICTIM)
    assert mistake("train-cls").startswith(line)
    assert mistake("run", "--workers", "2").startswith(line)


COMMANDS = {
    "training": ("train-cls", "--set", "train_cls.epochs=1"),
    "maps": ("make-cams", "--set", "cam.flip=false"),
    "the CRF in worker processes": ("make-cams", "--set", "refine.background=0.7", "--workers", "2"),
    "the segmenter": ("train-seg", "--set", "train_seg.epochs=1"),
    "masks": ("train-seg", "--set", "train_seg.supervision=masks"),
    "evaluation": ("evaluate", "--force"),
}


@pytest.mark.parametrize("command", COMMANDS)
def test_the_limit_holds_wherever_an_image_is_opened(mistake: Callable[..., str], command: str) -> None:
    line = mistake(*COMMANDS[command], "--set", "data.max_pixels=100")
    assert line.startswith(("data/images/", "data/masks/"))
    assert "pixels are more than data.max_pixels (100); raise that if the file is no mistake" in line


@pytest.mark.parametrize("command", [("train-seg", "--set", "train_seg.supervision=masks"), ("evaluate", "--force")])
def test_mask_of_another_size(mistake: Callable[..., str], finished: Path, command: tuple[str, ...]) -> None:
    for name in ("train_00003", "val_00003"):
        mask = finished / "data" / "masks" / f"{name}.png"
        with Image.open(mask) as whole:
            whole.crop((0, 0, whole.width - 1, whole.height)).save(mask)
    line = mistake(*command)
    assert line.startswith("data/masks/")
    assert "_00003.png: the mask is (" in line
    assert "(height, width)" in line


def lying(pixels: np.ndarray[Any, Any], path: Path) -> None:
    """Turned a quarter to the left, with the EXIF tag that says so."""
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(np.rot90(pixels)).save(path, "PNG", exif=exif)


KINDS: dict[str, Callable[[np.ndarray[Any, Any], Path], None]] = {
    "turned by EXIF": lying,
    "grey": lambda pixels, path: Image.fromarray(pixels[..., 0]).save(path, "PNG"),
    "grey of 16 bits": lambda pixels, path: Image.fromarray(pixels[..., 0].astype(np.uint16) * 256).save(path, "PNG"),
    "TIFF of 16 bits": lambda pixels, path: Image.fromarray(pixels[..., 0].astype(np.uint16) * 257).save(path, "TIFF"),
    "one bit": lambda pixels, path: Image.fromarray(pixels[..., 0] > 127).save(path, "PNG"),
    "palette": lambda pixels, path: Image.fromarray(pixels).quantize(64).save(path, "PNG", transparency=bytes(64)),
    "alpha": lambda pixels, path: Image.fromarray(np.dstack([pixels, pixels[..., 0]])).save(path, "PNG"),
    "grey and alpha": lambda pixels, path: Image.fromarray(pixels[..., :2], "LA").save(path, "PNG"),
    "CMYK": lambda pixels, path: Image.fromarray(pixels).convert("CMYK").save(path, "JPEG"),
}


def test_images_of_every_kind_go_through_all_stages(commands: Any, workspace: Path) -> None:
    names = [f"images/train_{number:05d}" for number in range(len(KINDS))]
    sizes = {}
    for name, (kind, save) in zip(names, KINDS.items(), strict=True):
        path = workspace / "data" / f"{name}.jpg"  # Pillow goes by the content
        pixels = read_image(path)
        save(pixels, path)
        assert read_image(path).shape == pixels.shape, kind
        sizes[name] = pixels.shape[:2]
    assert np.array_equal(Image.open(workspace / "data" / f"{names[0]}.jpg").size, sizes[names[0]])
    ended = commands.run("run", "-c", "tiny.toml", "--quiet", folder=workspace)
    assert ended.code == 0, ended.stderr
    about_learning = ("make_labels: ", "train_seg: ", "train_cls: the loss has hardly fallen")  # little, in a tiny run
    assert all(line.startswith(about_learning) for line in ended.stderr.splitlines())
    with LabelStore.open(workspace / "run" / "pseudo_labels.h5") as store:
        assert {name: store.read(name).shape for name in names} == sizes


@pytest.mark.parametrize("huge", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_images_of_any_size_go_through_all_stages(commands: Any, workspace: Path, huge: bool) -> None:
    """One pixel, a strip, a constant image, and one of 24 million pixels, which is said to be refined at fewer."""
    sizes = {"one": (1, 1), "strip": (3, 1000), "wall": (48, 64), **({"huge": (4000, 6000)} if huge else {})}
    names = [f"images/train_{number:05d}" for number in range(len(sizes))]
    for name, size in zip(names, sizes.values(), strict=True):
        noise = np.random.default_rng(0).integers(0, 255, (*(-(-side // 50) for side in size), 3), np.uint8)
        pixels = noise.repeat(50, 0).repeat(50, 1)[: size[0], : size[1]]
        Image.fromarray(np.full_like(pixels, 90) if size == sizes["wall"] else pixels).save(
            workspace / "data" / f"{name}.jpg"
        )
    settings = [
        "cam.propagate=features",
        "cam.walk_levels=2",
        "cam.border=0.1",
        "refine.kernel=varm",
        "refine.background=auto",
    ]
    chosen = [part for setting in settings for part in ("--set", setting)]
    ended = commands.run("run", "-c", "tiny.toml", "--quiet", *chosen, folder=workspace)
    assert ended.code == 0, ended.stderr
    assert ("1 images, the first images/train_00003, have more than" in ended.stderr) == huge
    with LabelStore.open(workspace / "run" / "pseudo_labels.h5") as store:
        assert {name: store.read(name).shape for name in names} == dict(zip(names, sizes.values(), strict=True))
