"""Thousands of damaged inputs: either what they say is right, or one line says that they are no good.

Never another exception, never a hang, never a crash of the C libraries below, and no file is changed by being read.
"""

import base64
import csv
import faulthandler
import io
import json
import multiprocessing
import os
import random
import signal
import traceback
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from torch import nn

from cam_pipeline.config import Config, DataSettings, load_config, to_toml
from cam_pipeline.data.images import image_size, read_image
from cam_pipeline.data.marks import sample_marks
from cam_pipeline.data.masks import read_mask
from cam_pipeline.data.readers import load_table
from cam_pipeline.data.table import Table
from cam_pipeline.errors import ConfigError, DataError, UserError
from cam_pipeline.store.cams import CamStore, StoredCam, cam_record
from cam_pipeline.store.checkpoints import load_checkpoint, load_model, save_checkpoint, save_model
from cam_pipeline.store.hdf5 import Record, artefact_attributes, text_attribute
from cam_pipeline.store.labels import LabelStore, label_record
from cam_pipeline.store.parts import PartWriter
from cam_pipeline.store.scores import ScoreStore, StoredScores, score_record

many = settings(suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow], print_blob=True)

# Damage to bytes

OPERATIONS = ("flip", "overwrite", "insert", "delete", "truncate", "copy")
Damage = Sequence[tuple[str, int, int, bytes]]

damages = st.lists(
    st.tuples(
        st.sampled_from(OPERATIONS), st.integers(0, 10**6), st.integers(0, 10**6), st.binary(min_size=1, max_size=9)
    ),
    min_size=1,
    max_size=4,
)


def damaged(content: bytes, damage: Damage) -> bytes:
    """`content` after the operations; a place beyond its end counts from its beginning again."""
    changed = bytearray(content)
    for operation, place, other, some in damage:
        start, source, count = place % (len(changed) + 1), other % (len(changed) + 1), 1 + other % 64
        if operation == "flip" and changed:
            changed[place % len(changed)] ^= 1 << other % 8
        elif operation == "overwrite":
            changed[start : start + len(some)] = some
        elif operation == "insert":
            changed[start:start] = some
        elif operation == "delete":
            del changed[start : start + count]
        elif operation == "truncate":
            del changed[start:]
        elif operation == "copy":
            changed[start : start + count] = changed[source : source + count]
    return bytes(changed)


# Stored results. They are read in a process of its own: what crashes or hangs there fails its case, not the test run.

CLASSES = ("cat", "dog", "猫")
NAMES = ("x/1", "x/2", "nothing")


def read_cams(path: Path) -> Any:
    with CamStore.open(path) as store:
        read = [store.read(name) for name in store.names]
        found = [(one.name, one.class_ids, one.size, one.cam.shape, one.cam.numpy().tobytes()) for one in read]
        return found, store.classes, text_attribute(store.file, "config"), text_attribute(store.file, "fingerprint")


def read_scores(path: Path) -> Any:
    with ScoreStore.open(path) as store:
        read = [store.read(name) for name in store.names]
        return [(one.name, one.class_ids, one.scores.shape, one.scores.tobytes()) for one in read], store.classes


def read_labels(path: Path) -> Any:
    with LabelStore.open(path) as store:
        arrays = [(store.read(name), store.confidence(name)) for name in store.names]
        return [(a.shape, a.dtype.str, a.tobytes(), b.tobytes()) for a, b in arrays], store.names, store.classes


def read_model(path: Path) -> Any:
    stored = load_model(path)
    tensors = {key: (str(value.dtype), value.shape, value.numpy().tobytes()) for key, value in stored.state.items()}
    return tensors, stored.metadata


def read_checkpoint(path: Path) -> Any:
    state = load_checkpoint(path)
    if state is None:
        raise UserError("ignored, with a warning")
    return {key: value.tolist() if isinstance(value, torch.Tensor) else value for key, value in state.items()}


