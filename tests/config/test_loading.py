"""Precedence, what is said about a mistake, `--set`, and the way to TOML and back."""

import math
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
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
    assert "unknown key labels.qqqq; valid here: low, high" in message


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("train_cls.epochs=many", ["train_cls.epochs", "'many'"]),
        ("train_cls.epochs=0", ["train_cls.epochs", "0"]),
        ("train_cls.epochs=1.5", ["train_cls.epochs", "1.5"]),
        ("train_cls.lr=nan", ["train_cls.lr", "nan"]),
        ("refine.background=1.0", ["refine.background", "less than 1"]),
        ("refine.crf=perhaps", ["refine.crf", "perhaps"]),
        ("data.format=yaml", ["data.format", "'csv'", "'voc'", "yaml"]),
        ("run.device=tpu", ["run.device", "tpu"]),
        ("run.device=cuda:x", ["run.device", "cuda:x"]),
        ("train_cls.scale=[2.0, 1.0]", ["train_cls", "scale must be two rising positive numbers"]),
        ("train_cls.scale=[0.0, 1.0]", ["train_cls", "scale must be two rising positive numbers"]),
        ("train_cls.scale=[1.0]", ["train_cls.scale"]),
        ("cam.scales=[]", ["cam.scales"]),
        ("labels.low=0.9", ["labels", "low (0.9) must not exceed high (0.55)"]),
        ("segmenter.stride=32", ["segmenter.stride", "32"]),
        ("data=5", ["--set data=5"]),
    ],
)
def test_wrong_value_names_key_and_value(config_file: Path, override: str, words: list[str]) -> None:
    message = mistake(config_file, override)
    assert all(word in message for word in words), message


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

any_text = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
values = st.recursive(
    st.booleans() | st.integers(-(2**63), 2**63 - 1) | st.floats(allow_nan=False, allow_infinity=False) | any_text,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(any_text, inner, max_size=3),
    max_leaves=6,
)


@pytest.fixture(scope="module")
def scratch(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("toml") / "resolved.toml"


@given(backbone=any_text, arguments=st.dictionaries(any_text, values, max_size=3))
def test_toml_gives_back_an_equal_config(scratch: Path, backbone: str, arguments: dict[str, Any]) -> None:
    classifier = ClassifierSettings(backbone=backbone, backbone_args=arguments)
    config = Config(classifier=classifier, data=DataSettings(classes=(backbone, "b"))).model_copy(
        update={"output": load_config("demo").output}
    )
    scratch.write_text(to_toml(config), encoding="utf-8")
    assert load_config(scratch) == config


@pytest.mark.parametrize(
    "text", ['"', "'", '"""', "\\", "\\n", "\n", "\r\n", "\t", "\0", "\x7f", "#", "]", "猫", "\U0001f98a"]
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
