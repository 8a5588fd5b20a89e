"""Precedence, what is said about a mistake, `--set`, and the way to TOML and back."""

import errno
import math
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from cam_pipeline.config import ClassifierSettings, Config, DataSettings, load_config, shipped_configs, to_toml
from cam_pipeline.errors import ConfigError


@pytest.fixture
def config_file(tmp_path: Path) -> Path:
    path = tmp_path / "mine.toml"
    path.write_text("[train_cls]\nepochs = 7\nlr = 0.5\n\n[classifier]\nbackbone = 'resnet18'\n")
    return path


def mistake(source: Path, *overrides: str) -> str:
    """The one line that a wrong configuration is answered with."""
    with pytest.raises(ConfigError) as caught:
        load_config(source, overrides)
    message = str(caught.value)
    assert "\n" not in message
    return message


def written(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "wrong.toml"
    path.write_text(text)
    return path


# Precedence


def test_override_beats_file_beats_default(config_file: Path) -> None:
    config = load_config(config_file, ["train_cls.epochs=3"])
    assert config.train_cls.epochs == 3
    assert config.train_cls.lr == 0.5
    assert config.train_cls.batch_size == Config().train_cls.batch_size


def test_last_override_wins(config_file: Path) -> None:
    assert load_config(config_file, ["run.seed=1", "run.seed=2"]).run.seed == 2


def test_override_creates_a_section_that_the_file_lacks(config_file: Path) -> None:
    config = load_config(config_file, ["refine.background=0.2"])
    assert config.refine.background == 0.2
    assert config.classifier.backbone == "resnet18"


# The run folder


def test_run_folder_is_named_after_the_config_file(config_file: Path) -> None:
    assert load_config(config_file).folder == Path("outputs/mine")


def test_run_folder_can_be_set(config_file: Path) -> None:
    assert load_config(config_file, ["output.dir=/somewhere/else"]).folder == Path("/somewhere/else")


def test_config_without_a_run_folder_says_so() -> None:
    with pytest.raises(ConfigError, match=r"output\.dir"):
        _ = Config().folder


# --set


@pytest.mark.parametrize(
    ("override", "section", "key", "value"),
    [
        ("train_cls.epochs=5", "train_cls", "epochs", 5),
        ("train_cls.lr=6e-5", "train_cls", "lr", 6e-5),
        ("refine.crf=false", "refine", "crf", False),
        ("cam.scales=[0.5, 1.0]", "cam", "scales", (0.5, 1.0)),
        ("cam.splits=['train', 'val']", "cam", "splits", ("train", "val")),
        ("classifier.backbone=resnet18", "classifier", "backbone", "resnet18"),
        ('classifier.backbone="resnet18"', "classifier", "backbone", "resnet18"),
        ("data.root=my photos/2024", "data", "root", Path("my photos/2024")),
        ("data.table=a=b.csv", "data", "table", "a=b.csv"),
        ("data.val=", "data", "val", ""),
        (" run.seed = 4 ", "run", "seed", 4),
        ("classifier.backbone_args.pad_type=same", "classifier", "backbone_args", {"pad_type": "same"}),
        ("classifier.backbone_args={pad_type='same'}", "classifier", "backbone_args", {"pad_type": "same"}),
        ("data.classes=['a b', 'c']", "data", "classes", ("a b", "c")),
    ],
)
def test_override_is_toml_or_else_a_string(
    config_file: Path, override: str, section: str, key: str, value: Any
) -> None:
    assert getattr(getattr(load_config(config_file, [override]), section), key) == value


@pytest.mark.parametrize("override", ["train_cls.epochs", "epochs=5", "=5", "", "train_cls epochs 5"])
def test_override_of_another_form_is_refused_with_an_example(config_file: Path, override: str) -> None:
    message = mistake(config_file, override)
    assert f"--set {override}" in message
    assert "section.key=value" in message


def test_override_below_a_value_is_refused(config_file: Path) -> None:
    assert "train_cls" in mistake(config_file, "train_cls.epochs.more=5")


def test_override_of_a_whole_section_by_a_value_is_refused(tmp_path: Path) -> None:
    assert "refine is a value" in mistake(written(tmp_path, "refine = 3\n"), "refine.background=0.5")


# Mistakes


@pytest.mark.parametrize(
    ("override", "nearest"),
    [
        ("train_cls.epoch=5", "train_cls.epochs"),
        ("trian_cls.epochs=5", "train_cls"),
        ("refine.backgroud=0.5", "refine.background"),
        ("train_cls.background=0.5", "refine.background"),  # a valid key, in another section
        ("labels.crf=true", "refine.crf"),
    ],
)
def test_unknown_key_names_the_nearest(config_file: Path, override: str, nearest: str) -> None:
    message = mistake(config_file, override)
    assert f"unknown key {override.partition('=')[0].removesuffix('.epochs')}" in message or "trian_cls" in message
    assert f"did you mean {nearest}?" in message


def test_unknown_key_in_the_file_names_file_and_key(tmp_path: Path) -> None:
    path = written(tmp_path, "[cam]\nscale = [1.0]\n")
    message = mistake(path)
    assert str(path) in message
    assert "unknown key cam.scale; did you mean cam.scales?" in message


def test_unknown_key_with_nothing_near_lists_the_valid_ones(config_file: Path) -> None:
    message = mistake(config_file, "labels.qqqq=1")
    assert "unknown key labels.qqqq; valid here: undecided, low, high" in message


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("train_cls.epochs=ten", "train_cls.epochs must be a whole number, given 'ten'"),
        ("train_cls.epochs=1.5", "train_cls.epochs must be a whole number, given 1.5"),
        ("train_cls.epochs=true", "train_cls.epochs must be a whole number, given True"),
        ("train_cls.epochs=[3]", "train_cls.epochs must be a whole number, given [3]"),
        ("train_cls.epochs=0", "train_cls.epochs must be at least 1, given 0"),
        ("train_cls.epochs=1000001", "train_cls.epochs must be at most 1000000, given 1000001"),
        (f"train_cls.epochs={10**30}", "train_cls.epochs must be less than 2 to the power of 63, given 1000"),
        (f"train_cls.epochs={10**200}", f"given {'1'.ljust(40, '0')} ... {'0' * 40}"),
        (f"train_cls.epochs={'9' * 5000}", "train_cls.epochs must be"),
        (f"train_cls.epochs=0x{'f' * 5000}", "less than 2 to the power of 63, given a number of very many digits"),
        ("train_cls.lr=fast", "train_cls.lr must be a number, given 'fast'"),
        ("train_cls.lr=false", "train_cls.lr must be a number, given False"),
        ("train_cls.lr=nan", "train_cls.lr must be a finite number, given nan"),
        ("train_cls.lr=inf", "train_cls.lr must be a finite number, given inf"),
        ("train_cls.lr=-0.1", "train_cls.lr must be greater than 0, given -0.1"),
        ("cam.scales=[1.0, inf]", "cam.scales must be a finite number, given inf"),
        ("cam.scales=[1.0, -1]", "cam.scales, item 2, must be greater than 0, given -1"),
        ("cam.scales=[true]", "cam.scales must be a list without true and false, given [True]"),
        ("cam.scales=['a']", "cam.scales, item 1, must be a number, given 'a'"),
        ("cam.scales=[]", "cam.scales must be a list of at least 1, given []"),
        ("data.colors=['red']", "data.colors, item 1, must be three whole numbers in 0..255, or text such as '#ff00"),
        ("data.colors=[[0, 0, 256]]", "or text such as '#ff0080', given '[0, 0, 256]'"),
        ("data.colors=[[0, 0]]", "data.colors, item 1, must be three whole numbers in"),
        ("data.colors=['#000000', [0, 0, 0]]", "data.colors must name each colour once, but #000000 is there twice"),
        ("cam.scales=1.0", "cam.scales must be a list, given 1.0"),
        ("classifier.std=[1.0, 0.0, 1.0]", "classifier.std, item 2, must be greater than 0, given 0.0"),
        ("classifier.mean=[nan, 0.0, 1.0]", "classifier.mean must be a finite number, given nan"),
        ("classifier.backbone_args.x=nan", "classifier.backbone_args.x must be a finite number, given nan"),
        ("classifier.backbone_args.x=inf", "classifier.backbone_args.x must be a finite number, given inf"),
        ("classifier.backbone_args.x=2020-01-01", "backbone_args.x must not be a date or time; write text in quotes"),
        (f"classifier.backbone_args.x={'[' * 25}{']' * 25}", "classifier.backbone_args.x is nested too deeply"),
        ("classifier.backbone_args=5", "classifier.backbone_args must be a table such as {key = value}, given 5"),
        (
            "refine.background=1.0",
            "refine.background must be a number above 0 and below 1, 'auto' or 'from-split', given 1.0",
        ),
        ("predict.threshold=2", "predict.threshold must be a number from 0 to 1 or 'auto', given 2"),
        ("predict.threshold=true", "predict.threshold must be a number from 0 to 1 or 'auto', given True"),
        ("predict.threshold=low", "predict.threshold must be a number from 0 to 1 or 'auto', given 'low'"),
        ("predict.classes=some", "predict.classes must be 'all' or 'classifier', given 'some'"),
        ("refine.crf=perhaps", "refine.crf must be true or false, given 'perhaps'"),
        ("data.table=5", "data.table must be text, given 5"),
        ("data.root=[1]", "data.root must be a path, as text, given [1]"),
        ('data.root="a\\u0000b"', "data.root holds a character that is not text, given 'a\\x00b'"),
        ("data.root=caf\udce9", "data.root holds a character that is not text, given 'caf\\udce9'"),
        ("classifier.backbone_args.caf\udce9=1", "holds a character that is not text, given 'caf\\udce9'"),
        ("data.root=x{data.root}", "data.root cannot hold {data.root}"),
        ("data.format=yaml", "data.format must be 'csv', 'voc'"),
        ("run.device=tpu", "run.device must be `auto`, `cpu` or `cuda[:n]` (also `--device`), given 'tpu'"),
        ("run.device=cuda:x", "run.device must be `auto`, `cpu` or `cuda[:n]` (also `--device`), given 'cuda:x'"),
        ("run.seed=4294967296", "run.seed must be at most 4294967295, given 4294967296"),
        ("train_cls.scale=[2.0, 1.0]", "train_cls: scale must be two rising numbers, not [2.0, 1.0]"),
        ("train_seg.accumulate=5", "train_seg: batch_size = 16 cannot be divided into accumulate = 5 equal parts"),
        ("teacher.cutmix_area=[0.5, 0.1]", "teacher: cutmix_area must be two rising numbers, not [0.5, 0.1]"),
        ("train_cls.scale=[0.0, 1.0]", "train_cls.scale, item 1, must be greater than 0, given 0.0"),
        ("train_cls.scale=[1.0]", "train_cls.scale, item 2, must be given: the list is too short, given [1.0]"),
        ("train_cls.scale=[1, 2, 3]", "train_cls.scale must be a list of at most 2, given [1, 2, 3]"),
        ("labels.low=0.9", "labels: low (0.9) must not exceed high (0.55)"),
        ("segmenter.stride=32", "segmenter.stride must be 8 or 16, given 32"),
        ("data=5", "--set data=5: write it as section.key=value"),
    ],
)
def test_wrong_value_names_key_and_value(config_file: Path, override: str, words: str) -> None:
    message = mistake(config_file, override)
    assert words in message
    assert len(message) < 400