READERS: Mapping[str, Callable[[Path], Any]] = {
    "cams": read_cams,
    "scores": read_scores,
    "labels": read_labels,
    "model": read_model,
    "checkpoint": read_checkpoint,
}


def written(folder: Path) -> dict[str, bytes]:
    """A small file of every kind."""
    rng = np.random.default_rng(0)
    cams = [cam_record(StoredCam(name, torch.rand(2, 3, 4), (1, 3), (5, 7))) for name in NAMES[:2]]
    cams.append(cam_record(StoredCam(NAMES[2], torch.zeros(0, 3, 4), (), (5, 7))))
    scores = [score_record(StoredScores(name, rng.random((3, 5, 7), np.float32), (1, 3))) for name in NAMES]
    labels = [label_record(name, *rng.integers(0, len(CLASSES), (2, 5, 7)).astype(np.uint8)) for name in NAMES]
    kinds: dict[str, tuple[str, list[Record]]] = {
        "cams": ("cams", cams), "scores": ("scores", scores), "labels": ("pseudo-labels", labels),
    }  # fmt: skip
    for name, (kind, records) in kinds.items():
        (folder / f"{name}-parts").mkdir()
        output = folder / f"{name}-parts" / name
        writer = PartWriter(output, kind, artefact_attributes(CLASSES, "print", "[run]\nseed = 1\n"), [NAMES])
        writer.write(0, records)
        writer.join(NAMES)
        output.rename(folder / name)
    save_model(folder / "model", nn.Linear(5, 7), {"classes": CLASSES, "fingerprint": "print"})
    save_checkpoint(folder / "checkpoint", {"step": 7, "weights": torch.rand(6), "history": "[]"})
    return {name: (folder / name).read_bytes() for name in READERS}


def judge(path: Path, expected: Mapping[str, Any], cases: Connection) -> None:
    """Answer each (kind, bytes) with how reading them went."""
    faulthandler.disable()  # the parent says what happened
    while True:
        kind, content = cases.recv()
        path.write_bytes(content)
        try:
            verdict = "as it was written" if READERS[kind](path) == expected[kind] else "something else was read"
        except UserError as error:
            verdict = "refused" if "\n" not in str(error) else f"more than one line: {error}"
        except BaseException:
            verdict = traceback.format_exc()
        cases.send(verdict if path.read_bytes() == content else "the file was changed")


@dataclass
class Judge:
    """A forked process that reads damaged files, and is replaced when one of them is its end."""

    folder: Path
    whole: Mapping[str, bytes]
    expected: Mapping[str, Any]
    patience: float = 20
    process: Any = None
    cases: Connection | None = None

    def __call__(self, kind: str, content: bytes) -> str:
        if self.cases is None:
            self.cases, theirs = multiprocessing.Pipe()
            arguments = (self.folder / "damaged", self.expected, theirs)
            self.process = multiprocessing.get_context("fork").Process(target=judge, args=arguments, daemon=True)
            self.process.start()
            theirs.close()
        self.cases.send((kind, content))
        if not self.cases.poll(self.patience):
            return self._replaced("hangs")
        try:
            return str(self.cases.recv())
        except (EOFError, ConnectionError):
            return self._replaced("crashes")

    def _replaced(self, reason: str) -> str:
        self.close()
        return reason

    def close(self) -> None:
        if self.cases is not None:
            self.process.kill()
            self.process.join()
            self.cases.close()
            self.cases = None


@pytest.fixture(scope="module")
def judged(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Judge]:
    folder = tmp_path_factory.mktemp("fuzz")
    whole = written(folder)
    asked = Judge(folder, whole, {kind: read(folder / kind) for kind, read in READERS.items()})
    yield asked
    asked.close()


def test_files_that_are_whole_are_read(judged: Judge) -> None:
    assert {kind: judged(kind, content) for kind, content in judged.whole.items()} == dict.fromkeys(
        READERS, "as it was written"
    )


