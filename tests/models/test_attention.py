import pytest
import timm
import torch
from torch import nn

from cam_pipeline.errors import ConfigError
from cam_pipeline.models.attention import Affinity, AttentionTap, NoAttention, attention_hooked, block_indices
from cam_pipeline.models.classifier import build_classifier

SHALLOW = {"depth": 3}
FAMILIES = [  # name, arguments, prefix tokens
    ("vit_tiny_patch16_224", SHALLOW, 1),
    ("deit_tiny_distilled_patch16_224", SHALLOW, 2),
    ("vit_small_patch14_reg4_dinov2", SHALLOW, 5),
    ("vit_tiny_r_s16_p8_224", SHALLOW, 1),  # hybrid
    ("eva02_tiny_patch14_224", SHALLOW, 1),  # rotary positions
    ("vit_small_patch16_dinov3", SHALLOW, 5),
    ("vit_little_patch16_reg4_gap_256", SHALLOW, 4),  # registers, but no class token
]


def build(name, arguments=None, **more):
    torch.manual_seed(0)
    return build_classifier(name, 3, arguments=arguments, **more).eval()


@pytest.fixture(scope="module", params=FAMILIES, ids=lambda family: family[0])
def family(request):
    name, arguments, prefix_tokens = request.param
    classifier = build(name, arguments)
    assert classifier.prefix_tokens == prefix_tokens
    side = classifier.stride
    return classifier, torch.rand(2, 3, 2 * side, 3 * side, generator=torch.Generator().manual_seed(1))


def traces(network):
    """What a context must put back: hooks, fused attention, mode, gradients."""
    return [
        (len(m._forward_hooks), len(m._forward_pre_hooks), getattr(m, "fused_attn", None), m.training)
        for m in network.modules()
    ] + [(p.requires_grad, p.grad) for p in network.parameters()]


def test_maps_of_every_family_are_the_softmax_that_the_network_uses(family):
    classifier, images = family
    before = traces(classifier)
    with torch.no_grad():
        fused = classifier(images)
        with AttentionTap(classifier, heads=True) as tap:
            plain = classifier(images)
            maps = tap.take()
    tokens = classifier.prefix_tokens + 6
    assert len(maps) == 3 and all(attention.shape[0::2] == (2, tokens) for attention in maps)
    for attention in maps:
        torch.testing.assert_close(attention.sum(dim=-1), torch.ones(attention.shape[:-1]), rtol=0, atol=1e-5)
    torch.testing.assert_close(plain.features, fused.features, rtol=1e-4, atol=1e-5)
    assert traces(classifier) == before


def test_map_times_values_is_the_output_of_the_fused_attention():
    classifier = build("vit_tiny_patch16_224", SHALLOW)
    attention = classifier.backbone.blocks[1].attn
    seen = {}
    handles = [
        attention.register_forward_pre_hook(lambda module, inputs: seen.update(tokens=inputs[0])),
        attention.register_forward_hook(lambda module, inputs, output: seen.update(output=output)),
    ]
    images = torch.rand(2, 3, 32, 48)
    with torch.no_grad():
        classifier(images)
        fused = seen["output"]
        with AttentionTap(classifier, [1], heads=True) as tap:
            classifier(images)
            (weights,) = tap.take()
        values = attention.qkv(seen["tokens"]).view(2, 7, 3, 3, 64)[:, :, 2].transpose(1, 2)  # 3 heads of 64
        again = attention.proj((weights @ values).transpose(1, 2).flatten(2))
    for handle in handles:
        handle.remove()
    torch.testing.assert_close(again, fused, rtol=0, atol=1e-5)


def test_heads_are_averaged_and_blocks_chosen(family):
    classifier, images = family
    with (
        torch.no_grad(),
        AttentionTap(classifier, [-1, 0], heads=True) as each,
        AttentionTap(classifier, [0, 2]) as mean,
    ):
        classifier(images)
        assert each.blocks == mean.blocks == [0, 2]
        for heads, average in zip(each.take(), mean.take(), strict=True):
            torch.testing.assert_close(heads.mean(dim=1), average)