def test_value_for_a_section_is_refused(tmp_path: Path) -> None:
    line = "wrong.toml: refine must be a section with keys of its own, given 3"
    assert mistake(written(tmp_path, "refine = 3\n")).endswith(line)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("epochs = 5\n", "unknown key epochs; did you mean train_cls.epochs?"),
        ("train = 'a'\n", "unknown key train; did you mean data.train?"),  # not train_cls, which is nearer
        ("low = 0.1\n[labels]\nhigh = 0.5\n", "unknown key low; did you mean labels.low?"),
        ("[train-cls]\nepochs = 5\n", "unknown key train-cls; did you mean train_cls?"),
        ("[[data]]\nroot = 'x'\n", "data must be a section with keys of its own, given [{'root': 'x'}]"),
        ("[data.root]\nx = 1\n", "data.root must be a path, as text, given {'x': 1}"),
        (
            "nothing_like_it = 1\n",
            "unknown key nothing_like_it; valid here: data, classifier, objectives, acr, sfc, train_cls",
        ),
        ("[run]\nseed = 1\nseed = 2\n", "is not valid TOML: Cannot overwrite a value (at line 3"),
        (f"x = {'[' * 3000}", "is not valid TOML: it is nested too deeply"),
        (f"x = {'9' * 5000}", "is not valid TOML: Exceeds the limit"),
    ],
)
def test_what_else_a_file_can_hold(tmp_path: Path, text: str, words: str) -> None:
    assert words in mistake(written(tmp_path, text))