@pytest.mark.parametrize("end", ["crashes", "hangs", "something else was read", "the file was changed"])
def test_judge_sees_the_worst(judged: Judge, monkeypatch: pytest.MonkeyPatch, end: str) -> None:
    """Else the tests below would prove nothing."""

    def worst(path: Path) -> Any:
        if end == "crashes":
            os.kill(os.getpid(), signal.SIGSEGV)
        if end == "hangs":
            signal.pause()
        path.write_bytes(b"" if end == "the file was changed" else path.read_bytes())
        return None

    monkeypatch.setitem(READERS, "model", worst)  # type: ignore[misc]
    other = Judge(judged.folder, judged.whole, judged.expected, patience=1)
    assert other("model", b"content") == end
    other.close()


@pytest.mark.parametrize("kind", ["cams", "scores", "labels"])
@given(damage=damages)
@settings(many, max_examples=300)
def test_damaged_results_are_refused_or_whole(judged: Judge, kind: str, damage: Damage) -> None:
    assert judged(kind, damaged(judged.whole[kind], damage)) in ("refused", "as it was written")


@given(damage=damages)
@settings(many, max_examples=150)
def test_damaged_model_is_refused_or_whole(judged: Judge, damage: Damage) -> None:
    assert judged("model", damaged(judged.whole["model"], damage)) in ("refused", "as it was written")


@given(damage=damages)
@settings(many, max_examples=150)
def test_damaged_checkpoint_is_ignored_or_whole(judged: Judge, damage: Damage) -> None:
    assert judged("checkpoint", damaged(judged.whole["checkpoint"], damage)) in ("refused", "as it was written")


@given(kind=st.sampled_from(list(READERS)), content=st.binary(max_size=300), kept=st.integers(0, 200))
@settings(many, max_examples=100)
def test_any_bytes_are_refused(judged: Judge, kind: str, content: bytes, kept: int) -> None:
    assert judged(kind, judged.whole[kind][:kept] + content) == "refused"


# Tables

ROWS = [
    ["image", "labels", "mask", "split"],
    ["images/a.jpg", "cat;dog", "masks/a.png", "train"],
    ["images/b.jpg", "", "", "val"],
    ["images/c d.jpg", "dog", "masks/c d.png", "train"],
    ["images/猫.jpg", "?", "", "train"],
]
CELLS = [
    "", " ", "?", ";", "cat;?", "cat;;dog", "CAT", "猫", "zebra", "background", "..", "../x.jpg", "/etc/passwd", ".",
    "/", "a/../b.jpg", "images/a.jpg", "images/a.png", "a\0b", "\x1b[31m", "\ufeff", '"', "'", "a,b", "a\nb", "\r",
    "\u2028", "\x85", "x" * 300, "x" * 70_000, "x" * 200_000, "x/" * 3000, "=1+1", "-", "~", "*", "%2F", "...", ". .",
]  # fmt: skip
Edits = Sequence[tuple[int, int, str, str]]

edits = st.lists(
    st.tuples(
        st.integers(0, len(ROWS)),
        st.integers(0, 4),
        st.sampled_from(["replace", "append", "drop", "repeat the row", "swap with the header"]),
        st.sampled_from(CELLS) | st.text(max_size=12),
    ),
    max_size=4,
)


def edited(changes: Edits) -> list[list[str]]:
    rows = [list(row) for row in ROWS]
    for row_number, column, operation, cell in changes:
        row = rows[row_number % len(rows)]
        if operation == "repeat the row":
            rows.append(list(row))
        elif operation == "append" or not row:
            row.append(cell)
        elif operation == "drop":
            row.pop(column % len(row))
        elif operation == "replace":
            row[column % len(row)] = cell
        else:
            rows[0], rows[row_number % len(rows)] = row, rows[0]
    return rows


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("table")


