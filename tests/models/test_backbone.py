import pytest

from cam_pipeline.errors import ConfigError, WeightsError
from cam_pipeline.models.backbone import create_timm


def test_timm_models_by_name():
    model = create_timm("test_resnet", "none", {"num_classes": 0, "in_chans": 3})
    assert model.num_features > 0
    with pytest.raises(ConfigError, match=r"timm has no model 'resnt50'; near: .*resnet50"):
        create_timm("resnt50", "none", {})
    with pytest.raises(
        WeightsError,
        match=r"weights of 'test_resnet' cannot be loaded \(.*HF_HUB_OFFLINE is set\); .* set weights to a file",
    ):
        create_timm("test_resnet", "pretrained", {})  # tests run without network (HF_HUB_OFFLINE)