def test_only_tapped_blocks_leave_the_fused_attention():
    classifier = build("vit_tiny_patch16_224", SHALLOW)
    with AttentionTap(classifier, [1]):
        assert [block.attn.fused_attn for block in classifier.backbone.blocks] == [True, False, True]
    assert all(block.attn.fused_attn for block in classifier.backbone.blocks)


def test_maps_are_never_those_of_another_input(family):
    classifier, images = family
    with torch.no_grad(), AttentionTap(classifier) as tap:
        with pytest.raises(RuntimeError, match="no forward pass"):
            tap.take()
        classifier(images)
        classifier(images.flip(0))
        last = tap.take()
        with pytest.raises(RuntimeError, match="no forward pass"):
            tap.take()
        classifier(images.flip(0))
        assert all(torch.equal(one, other) for one, other in zip(last, tap.take(), strict=True))


def test_half_a_forward_pass_gives_no_maps():
    classifier = build("vit_tiny_patch16_224", SHALLOW)
    images = torch.rand(1, 3, 32, 32)

    def fail(module, inputs):
        raise ArithmeticError

    with torch.no_grad(), AttentionTap(classifier) as tap:
        classifier(images)
        handle = classifier.backbone.blocks[2].register_forward_pre_hook(fail)
        with pytest.raises(ArithmeticError):
            classifier(images)
        handle.remove()
        with pytest.raises(RuntimeError, match="no forward pass"):
            tap.take()


def test_two_networks_at_once_do_not_mix():
    one, other = build("vit_tiny_patch16_224", SHALLOW), build("vit_tiny_patch16_224", {"depth": 2})
    with torch.no_grad(), AttentionTap(one) as first, AttentionTap(other) as second:
        one(torch.rand(1, 3, 32, 32))
        other(torch.rand(2, 3, 32, 48))
        assert [tuple(a.shape) for a in first.take()] == [(1, 5, 5)] * 3
        assert [tuple(a.shape) for a in second.take()] == [(2, 7, 7)] * 2


def test_an_exception_inside_leaves_the_network_as_it_came():
    classifier = build("vit_tiny_patch16_224", SHALLOW)
    before = traces(classifier)
    with pytest.raises(ArithmeticError), AttentionTap(classifier):
        raise ArithmeticError
    assert traces(classifier) == before


def test_gradients_flow_through_the_maps_and_dropout_is_not_in_them():
    classifier = build("vit_tiny_patch16_224", {"depth": 2, "attn_drop_rate": 0.5}).train()
    with AttentionTap(classifier) as tap:
        classifier(torch.rand(2, 3, 32, 48))
        maps = tap.take()
    torch.testing.assert_close(maps[0].sum(dim=-1), torch.ones(2, 7))
    maps[1].square().sum().backward()
    assert classifier.backbone.blocks[1].attn.qkv.weight.grad.abs().sum() > 0


def test_a_hook_can_put_something_else_in_place():
    classifier = build("vit_tiny_patch16_224", SHALLOW)
    nn.init.normal_(classifier.head.weight)
    images = torch.rand(1, 3, 32, 48)
    with torch.no_grad():
        usual = classifier(images).logits
        with attention_hooked(classifier, [0], lambda block, attention: torch.full_like(attention, 1 / 7)):
            assert not torch.allclose(classifier(images).logits, usual)
        torch.testing.assert_close(classifier(images).logits, usual)


@pytest.mark.parametrize(
    "name", ["test_resnet", "swin_tiny_patch4_window7_224", "test_convnext", "xcit_nano_12_p16_224", "cait_xxs24_224"]
)
def test_networks_without_attention_between_all_tokens_are_refused(name):
    with pytest.raises(NoAttention, match="has no blocks with attention between all tokens"):
        AttentionTap(timm.create_model(name))