def load(root: Path, content: bytes, **more: Any) -> Table | None:
    """The table; None when it is refused in one line."""
    (root / "data.csv").write_bytes(content)
    try:
        table = load_table(DataSettings(root=root, **more))
    except DataError as error:
        assert str(error)
        return None
    finally:
        assert (root / "data.csv").read_bytes() == content
        assert os.listdir(root) == ["data.csv"]
    assert len({sample.id for sample in table.samples}) == len(table.samples)
    for sample in table.samples:
        assert sample.image.resolve().is_relative_to(root.resolve())
        assert set(sample.class_ids or ()) <= set(range(1, 1 + len(table.classes)))
    return table


def test_the_table_as_it_is(root: Path) -> None:
    table = load(root, "\n".join(",".join(row) for row in ROWS).encode())
    assert table is not None
    assert [sample.class_ids for sample in table.samples] == [(1, 2), (), (2,), None]


@given(
    changes=edits,
    separator=st.sampled_from([",", ",", ",", ";", "\t", "|"]),
    line_end=st.sampled_from(["\n", "\r\n", "\r", "\n\n", " \n"]),
    quoting=st.sampled_from([csv.QUOTE_MINIMAL, csv.QUOTE_ALL, None]),
    start=st.sampled_from([b"", b"\xef\xbb\xbf", b"\xff\xfe", b"\n", b"\0"]),
    encoding=st.sampled_from(["utf-8", "utf-8", "utf-16", "latin-1"]),
    damage=st.just([]) | damages,
    classes=st.sampled_from([(), ("cat", "dog"), ("cat",)]),
)
@settings(many, max_examples=400)
def test_edited_table_is_read_or_refused(
    root: Path,
    changes: Edits,
    separator: str,
    line_end: str,
    quoting: Literal[0, 1] | None,
    start: bytes,
    encoding: str,
    damage: Damage,
    classes: tuple[str, ...],
) -> None:
    rows = edited(changes)
    text = io.StringIO(line_end.join(separator.join(row) for row in rows) if quoting is None else "", newline="")
    if quoting is not None:
        csv.writer(text, delimiter=separator, lineterminator=line_end, quoting=quoting).writerows(rows)
    content = start + text.getvalue().encode(encoding, errors="replace")
    load(root, damaged(content, damage) if damage else content, classes=classes)


@given(content=st.binary(max_size=200), header=st.sampled_from([b"", b"image,labels\n", b"labels,image,split\r\n"]))
@settings(many, max_examples=200)
def test_any_bytes_are_a_table_or_refused(root: Path, content: bytes, header: bytes) -> None:
    load(root, header + content)


# Clicks and scribbles


def mark_files() -> dict[str, bytes]:
    """Files of every kind, of the image `a.png` of 30 x 20 pixels."""
    point = {"label": "cat", "shape_type": "point", "points": [[1, 2]]}
    polygon = {"label": "dog", "shape_type": "polygon", "points": [[1, 2], [5, 5], [1, 9]]}
    png, archive = io.BytesIO(), io.BytesIO()
    Image.fromarray(np.where(np.eye(20, 30, dtype=np.uint8), 1, 255).astype(np.uint8)).save(png, "PNG")
    mask = {"label": "dog", "shape_type": "mask", "points": [[1, 2], [5, 5]]}
    mask["mask"] = base64.b64encode(png.getvalue()).decode()
    stroke = "<polygon><tag>cat</tag><point><X>1</X><Y>2</Y></point><point><X>11</X><Y>2</Y></point></polygon>"
    xml = f"<annotation><size><width>30</width><height>20</height></size>{stroke}</annotation>"
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("s.xml", xml)
    return {
        "c.csv": b"image,x,y,class\na,1,2,cat\na.png,3.5,4,2\na,0,0,background\n",
        "c.json": json.dumps({"a": [[1, 2, "cat"], [3, 4, 2]], "a.png": [{"x": 1, "y": 2, "class": 0}]}).encode(),
        "s.xml": xml.encode(),
        "s.png": png.getvalue(),
        "s.json": json.dumps({"shapes": [point, polygon, mask], "imageHeight": 20, "imageWidth": 30}).encode(),
        "s.zip": archive.getvalue(),
    }


MARKS = mark_files()


