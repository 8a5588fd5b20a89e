"""Without a network, and without asking for one: what the hub's library would do is replaced."""

import logging
import time
from types import SimpleNamespace

import huggingface_hub
import pytest
import timm
from huggingface_hub import constants

from cam_pipeline.errors import WeightsError
from cam_pipeline.models import hub
from cam_pipeline.models.backbone import create_timm
from cam_pipeline.models.segmenter import build_segmenter


@pytest.fixture
def asked(monkeypatch, tmp_path):
    """The addresses that were asked, none of which answers; nothing is kept on this machine."""
    addresses = []

    def head(address, timeout):
        addresses.append((address, timeout))
        raise OSError("Name or service not known")

    monkeypatch.setattr(hub, "_asked", {})
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.delenv("HF_HUB_ETAG_TIMEOUT", raising=False)
    monkeypatch.setattr("torch.hub.get_dir", lambda: str(tmp_path))
    monkeypatch.setattr("huggingface_hub.utils.get_session", lambda: SimpleNamespace(head=head))
    return addresses


def keep(monkeypatch):
    """All weights are in the hub's cache."""
    monkeypatch.setattr(huggingface_hub, "try_to_load_from_cache", lambda *_, **__: "model.safetensors")


def test_weights_out_of_reach_are_told_after_one_question(asked):
    line = (
        r"^classifier.weights: the pretrained weights of 'resnet18' cannot be loaded \(they are not on this machine, "
        r"and huggingface.co cannot be reached: Name or service not known\); connect to the network once, or set "
    )
    for _ in range(2):
        with pytest.raises(WeightsError, match=line):
            hub.check_pretrained("classifier.weights", "resnet18")
    with pytest.raises(WeightsError, match=line.replace("classifier.weights: ", "")):
        create_timm("resnet18", "pretrained", {"num_classes": 0})
    with pytest.raises(WeightsError, match=line.replace("classifier.weights: ", "")):
        build_segmenter("deeplabv3plus", "resnet18", 3, weights="pretrained")
    assert asked == [(constants.ENDPOINT, hub.SECONDS)]


def test_weights_outside_the_hub_are_asked_for_where_they_are(asked, tmp_path):
    with pytest.raises(WeightsError, match=r"and github.com cannot be reached"):
        hub.check_pretrained("classifier.weights", "legacy_seresnet18")
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / asked[0][0].rpartition("/")[2]).touch()
    hub.check_pretrained("classifier.weights", "legacy_seresnet18")


def test_weights_that_nobody_has(asked):
    with pytest.raises(
        WeightsError, match=r"^a: timm has no pretrained weights of 'test_vit4'; set weights to a file, or"
    ):
        hub.check_pretrained("a", "test_vit4")
    for unknown in ("resnt18", "resnet18.no_such_tag"):
        hub.check_pretrained("a", unknown)  # whoever builds it says so
    assert asked == []


def test_what_the_user_set_holds(asked, monkeypatch):
    monkeypatch.setattr(constants, "ENDPOINT", "https://mirror.example")
    monkeypatch.setattr(constants, "HF_HUB_ETAG_TIMEOUT", 30)
    monkeypatch.setenv("HF_HUB_ETAG_TIMEOUT", "30")
    with pytest.raises(WeightsError, match=r"and mirror.example cannot be reached"):
        hub.check_pretrained("a", "resnet18")
    assert asked == [("https://mirror.example", 30.0)]
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(WeightsError, match="they are not on this machine, and HF_HUB_OFFLINE is set"):
        hub.check_pretrained("a", "resnet18")
    assert len(asked) == 1


def test_kept_weights_need_no_network(asked, monkeypatch):
    assert not hub.are_kept("resnet18", {})
    keep(monkeypatch)
    assert hub.are_kept("resnet18", {}) and hub.are_kept("resnet18", {"pretrained_cfg": "a1_in1k"})
    assert not hub.are_kept("resnt18", {}) and not hub.are_kept("resnet18.no_such_tag", {})
    hub.check_pretrained("a", "resnet18")
    assert asked == []
    for tag in ("resnet18.a1_in1k", "resnet18"):
        assert hub.missing(tag, {"pretrained_cfg": "a1_in1k"}) == ""


def test_a_hub_that_is_silent_is_waited_for_only_so_long(asked, monkeypatch):
    monkeypatch.setattr(hub, "SECONDS", 0.05)
    slow = SimpleNamespace(head=lambda address, timeout: time.sleep(2))
    monkeypatch.setattr("huggingface_hub.utils.get_session", lambda: slow)
    started = time.monotonic()
    assert hub.unreachable("https://a.example") == "no answer in 0.05 seconds"
    assert hub.unreachable("https://b.example", patience=0.02) == "no answer in 0.02 seconds"
    assert time.monotonic() - started < 1


def test_an_answer_holds_for_a_while(asked, monkeypatch):
    monkeypatch.setattr(
        "huggingface_hub.utils.get_session", lambda: SimpleNamespace(head=lambda *_, **__: "any status")
    )
    assert hub.unreachable("https://a.example") == ""
    monkeypatch.undo()
    now = time.monotonic()
    hub._asked["https://b.example"] = (now, "gone")
    assert hub.unreachable("https://b.example") == "gone"


@pytest.mark.parametrize("answers", [True, False])
def test_the_hub_tells_none_of_its_attempts_and_makes_none_without_a_network(asked, monkeypatch, caplog, answers):
    def load(*_, **__):
        seen.append(constants.HF_HUB_OFFLINE)
        for name in ("huggingface_hub.utils._http", "timm.models._builder"):
            logging.getLogger(name).warning("Retrying in 8s [Retry 4/5].")
        raise OSError("the cache is damaged")

    seen = []
    keep(monkeypatch)
    if answers:
        monkeypatch.setattr("huggingface_hub.utils.get_session", lambda: SimpleNamespace(head=lambda *_, **__: None))
    monkeypatch.setattr(timm, "create_model", load)
    loggers = [logging.getLogger(name) for name in ("huggingface_hub", "timm")]
    before = [one.level for one in loggers]
    name = f"resnet{18 if answers else 34}"
    for _ in range(2):
        with (
            caplog.at_level(logging.INFO),
            pytest.raises(WeightsError, match=r"be loaded \(the cache is damaged\); conn"),
        ):
            create_timm(name, "pretrained", {})
    assert [record.name for record in caplog.records] == ["cam_pipeline.models.backbone"]
    assert f"weights of '{name}': from timm's hub" in caplog.text
    assert [one.level for one in loggers] == before
    assert seen == [not answers] * 2 and constants.HF_HUB_OFFLINE is False