def test_a_plain_timm_model_will_do():
    classifier = build("vit_tiny_patch16_224", SHALLOW)
    with torch.no_grad(), AttentionTap(classifier.backbone) as tap:
        classifier(torch.rand(1, 3, 32, 32))
        assert len(tap.take()) == 3


def test_tokens_attend_to_those_like_them():
    """Before the softmax a token is nearest to itself: logits are those of a positive semidefinite product."""
    classifier = build("vit_tiny_patch16_224", {"depth": 2, "qkv_bias": False}, similar_attention=2.0)
    for block in classifier.backbone.blocks:
        queries, keys, values = block.attn.qkv.weight.view(3, 3, 64, 192)
        assert torch.equal(queries, keys) and not torch.equal(queries, values)
        for head in queries:
            torch.testing.assert_close(head @ head.T, 2.0 * torch.eye(64), rtol=0, atol=1e-5)
    usual = build("vit_tiny_patch16_224", {"depth": 2, "qkv_bias": False})
    images = torch.rand(2, 3, 2, 3, generator=torch.Generator().manual_seed(3)).repeat_interleave(16, 2)
    images = images.repeat_interleave(16, 3)
    shares = []
    for network in (classifier, usual):
        with torch.no_grad(), AttentionTap(network, [0]) as tap:
            network(images)
            shares.append(tap.take()[0].diagonal(dim1=1, dim2=2)[:, 1:].mean())
    assert shares[0] > 0.5 > 0.2 > shares[1]


@pytest.mark.parametrize("name", ["deit_tiny_distilled_patch16_224", "vit_small_patch14_reg4_dinov2"])
def test_prefix_tokens_then_start_by_attending_to_everything_alike(name):
    classifier = build(name, {"depth": 2}, similar_attention=2.0)
    side, p = classifier.stride, classifier.prefix_tokens
    with torch.no_grad(), AttentionTap(classifier, [0]) as tap:
        classifier(torch.rand(2, 3, 2 * side, 3 * side))
        (attention,) = tap.take()
    torch.testing.assert_close(attention[:, :p], torch.full((2, p, p + 6), 1 / (p + 6)), rtol=0, atol=1e-5)
    assert (attention[:, p:, p:].diagonal(dim1=1, dim2=2) > 1 / (p + 6)).all()


def test_similar_attention_is_for_transformers_without_weights():
    for name in ("test_resnet", "swin_tiny_patch4_window7_224"):
        with pytest.raises(ConfigError, match=r"classifier\.similar_attention: .*; write 0"):
            build(name, similar_attention=1.0)
    with pytest.raises(ConfigError, match=r"classifier\.similar_attention is a start for a ViT without weights"):
        build("vit_tiny_patch16_224", similar_attention=1.0, weights="vit.pth")


def test_block_indices():
    assert block_indices(4, []) == [0, 1, 2, 3]
    assert block_indices(4, [-1, 0, 3]) == [0, 3]
    with pytest.raises(ValueError, match="there is no block 4: the network has 4, numbered 0 to 3"):
        block_indices(4, [4])
    with pytest.raises(ValueError, match="there is no block -5"):
        block_indices(4, [-5])


def test_affinity_is_the_mean_over_blocks_of_what_patches_give_patches(family):
    classifier, images = family
    p = classifier.prefix_tokens
    affinity = Affinity(p)
    with pytest.raises(RuntimeError, match="no forward pass"):
        affinity.mean  # noqa: B018
    with torch.no_grad(), AttentionTap(classifier, [0, 2]) as tap:
        with attention_hooked(classifier, [0, 2], lambda block, attention: affinity.see(attention)):
            classifier(images)
        maps = tap.take()
    torch.testing.assert_close(affinity.mean, sum(attention[:, p:, p:] for attention in maps) / 2)
    assert affinity.mean.shape == (2, 6, 6) and (affinity.mean.sum(dim=-1) <= 1 + 1e-5).all()