@pytest.fixture(scope="module")
def marked(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("marks")
    Image.new("RGB", (30, 20)).save(folder / "a.png")
    (folder / "classes.txt").write_text("cat\ndog\n")
    return folder


def read_marks(folder: Path, name: str, content: bytes) -> bool:
    """Whether the marks in a file are read; else one line says why not."""
    cell = "s.zip/s.xml" if name == "s.zip" else name
    (folder / name).write_bytes(content)
    (folder / "data.csv").write_text(f"image,labels,{'clicks' if name[0] == 'c' else 'scribble'}\na.png,?,{cell}\n")
    try:
        (sample,) = load_table(DataSettings(root=folder)).samples
        marks = sample_marks(sample, 2)
    except DataError as error:
        assert "\n" not in str(error) and name in str(error)
        return False
    assert marks.labels.shape == marks.origin.shape == (20, 30)
    assert {*np.unique(marks.labels)} <= {0, 1, 2, 255} and marks.origin.max() <= 3
    assert np.array_equal(marks.labels == 255, marks.origin == 0)
    return True


@pytest.mark.parametrize("name", MARKS)
@given(damage=damages)
@settings(many, max_examples=100)
def test_damaged_marks_are_read_or_refused(marked: Path, name: str, damage: Damage) -> None:
    assert read_marks(marked, name, MARKS[name])
    read_marks(marked, name, damaged(MARKS[name], damage))


@pytest.mark.parametrize("value", ["\0", "x" * 5000, "..", "/", "a.png", "\ud800", "a.png/b", " "])
@pytest.mark.parametrize("key", ["clicks", "scribbles"])
def test_any_name_of_marks_is_read_or_refused(marked: Path, key: str, value: str) -> None:
    (marked / "data.csv").write_text("image,labels\na.png,cat\n")
    with suppress(DataError):
        load_table(DataSettings(root=marked, **{key: value}))


# Configurations

LINES = to_toml(Config()).splitlines()
KEYS = [f"{section}.{key}" for section, values in Config().model_dump().items() for key in values]
KEYS += ["classifier.backbone_args.a.b", "run", "nonsense.x", "run.seed.x", ".", "", "data.", ".root"]
VALUES = [
    "1", "0", "-1", "1.5", "true", "'x'", '""', "[]", "[1]", "[1, 2]", "[0.5, 'a']", "[[1]]", "{}", "{a = 1}",
    "{a.b = [1]}", "inf", "-inf", "nan", "1e400", "1e-400", "-0.0", "9" * 30, "9" * 5000, "0x" + "f" * 40,
    "0x" + "f" * 5000, "0o7", "1_000", "2020-01-01", "2020-01-01T00:00:00Z", "07:32:00", "'猫'", '"\\u0000"',
    '"\\ud800"', '"""a\nb"""', "'a\tb'", "'{data.root}'", "[" * 30 + "]" * 30, "[" * 3000, "{a=" * 30 + "1" + "}" * 30,
    "cuda:0", "auto", "'csv'", "8", "[0.485, 0.456, 0.406]", "", "[true]", "=", "#", "a = 1", '"', "\\", "4294967295",
    "1e308", "'" + "x" * 5000 + "'", "'../..'", "'/'", "'\x7f'", "\ufeff", "{'\\n' = '\\r'}", "[1.0, 'a', true, {}]",
]  # fmt: skip
LineEdits = Sequence[tuple[int, str, str]]

toml_values = st.sampled_from(VALUES) | st.text(max_size=8) | st.integers().map(str) | st.floats().map(repr)
line_edits = st.lists(
    st.tuples(
        st.integers(0, len(LINES) - 1),
        st.sampled_from(["value", "value", "value", "key", "insert", "repeat", "drop", "cut", "join"]),
        toml_values,
    ),
    max_size=4,
)
overrides = st.lists(
    st.builds("{}={}".format, st.sampled_from(KEYS), toml_values) | st.text(max_size=20), min_size=1, max_size=3
)


def changed_lines(changes: LineEdits) -> str:
    lines = list(LINES)
    for place, operation, text in changes:
        number = place % len(lines)
        key, equals, value = lines[number].partition(" = ")
        replaced = {
            "value": [f"{key}{equals}{text}"],
            "key": [f"{text}{equals}{value}"],
            "insert": [lines[number], text],
            "repeat": [lines[number]] * 2,
            "drop": [],
            "cut": [lines[number][: len(text)]],
            "join": [lines[number] + text + lines[(number + 1) % len(lines)]],
        }[operation]
        lines[number : number + 1] = replaced or [""]
    return "\n".join(lines)


@pytest.fixture(scope="module")
def config_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("config") / "fuzz.toml"


def loads(path: Path, content: bytes, settings_given: Sequence[str] = ()) -> bool:
    """Whether it is a config; one comes back equal from what is written of it."""
    path.write_bytes(content)
    try:
        config = load_config(path, settings_given)
    except ConfigError as error:
        assert len(str(error)) < 2000
        return False
    finally:
        assert path.read_bytes() == content
    again = path.with_name("again.toml")
    again.write_text(to_toml(config), encoding="utf-8")
    assert load_config(again) == config
    return True


@given(changes=line_edits, damage=st.just([]) | damages)
@settings(many, max_examples=300)
def test_edited_config_is_read_or_refused(config_file: Path, changes: LineEdits, damage: Damage) -> None:
    content = changed_lines(changes).encode(errors="replace")
    loads(config_file, damaged(content, damage) if damage else content)


@given(settings_given=overrides)
@settings(many, max_examples=500)
def test_any_override_is_taken_or_refused(config_file: Path, settings_given: Sequence[str]) -> None:
    loads(config_file, b"[train_cls]\nepochs = 7\n", settings_given)


@given(content=st.binary(max_size=60) | st.text("[]{}=.\"'#\n abc01-:", max_size=60).map(str.encode))
@settings(many, max_examples=150)
def test_any_bytes_are_a_config_or_refused(config_file: Path, content: bytes) -> None:
    loads(config_file, content)


def test_both_outcomes_are_met(config_file: Path) -> None:
    assert loads(config_file, "\n".join(LINES).encode())
    assert not loads(config_file, changed_lines([(LINES.index("[refine]") + 1, "value", "nan")]).encode())


# Images


def image_files() -> dict[str, bytes]:
    """A small image in every mode of every format; upright and not."""
    pixels = np.random.default_rng(0).integers(0, 255, (9, 12, 3), dtype=np.uint8)
    lying = Image.Exif()
    lying[0x0112] = 6
    found = {}
    for kind in ("PNG", "JPEG", "TIFF", "BMP", "GIF", "WEBP", "PPM", "JPEG2000"):
        for mode in ("RGB", "P", "L", "1", "CMYK", "RGBA"):
            content = io.BytesIO()
            exif = {"exif": lying} if kind in ("PNG", "JPEG", "TIFF", "WEBP") else {}
            try:
                Image.fromarray(pixels).convert(mode).save(content, kind, **exif)
            except (OSError, ValueError, KeyError):  # this format has no such mode
                continue
            found[f"{kind} {mode}"] = content.getvalue()
    assert len(found) > 20
    return found


IMAGES = image_files()


@pytest.mark.filterwarnings("ignore:.*:UserWarning:PIL")  # pytest resets what the module itself says of them
@given(kind=st.sampled_from(list(IMAGES)), damage=damages)
@settings(many, max_examples=250)
def test_damaged_image_is_read_or_refused(root: Path, kind: str, damage: Damage) -> None:
    path = root.with_name("image")
    path.write_bytes(damaged(IMAGES[kind], damage))
    size = None
    try:
        size = image_size(path)
        image = read_image(path, max_pixels=10**6)
        assert (image.shape, image.dtype) == ((*size, 3), np.uint8)
    except DataError as error:
        assert str(error).startswith(f"{path}")
    try:
        assert read_mask(path, 254, max_pixels=10**6).dtype == np.uint8
    except DataError as error:
        assert str(error).startswith(f"{path}")


# Whole commands


def few_damages(seed: int, content: bytes) -> bytes:
    """One to three operations, the same for the same seed."""
    rng = random.Random(seed)
    operations = [
        (rng.choice(OPERATIONS), rng.randrange(len(content)), rng.randrange(10**6), rng.randbytes(rng.randrange(1, 9)))
        for _ in range(rng.randrange(1, 4))
    ]
    return damaged(content, operations)


def ends_well(commands: Any, folder: Path, *arguments: str) -> None:
    """The command does its work, or says in one line why not; results are as they were, or made anew as a whole."""
    before = {path: path.read_bytes() for path in (folder / "run").glob("*.[hs]*5*")}
    ended = commands.run(*arguments, "-c", "tiny.toml", "--quiet", folder=folder)
    assert ended.code in (0, 2), ended.stderr
    assert "Traceback" not in ended.stderr
    if ended.code == 2:
        assert ended.stderr.splitlines()[-1].startswith("Error: ")
        assert {path: path.read_bytes() for path in before} == before


@pytest.mark.parametrize("seed", range(6))
def test_commands_over_a_damaged_table(commands: Any, finished: Path, seed: int) -> None:
    table = finished / "data" / "data.csv"
    table.write_bytes(few_damages(seed, table.read_bytes()))
    ends_well(commands, finished, "status" if seed % 2 else "make-cams")


@pytest.mark.parametrize("seed", range(6))
def test_commands_over_a_damaged_config(commands: Any, finished: Path, seed: int) -> None:
    config = finished / "tiny.toml"
    config.write_bytes(few_damages(seed, config.read_bytes()))
    ends_well(commands, finished, "status" if seed % 2 else "make-cams")


RESULTS = {
    "cams.h5": ("make-cams", "--set", "refine.background=0.7"),
    "scores.h5": ("make-cams", "--set", "labels.high=0.9"),
    "pseudo_labels.h5": ("evaluate", "--force"),
    "classifier.safetensors": ("make-cams", "--set", "cam.flip=false"),
}


@pytest.mark.parametrize("name", RESULTS)
@pytest.mark.parametrize("seed", range(3))
def test_commands_over_a_damaged_result(commands: Any, finished: Path, name: str, seed: int) -> None:
    path = finished / "run" / name
    path.write_bytes(few_damages(seed, path.read_bytes()))
    manifest = path.with_name(f"{name}.manifest.json")
    manifest.write_text(json.dumps(json.loads(manifest.read_text()) | {"bytes": path.stat().st_size}))
    ends_well(commands, finished, *RESULTS[name])


@pytest.mark.parametrize("text", ["null", "[1]", "{}", '{"a": 1}', "[" * 5000, "\xff"])
def test_commands_over_other_notes(commands: Any, finished: Path, text: str) -> None:
    """Manifests, remembered digests and reports are conveniences: damaged, they count as not there."""
    for path in (finished / "run").glob("*.json"):
        path.write_text(text, encoding="latin-1")
    ends_well(commands, finished, "status")
    manifests = {path.name for path in (finished / "run").glob("*.manifest.json")}
    assert len(manifests) == 5
    ends_well(commands, finished, "evaluate")


@pytest.mark.parametrize("text", ["", "null", "{}", '{"done": 1}', '{"run_id": []}'])
def test_commands_over_other_notes_of_work_in_progress(commands: Any, workspace: Path, text: str) -> None:
    moment = {"function": "cam_pipeline.training.trainer.save_checkpoint", "call": 3, "send": "SIGKILL"}
    commands.run("train-cls", "-c", "tiny.toml", folder=workspace, signal_at=moment)
    (folder,) = (workspace / "run" / "partial").iterdir()
    for name in ("progress.json", "run.json"):
        (folder / name).write_text(text)
    ends_well(commands, workspace, "status")
    ends_well(commands, workspace, "train-cls")
    assert (workspace / "run" / "classifier.safetensors").is_file()
