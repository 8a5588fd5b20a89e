"""The decoder and the affinity head, on grids that are not square, of every kind of network."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from cam_pipeline.models.attention import AttentionTap, NoAttention
from cam_pipeline.models.classifier import build_classifier
from cam_pipeline.models.hybrid import Trunk
from cam_pipeline.models.levels import LevelTap, NoLevels
from cam_pipeline.models.tscd import AffinityHead, MlpDecoder, affinity_blocks, decoder_levels

CNN = ("resnet10t", {"channels": [8, 16, 24, 32], "stem_width": 8}, {"stride": 16})
SMALL = {"depth": 3, "embed_dim": 24, "num_heads": 3}
NETWORKS = {
    "cnn": CNN,
    "mobile": ("mobilenetv2_050", {}, {"stride": 16}),
    "vit": ("deit_tiny_distilled_patch16_224", {**SMALL, "depth": 6}, {}),
    "shallow vit": ("vit_tiny_patch16_224", {**SMALL, "depth": 1}, {}),
    "hybrid": ("vit_tiny_patch16_224", SMALL, {"stride": 16, "trunk": Trunk(CNN[0], CNN[1], "none")}),
    "mobile hybrid": ("vit_tiny_patch16_224", SMALL, {"stride": 16, "trunk": Trunk("mobilenetv2_050", {}, "none")}),
    "swin": ("swin_tiny_patch4_window7_224", {"depths": (1, 1, 1, 1), "embed_dim": 24, "num_heads": (1, 1, 1, 1)}, {}),
}


def build(kind):
    torch.manual_seed(0)
    name, arguments, more = NETWORKS[kind]
    return build_classifier(name, 2, arguments=arguments, **more)


def images():
    return torch.rand(2, 3, 64, 96, generator=torch.Generator().manual_seed(1))


def drawn(*shapes):
    draw = torch.Generator().manual_seed(0)
    return [torch.randn(2, *shape, generator=draw) for shape in shapes]


@pytest.mark.parametrize(
    ("kind", "shapes"),
    [
        ("cnn", [(8, 16, 24), (16, 8, 12), (24, 4, 6), (32, 4, 6)]),
        ("mobile", [(16, 16, 24), (16, 8, 12), (48, 4, 6), (160, 4, 6)]),
        ("vit", [(24, 4, 6)] * 4),
        ("shallow vit", [(24, 4, 6)]),
        ("hybrid", [(8, 16, 24), (16, 8, 12), (24, 4, 6), (24, 4, 6)]),
        ("mobile hybrid", [(16, 16, 24), (16, 8, 12), (48, 4, 6), (24, 4, 6)]),
        ("swin", [(24, 16, 24), (48, 8, 12), (96, 4, 6), (192, 2, 3)]),
    ],
)
def test_the_levels_of_every_kind_of_network_reach_the_decoder(kind, shapes):
    classifier = build(kind)
    levels = decoder_levels(classifier.backbone)
    decoder = MlpDecoder([level.width for level in levels], 5, width=8)
    with LevelTap(classifier.backbone, classifier.prefix_tokens, levels, graph=True) as tap:
        features, _ = classifier(images())
    found = tap.take(features.shape[-2:])
    assert [tuple(level.shape[1:]) for level in found] == shapes
    logits = decoder(found)
    assert logits.shape == (2, 5, *shapes[0][1:])
    gradients = torch.autograd.grad(logits.square().sum(), found)
    assert all(gradient.abs().sum() > 0 for gradient in gradients) and all(level.requires_grad for level in found)


def test_a_hybrid_gives_its_transformer_last():
    classifier = build("hybrid")
    assert decoder_levels(classifier.backbone)[-1].module is classifier.backbone.blocks[-1]


def test_a_network_without_stages_is_refused():
    with pytest.raises(NoLevels, match="timm does not say"):
        decoder_levels(nn.Sequential(nn.Conv2d(3, 4, 1)))


def test_the_decoder_concatenates_the_deepest_level_first():
    torch.manual_seed(0)
    levels = drawn((3, 6, 9), (5, 3, 4), (7, 3, 4))
    decoder = MlpDecoder([3, 5, 7], 4, width=6).eval()
    for norm in decoder.norms:
        nn.init.normal_(norm.weight)
    parts = [
        F.interpolate(layer(norm(level)), (6, 9), mode="bilinear", align_corners=False)
        for level, norm, layer in zip(levels, decoder.norms, decoder.levels, strict=True)
    ]
    mixed = decoder.batch_norm(decoder.mix(torch.cat(parts[::-1], dim=1))).relu()
    torch.testing.assert_close(decoder(levels), decoder.labels(mixed))


def test_every_level_is_normalised_over_its_channels():
    (level,) = drawn((3, 2, 4))
    decoder = MlpDecoder([3], 2, width=4).eval()
    assert decoder.norms[0](level).mean(dim=1).abs().max() < 1e-6
    torch.testing.assert_close(decoder([level]), decoder([100 * level + 3]), rtol=1e-3, atol=1e-4)


def test_first_answers_are_unsure_and_dropout_is_for_training():
    torch.manual_seed(0)
    levels = drawn((16, 8, 12), (32, 4, 6))
    decoder = MlpDecoder([16, 32], 21, dropout=0.5)
    assert decoder(levels).abs().max() < 2 and not torch.equal(decoder(levels), decoder(levels))
    decoder.eval()
    assert torch.equal(decoder(levels), decoder(levels))


def test_the_decoder_refuses_another_number_of_levels():
    with pytest.raises(ValueError, match="reads 2 levels, not 1"):
        MlpDecoder([3, 5], 2, width=4)(drawn((3, 2, 4)))


# Affinity


def attentions(heads=(2, 3), tokens=7):
    return [torch.softmax(2 * one, dim=-1) for one in drawn(*[(count, tokens, tokens) for count in heads])]


@pytest.mark.parametrize("symmetric", [True, False])
def test_affinity_is_the_sigmoid_of_a_sum_over_heads(symmetric):
    torch.manual_seed(0)
    head = AffinityHead(5, symmetric, prefix_tokens=1)
    nn.init.constant_(head.bias, 0.3)
    scores = torch.cat(attentions(), dim=1)[:, :, 1:, 1:].mul(6).log()
    if symmetric:
        scores = scores + scores.transpose(2, 3)
    found = head(attentions())
    assert found.shape == (2, 6, 6)
    torch.testing.assert_close(found, (head.sum(scores) + 0.3).sigmoid()[:, 0])
    assert torch.allclose(found, found.transpose(1, 2)) == symmetric


def test_even_attention_says_nothing_and_none_is_finite():
    head = AffinityHead(2)
    assert head([torch.full((1, 2, 4, 4), 0.25)]).unique().tolist() == [0.5]
    attention = torch.eye(4).expand(1, 2, 4, 4).clone().requires_grad_()
    head([attention]).sum().backward()
    assert attention.grad.isfinite().all() and head.sum.weight.grad.isfinite().all()


def test_affinity_is_computed_in_float32():
    head, half = AffinityHead(5), [one.bfloat16() for one in attentions()]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = head(half)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, head([one.float() for one in half]))


@pytest.mark.parametrize(
    ("kind", "blocks", "heads"), [("vit", [4, 5], 6), ("shallow vit", [0], 3), ("hybrid", [1, 2], 6)]
)
def test_the_last_blocks_of_a_network_give_its_affinity(kind, blocks, heads):
    classifier = build(kind)
    assert affinity_blocks(classifier) == (blocks, heads)
    head = AffinityHead(heads, prefix_tokens=classifier.prefix_tokens)
    with AttentionTap(classifier, blocks, heads=True) as tap:
        classifier(images())
    affinity = head(tap.take())
    assert affinity.shape == (2, 24, 24)
    affinity.sum().backward()
    assert classifier.backbone.blocks[blocks[0]].attn.qkv.weight.grad.abs().sum() > 0


def test_a_cnn_has_no_affinity():
    with pytest.raises(NoAttention):
        affinity_blocks(build("cnn"))


def test_another_number_of_heads_is_refused():
    with pytest.raises(ValueError, match="reads 4 heads, not 5"):
        AffinityHead(4)(attentions())
