"""Mix transformers as backbones, on images of 64 x 96."""

import pytest
import torch

from cam_pipeline.errors import ConfigError, WeightsError
from cam_pipeline.models.attention import AttentionTap
from cam_pipeline.models.backbone import check_name
from cam_pipeline.models.classifier import build_classifier
from cam_pipeline.models.hub import missing
from cam_pipeline.models.levels import LevelTap, feature_levels
from cam_pipeline.models.mit import MIX_TRANSFORMERS, create_mix_transformer
from cam_pipeline.models.pretrained import starting_weights
from cam_pipeline.models.tscd import affinity_blocks, decoder_levels

SMALL = {"embed_dims": [8, 16, 40, 64], "depths": [1, 1, 1, 2]}


def build(**settings):
    torch.manual_seed(0)
    return build_classifier("mit_b0", 3, **{"arguments": SMALL} | settings).eval()


def images():
    return torch.rand(2, 3, 64, 96, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize(("asked", "stride", "grid"), [(0, 32, (2, 3)), (16, 16, (4, 6))])
def test_a_mix_transformer_classifies_and_shows_its_levels_and_attention(asked, stride, grid):
    classifier = build(stride=asked)
    assert (classifier.stride, classifier.prefix_tokens, classifier.width) == (stride, 0, 64)
    assert (
        classifier.offset == (0.5 - stride / 2) / stride
    )  # padded on both sides: cell i is centred at pixel stride * i
    blocks, heads = affinity_blocks(classifier)
    levels = decoder_levels(classifier.backbone)
    assert (blocks, heads) == ([0, 1], 16) and levels == feature_levels(classifier.backbone)
    with AttentionTap(classifier, blocks, heads=True) as seen, LevelTap(classifier.backbone, 0, levels, True) as tap:
        features, logits = classifier(images())
    assert features.shape == (2, 64, *grid) and logits.shape == (2, 3)
    cells = grid[0] * grid[1]
    for attention in seen.take():
        assert attention.shape == (2, 8, cells, cells)
        torch.testing.assert_close(attention.sum(dim=-1), torch.ones(2, 8, cells))
    found = tap.take(grid)
    assert [tuple(one.shape[1:]) for one in found] == [(8, 16, 24), (16, 8, 12), (40, 4, 6), (64, *grid)]
    torch.testing.assert_close(found[-1], features)


def test_features_are_those_of_the_encoder():
    from segmentation_models_pytorch.encoders import encoders

    entry = encoders["mit_b0"]
    encoder = entry["encoder"](**entry["params"] | SMALL).eval()
    network = create_mix_transformer("mit_b0", **SMALL).eval()
    network.load_state_dict(encoder.state_dict())
    torch.testing.assert_close(network(images()), encoder(images())[-1])


def test_a_weights_file_has_the_names_of_the_encoder(tmp_path):
    from segmentation_models_pytorch.encoders import encoders

    entry = encoders["mit_b0"]
    state = entry["encoder"](**entry["params"] | SMALL).state_dict()
    torch.save(state | {"head.weight": torch.zeros(1000, 64)}, tmp_path / "mit.pth")
    classifier = build(weights=str(tmp_path / "mit.pth"), stride=16)
    assert torch.equal(classifier.backbone.state_dict()["block4.1.attn.q.weight"], state["block4.1.attn.q.weight"])


def test_released_weights_are_loaded(monkeypatch):
    from segmentation_models_pytorch import encoders

    entry = encoders.encoders["mit_b0"]
    released = entry["encoder"](**entry["params"] | SMALL)
    monkeypatch.setattr(encoders, "get_encoder", lambda name, weights: released)
    network = create_mix_transformer("mit_b0", pretrained=True, **SMALL)
    assert torch.equal(network.get_submodule("norm4").weight, released.norm4.weight)
    key = "patch_embed1.proj.weight"
    assert torch.equal(network.state_dict()[key], released.state_dict()[key])


def test_weights_that_are_not_here_are_named_before_they_are_fetched(monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.try_to_load_from_cache", lambda *place, **more: None)
    assert "'mit_b1' cannot be loaded" in missing("mit_b1", {})
    with pytest.raises(WeightsError, match="'mit_b0' cannot be loaded"):
        build(weights="pretrained")


def test_names_are_known_and_what_training_starts_from_is_recorded():
    for name in MIX_TRANSFORMERS:
        check_name(name)
    with pytest.raises(ConfigError, match="timm has no model 'mit_b6'"):
        check_name("mit_b6")
    assert starting_weights(build())["names"] == "mit_b0.imagenet"


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"pooling": "class_token"}, "'mit_b0' has no class token"),
        ({"similar_attention": 1.0}, "no common layer"),
        ({"arguments": {"width": 3}}, "does not take these arguments"),
    ],
)
def test_what_a_mix_transformer_cannot_do_is_refused(settings, words):
    with pytest.raises(ConfigError, match=words):
        build(**settings)
