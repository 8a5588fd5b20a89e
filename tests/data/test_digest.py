import hashlib
import os
from dataclasses import replace

import pytest

from cam_pipeline.data import digest as digest_module
from cam_pipeline.data.digest import FileDigests, data_digest
from cam_pipeline.data.strokes import Click, ScribbleXml, Stroke, Strokes
from cam_pipeline.data.table import Sample
from cam_pipeline.errors import DataError


def change_unseen(path, content):
    """Write other content of the same length and put the time of modification back."""
    state = path.stat()
    assert len(content) == state.st_size
    path.write_bytes(content)
    os.utime(path, ns=(state.st_atime_ns, state.st_mtime_ns))


@pytest.fixture
def reads(monkeypatch):
    """The files that are read, in order."""
    read = []
    original = digest_module.content_digest
    monkeypatch.setattr(digest_module, "content_digest", lambda path: read.append(path.name) or original(path))
    return read


def test_digest_is_sha256_and_follows_the_content(tmp_path):
    path = tmp_path / "a"
    path.write_bytes(b"abc")
    digests = FileDigests(tmp_path / "memory.json")
    assert digests.of(path) == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    for content, time in [(b"abcd", 1), (b"abce", 2), (b"abc", 2)]:  # another size, another time, another size
        path.write_bytes(content)
        os.utime(path, ns=(time, time))
        digests.look_again()
        assert digests.of(path) == hashlib.sha256(content).hexdigest()


def test_a_file_is_read_once_while_its_state_stays(tmp_path, reads):
    path, memory = tmp_path / "a", tmp_path / "run" / "memory.json"
    path.write_bytes(b"abc")
    digests = FileDigests(memory)
    first = digests.of(path)
    digests.look_again()
    assert digests.of(path) == first and reads == ["a"], "from memory"
    assert FileDigests(memory).of(path) == first and reads == ["a", "a"], "not saved yet"
    digests.save()
    assert FileDigests(memory).of(path) == first and reads == ["a", "a"], "from the saved memory"


def test_a_change_is_seen_although_size_and_time_of_modification_are_as_before(tmp_path):
    path = tmp_path / "a"
    path.write_bytes(b"abc")
    digests = FileDigests(tmp_path / "memory.json")
    first = digests.of(path)
    change_unseen(path, b"xyz")
    digests.look_again()
    assert digests.of(path) == hashlib.sha256(b"xyz").hexdigest() != first


def test_a_file_put_in_its_place_is_seen_although_its_times_agree(tmp_path):
    path, other = tmp_path / "a", tmp_path / "b"
    path.write_bytes(b"abc")
    other.write_bytes(b"xyz")
    state = path.stat()
    os.utime(other, ns=(state.st_atime_ns, state.st_mtime_ns))
    digests = FileDigests(tmp_path / "memory.json")
    first = digests.of(path)
    other.replace(path)
    digests.look_again()
    assert digests.of(path) != first


def test_what_was_just_written_need_not_be_read(tmp_path, reads):
    path = tmp_path / "a"
    path.write_bytes(b"abc")
    digests = FileDigests(tmp_path / "memory.json")
    digests.note(path, "known")
    assert digests.of(path) == "known" and reads == []


def test_a_file_is_looked_at_once_between_two_calls_of_look_again(tmp_path):
    path = tmp_path / "a"
    path.write_bytes(b"abc")
    digests = FileDigests(tmp_path / "memory.json")
    first = digests.of(path)
    path.write_bytes(b"other")
    assert digests.of(path) == first
    digests.look_again()
    assert digests.of(path) != first


def test_a_relative_and_an_absolute_path_are_one_file(tmp_path, monkeypatch):
    (tmp_path / "a").write_bytes(b"abc")
    monkeypatch.chdir(tmp_path)
    digests = FileDigests(tmp_path / "memory.json")
    digests.of(tmp_path / "a")
    digests.save()
    assert list(FileDigests(tmp_path / "memory.json").known) == [str(tmp_path / "a")]


def test_memory_is_written_only_when_something_is_new(tmp_path):
    path, memory = tmp_path / "a", tmp_path / "memory.json"
    path.write_bytes(b"abc")
    digests = FileDigests(memory)
    digests.save()
    assert not memory.exists()
    digests.of(path)
    digests.save()
    memory.unlink()
    digests.of(path)
    digests.save()
    assert not memory.exists()


def test_a_damaged_memory_only_costs_time(tmp_path):
    path, memory = tmp_path / "a", tmp_path / "memory.json"
    path.write_bytes(b"abc")
    expected = FileDigests(memory).of(path)
    memory.write_text('{"half')
    assert FileDigests(memory).of(path) == expected


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(DataError, match=r"gone cannot be read \(No such file"):
        FileDigests(tmp_path / "memory.json").of(tmp_path / "gone")


