import logging

import pytest
import timm

from cam_pipeline.errors import ConfigError, WeightsError
from cam_pipeline.models.backbone import create_timm


def test_timm_models_by_name():
    model = create_timm("test_resnet", "none", {"num_classes": 0, "in_chans": 3})
    assert model.num_features > 0
    with pytest.raises(ConfigError, match=r"timm has no model 'resnt50'; near: .*resnet50"):
        create_timm("resnt50", "none", {})
    with pytest.raises(
        WeightsError, match=r"pretrained weights of 'test_resnet' cannot be loaded .* set weights to a file"
    ):
        create_timm("test_resnet", "pretrained", {})  # tests run without network (HF_HUB_OFFLINE)


def test_the_hub_does_not_tell_each_of_its_attempts(monkeypatch, caplog):
    def no_network(*_, **__):
        for name in ("huggingface_hub.utils._http", "timm.models._builder"):
            logging.getLogger(name).warning("Retrying in 8s [Retry 4/5].")
        raise OSError("no network")

    monkeypatch.setattr(timm, "create_model", no_network)
    loggers = [logging.getLogger(name) for name in ("huggingface_hub", "timm")]
    before = [one.level for one in loggers]
    for _ in range(2):
        with caplog.at_level(logging.INFO), pytest.raises(WeightsError, match=r"cannot be loaded \(no network\)"):
            create_timm("test_vit4", "pretrained", {})
    assert [record.name for record in caplog.records] == ["cam_pipeline.models.backbone"]
    assert "weights of 'test_vit4': from timm's hub" in caplog.text
    assert [one.level for one in loggers] == before
