import pytest
import torch

from cam_pipeline.assembly.classifier import load_classifier, new_classifier
from cam_pipeline.assembly.fits import check_crop
from cam_pipeline.assembly.segmenter import load_segmenter, new_segmenter
from cam_pipeline.cams.extraction import cam_reading
from cam_pipeline.config import CamSettings, ClassifierSettings, SegmenterSettings
from cam_pipeline.errors import ConfigError, DamagedFile, WeightsError
from cam_pipeline.store.checkpoints import save_model

CLASSES = ("cat", "dog", "eel")
CLASSIFIER = ClassifierSettings(backbone="test_resnet", weights="none", stride=16, mean=(0.1, 0.2, 0.3))
SEGMENTER = SegmenterSettings(encoder="test_resnet", weights="none", freeze_batch_norm=True)
KINDS = {
    "classifier": (new_classifier, load_classifier, CLASSIFIER, {"backbone": "test_efficientnet"}),
    "segmenter": (new_segmenter, load_segmenter, SEGMENTER, {"architecture": "deeplabv2"}),
}


@pytest.fixture(params=KINDS)
def kind(request):
    return KINDS[request.param]


def outputs(network):
    images = torch.randint(0, 256, (2, 3, 64, 96), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        out = network(images)
    return out if isinstance(out, torch.Tensor) else out.logits


def test_what_was_saved_comes_back_ready_to_predict(kind, tmp_path):
    create, load, settings, _ = kind
    path = tmp_path / "model.safetensors"
    torch.manual_seed(1)
    network = create(settings, len(CLASSES)).eval()
    save_model(path, network, {"classes": CLASSES, "fingerprint": "f"})
    torch.manual_seed(2)
    loaded = load(settings.model_copy(update={"weights": "/a/file/that/is/gone.pth"}), path, CLASSES)
    assert not any(module.training for module in loaded.modules())
    assert torch.equal(outputs(loaded), outputs(network))
    assert outputs(loaded).shape[1] == len(CLASSES) + (network.__class__.__name__ == "Segmenter")


def test_a_model_of_other_classes_or_another_network_is_refused(kind, tmp_path):
    create, load, settings, other = kind
    path = tmp_path / "model.safetensors"
    save_model(path, create(settings, len(CLASSES)), {"classes": CLASSES, "fingerprint": "f"})
    with pytest.raises(WeightsError, match="was made for the classes cat, dog, eel, the data has dog, cat, eel"):
        load(settings, path, ("dog", "cat", "eel"))
    with pytest.raises(WeightsError, match=r"model\.safetensors does not fit the model of this config") as caught:
        load(settings.model_copy(update=other), path, CLASSES)
    assert "\n" not in str(caught.value)
    with pytest.raises(DamagedFile, match=r"there is no file .*gone\.safetensors"):
        load(settings, tmp_path / "gone.safetensors", CLASSES)


def test_settings_reach_the_networks():
    classifier = new_classifier(CLASSIFIER, 3)
    assert classifier.stride == 16 and not classifier.freeze_batch_norm
    torch.testing.assert_close(classifier.normalize.mean.flatten(), torch.tensor([0.1, 0.2, 0.3]))
    settings = ClassifierSettings(backbone="resnet10t", weights="none", backbone_args={"stem_width": 16})
    assert new_classifier(settings, 3).backbone.conv1[0].out_channels == 16 * 3 // 4
    segmenter = new_segmenter(SEGMENTER.model_copy(update={"stride": 8, "std": (0.5, 0.5, 0.25)}), 3)
    assert segmenter.freeze_batch_norm and segmenter.normalize.std.flatten().tolist() == [0.5, 0.5, 0.25]
    with torch.no_grad():
        assert segmenter.eval().pretrained_half()(torch.rand(1, 3, 64, 64))[-1].shape[2:] == (8, 8)


def test_crops_that_do_not_suit_the_network():
    vit = new_classifier(ClassifierSettings(backbone="test_vit", weights="none"), 3)
    check_crop(vit, 48, "train_cls.crop")
    with pytest.raises(ConfigError, match=r"^train_cls.crop = 40 does not suit the network: .*divisible by patch size"):
        check_crop(vit, 40, "train_cls.crop")
    segmenter = new_segmenter(SEGMENTER, 3)
    check_crop(segmenter, 80, "train_seg.crop")
    with pytest.raises(ConfigError, match=r"^train_seg.crop = 50 does not suit the network: .*divisible by 16"):
        check_crop(segmenter, 50, "train_seg.crop")
    check_crop(new_classifier(CLASSIFIER, 3), 50, "train_cls.crop")


@pytest.mark.parametrize("switch", [{"border": 0.1}, {"propagate": "features"}])
def test_a_comparison_of_more_stages_than_there_are_names_its_settings(switch, monkeypatch):
    monkeypatch.setattr("cam_pipeline.cams.multi_scale.feature_levels", lambda backbone: [None] * 3)
    network = new_classifier(CLASSIFIER, len(CLASSES))
    with pytest.raises(ConfigError, match=r"cam\.border = .*, cam\.walk_levels = 4: .* 4 stages are to be compared"):
        cam_reading(CamSettings(walk_levels=4, **switch), network)
    assert cam_reading(CamSettings(walk_levels=3, **switch), network).compares
    assert not cam_reading(CamSettings(walk_levels=4), network).compares