def test_weights_count_by_content(tmp_path):
    path, digests = tmp_path / "w.pth", FileDigests(tmp_path / "memory.json")
    path.write_bytes(b"abc")
    assert digests.of_weights("pretrained") == "pretrained" and digests.of_weights("none") == "none"
    assert digests.of_weights(str(path)) == digests.of(path)
    assert digests.of_weights("/no/such/file") == "/no/such/file"  # the stage will say that it is missing


@pytest.fixture
def digest(tmp_path):
    for name in ("a.png", "b.png", "m.png"):
        (tmp_path / name).write_bytes(name.encode())
    samples = [
        Sample("a", tmp_path / "a.png", "train", (1, 2), tmp_path / "m.png"),
        Sample("b", tmp_path / "b.png", "val"),
    ]

    def compute(samples=samples, classes=("cat", "dog"), **options):
        return data_digest(classes, samples, FileDigests(tmp_path / "memory.json"), **options)

    compute.samples = samples
    return compute


def test_data_digest_notices_what_it_covers(digest):
    a, b = digest.samples
    others = [
        digest(classes=("dog", "cat")),
        digest(samples=[b, a]),
        digest(samples=[a]),
        digest(samples=[Sample("other", a.image, "train", (1, 2)), b]),
        digest(samples=[Sample("a", b.image, "train", (1, 2)), b]),
        digest(samples=[Sample("a", a.image, "train", (1,)), b]),
        digest(samples=[a, Sample("b", b.image, "val", ())]),  # known to show nothing, instead of unknown
        digest(labels=False),
        digest(masks=True),
    ]
    assert len({digest(), *others}) == 10
    assert digest() == digest()


def test_data_digest_covers_labels_and_masks_only_when_asked(digest):
    a, b = digest.samples
    relabelled = [Sample("a", a.image, "train", (2,), a.mask), b]
    unmasked = [Sample("a", a.image, "train", (1, 2)), b]
    assert digest(samples=relabelled, labels=False) == digest(labels=False)
    assert digest(samples=unmasked) == digest()
    assert digest(samples=unmasked, masks=True) != digest(masks=True)
    a.mask.write_bytes(b"another mask")
    changed = digest(masks=True)
    a.mask.write_bytes(b"m.png")
    assert changed != digest(masks=True)


def test_data_digest_does_not_depend_on_the_folder(digest, tmp_path):
    moved = tmp_path / "moved"
    moved.mkdir()
    samples = []
    for one in digest.samples:
        (moved / one.image.name).write_bytes(one.image.read_bytes())
        samples.append(Sample(one.id, moved / one.image.name, one.split, one.class_ids))
    assert digest(samples=samples) == digest()


def test_the_meaning_of_colours_changes_the_digest_of_masks_alone(tmp_path):
    for name in ("a.png", "m.png"):
        (tmp_path / name).write_bytes(name.encode())
    digests = FileDigests(tmp_path / "memory.json")
    plain = Sample("a", tmp_path / "a.png", "train", (1,), tmp_path / "m.png")
    samples = [plain, replace(plain, colors=((0, 0, 0), (1, 1, 1))), replace(plain, colors=((1, 1, 1), (0, 0, 0)))]
    assert len({data_digest(("c",), [sample], digests, masks=True) for sample in samples}) == 3
    assert len({data_digest(("c",), [sample], digests) for sample in samples}) == 1


def test_marks_count_only_where_asked_for_and_where_there_are_any(tmp_path):
    image, scribble = tmp_path / "a.png", tmp_path / "s.png"
    image.write_bytes(b"a")
    scribble.write_bytes(b"s")
    digests = FileDigests(tmp_path / "memory.json")

    def digest(marks, **fields):
        return data_digest(["cat"], [Sample("a", image, "train", (1,), **fields)], digests, marks=marks)

    plain = digest(False)
    found = {
        digest(True, clicks=(Click(1, 2, 1),)),
        digest(True, clicks=(Click(1, 3, 1),)),
        digest(True, clicks=(Click(1, 2, 0),)),
        digest(True, scribble=scribble),
        digest(True, scribble=scribble, colors=((0, 0, 0),)),
        digest(True, scribble=Strokes((Stroke(1, ((1, 2),)),))),
        digest(True, scribble=Strokes((Stroke(1, ((1, 2),), filled=True),))),
        digest(True, scribble=Strokes((Stroke(1, ((1, 2),)),), (4, 4))),
    }
    zipped = [ScribbleXml(scribble, ("cat",), member) for member in ("a.xml", "b.xml")]
    found |= {digest(True, scribble=one) for one in zipped}
    assert len(found | {plain}) == 11
    assert digest(True) == plain == digest(False, clicks=(Click(1, 2, 1),), scribble=scribble)
    assert digest(True, clicks=(Click(1, 2, 1, "b.csv"),)) == digest(True, clicks=(Click(1, 2, 1, "c.csv"),))
    scribble.write_bytes(b"other")
    digests.look_again()
    assert digest(True, scribble=scribble) not in found