def test_folder_for_a_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "folder.toml").mkdir()
    assert "folder.toml is a folder; give a TOML file" in mistake(tmp_path / "folder.toml")
    assert "is a folder; give a TOML file, for example" in mistake(tmp_path)


def test_path_through_a_file_and_path_with_nul(tmp_path: Path) -> None:
    path = written(tmp_path, "")
    assert "there is no config file" in mistake(path / "more.toml")
    assert "cannot be read" in mistake(tmp_path / "a\0.toml")
    assert "cannot be read (File name too long)" in mistake(tmp_path / ("a" * 300 + ".toml"))


@pytest.mark.skipif(os.geteuid() == 0, reason="nothing is forbidden to root")
def test_file_that_may_not_be_read(tmp_path: Path) -> None:
    path = written(tmp_path, "")
    path.chmod(0)
    assert f"the config file {path} cannot be read (Permission denied)" in mistake(path)


def test_error_of_the_system_is_named(config_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: Path) -> bytes:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))

    monkeypatch.setattr(Path, "read_bytes", refuse)
    assert f"the config file {config_file} cannot be read (Permission denied)" in mistake(config_file)


def test_byte_order_mark_is_no_part_of_the_file(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_bytes(b"\xef\xbb\xbf[run]\r\nseed = 5\r\n")
    assert load_config(path).run.seed == 5


def test_override_of_several_lines_sets_one_key(config_file: Path) -> None:
    message = mistake(config_file, "run.seed=1\n[train_cls]\nepochs = 2")
    assert message.endswith(r"run.seed must be a whole number, given '1\n[train_cls]\nepochs = 2'")


def test_missing_file_names_the_shipped_configs(tmp_path: Path) -> None:
    message = mistake(tmp_path / "absent.toml")
    assert str(tmp_path / "absent.toml") in message
    assert all(name in message for name in shipped_configs())


def test_invalid_toml_names_the_line(tmp_path: Path) -> None:
    message = mistake(written(tmp_path, "[run]\nseed = \n"))
    assert "not valid TOML" in message
    assert "line 2" in message


def test_file_that_is_no_text_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "picture.toml"
    path.write_bytes(b"\x89PNG\r\n\xff\xfe")
    assert str(path) in mistake(path)


def test_file_is_read_as_utf8_whatever_the_locale(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_bytes("[data]\nroot = 'Köln/猫'\n".encode())
    code = f"from cam_pipeline.config import load_config; print(ascii(str(load_config({str(path)!r}).data.root)))"
    ascii_only = os.environ | {"LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"}
    done = subprocess.run([sys.executable, "-c", code], env=ascii_only, capture_output=True, text=True, timeout=60)
    assert done.stdout.strip() == ascii("Köln/猫"), done.stderr


def test_settings_are_frozen() -> None:
    config = Config()
    with pytest.raises(ValueError, match="frozen"):
        config.run.seed = 3  # type: ignore[misc]


# Shipped configs and {data.root}


@pytest.mark.parametrize("name", shipped_configs())
def test_shipped_config_loads_by_name_and_by_path(name: str, repository: Path) -> None:
    by_name, by_path = load_config(name), load_config(repository / "configs" / f"{name}.toml")
    assert by_name == by_path
    assert by_name.folder == Path("outputs") / name


@pytest.mark.parametrize("name", shipped_configs())
def test_shipped_config_begins_with_purpose_cost_result_and_command(name: str, repository: Path) -> None:
    lines = (repository / "configs" / f"{name}.toml").read_text().splitlines()
    words = [line.split(":")[0] for line in lines if line.startswith("# ") and ":" in line]
    assert words[:4] == ["# Purpose", "# Cost", "# Result", "# Command"]


def test_a_file_of_the_same_name_is_not_taken_for_the_shipped_config(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "demo.toml").write_text("[run]\nseed = 77\n")
    assert load_config("demo.toml").run.seed == 77
    assert load_config("demo").run.seed == 0


@pytest.mark.parametrize("section", ["classifier", "segmenter"])
def test_data_root_is_filled_into_weights(config_file: Path, section: str) -> None:
    config = load_config(config_file, [f"{section}.weights={{data.root}}/../w.pth", "data.root=/photos/voc"])
    assert getattr(config, section).weights == "/photos/voc/../w.pth"


def test_data_root_in_weights_may_be_the_default(config_file: Path) -> None:
    config = load_config(config_file, ["classifier.weights={data.root}/w.pth"])
    assert config.classifier.weights == f"{DataSettings().root}/w.pth"


def test_voc_mini_finds_its_weights_beside_the_data() -> None:
    config = load_config("voc-mini", ["data.root=/photos/voc-mini"])
    assert config.classifier.weights.startswith("/photos/voc-mini/../weights/")
    assert config.segmenter.weights == config.classifier.weights


# To TOML and back

any_text = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=20)
values = st.recursive(
    st.booleans() | st.integers(-(2**63), 2**63 - 1) | st.floats(allow_nan=False, allow_infinity=False) | any_text,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(any_text, inner, max_size=3),
    max_leaves=6,
)


@pytest.fixture(scope="module")
def scratch(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("toml") / "resolved.toml"


@example(backbone="", arguments={"least": -(2**63), "most": 2**63 - 1})
@given(backbone=any_text, arguments=st.dictionaries(any_text, values, max_size=3))
def test_toml_gives_back_an_equal_config(scratch: Path, backbone: str, arguments: dict[str, Any]) -> None:
    classifier = ClassifierSettings(backbone=backbone, backbone_args=arguments)
    config = Config(classifier=classifier, data=DataSettings(classes=(backbone, "b"))).model_copy(
        update={"output": load_config("demo").output}
    )
    scratch.write_text(to_toml(config), encoding="utf-8")
    assert load_config(scratch) == config


@pytest.mark.parametrize(
    "text", ['"', "'", '"""', "\\", "\\n", "\n", "\r\n", "\t", "\x1b", "\x7f", "#", "]", "猫", "\U0001f98a"]
)
def test_toml_gives_back_awkward_text(scratch: Path, text: str) -> None:
    config = load_config("demo").model_copy(update={"classifier": ClassifierSettings(backbone=text)})
    scratch.write_bytes(to_toml(config).encode())
    assert load_config(scratch).classifier.backbone == text


def test_toml_gives_back_infinity(scratch: Path) -> None:
    config = load_config("demo", ["train_cls.checkpoint_seconds=inf"])
    assert config.train_cls.checkpoint_seconds == math.inf
    scratch.write_text(to_toml(config))
    assert load_config(scratch) == config


@pytest.mark.parametrize("name", shipped_configs())
def test_toml_of_a_shipped_config_gives_it_back(scratch: Path, name: str) -> None:
    config = load_config(name, ["data.root=/photos/voc-mini", "train_cls.lr=6e-5"])
    scratch.write_text(to_toml(config))
    assert load_config(scratch) == config


def test_toml_of_every_default_gives_it_back(scratch: Path) -> None:
    scratch.write_text("")
    config = load_config(scratch)
    scratch.write_text(to_toml(config))
    assert load_config(scratch) == config


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("classifier.mean=[123.675,116.28,103.53]", "classifier.mean, item 1, must be at most 1, given 123.675"),
        ("segmenter.std=[58.4,57.1,57.4]", "segmenter.std, item 1, must be at most 1, given 58.4"),
        ("refine.bilateral_srgb=1e-10", "refine.bilateral_srgb must be at least 0.001, given 1e-10"),
        ("data.classes=[cat,dog]", """write --set 'data.classes=["a", "b"]', with quotes of both kinds"""),
    ],
)
def test_values_that_would_crash_or_mislead_later(config_file: Path, override: str, words: str) -> None:
    assert words in mistake(config_file, override)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"[data]\nroot = photos\n", """: 'root = photos'; text needs straight quotes: root = "photos\""""),
        (b'[data]\nroot = "C:\\Users"\n', "write / in place of"),
        ("[data]\n".encode("utf-16"), "is not UTF-8, which TOML must be; save it as UTF-8"),
    ],
)
def test_broken_toml_shows_the_line_and_the_likely_cause(tmp_path: Path, content: bytes, words: str) -> None:
    path = tmp_path / "my.toml"
    path.write_bytes(content)
    assert words in mistake(path)
