"""Maps from class-token gradients (ACR) and propagation by attention, on grids of 2 x 3 and 3 x 5 patches."""

import pytest
import torch
from torch import nn

from cam_pipeline.cams.classes import class_ranks
from cam_pipeline.cams.multi_scale import multi_scale_cams
from cam_pipeline.cams.reading import CamReading, Propagation
from cam_pipeline.cams.sources import view_maps
from cam_pipeline.models.attention import AttentionTap, NoAttention
from cam_pipeline.models.classifier import build_classifier
from cam_pipeline.ops.acr import MAP_FUNCTIONS, class_token_map, propagate_attention
from cam_pipeline.ops.cam import classifier_cam, normalize_cam

CLASSES = 4


def build(name="deit_tiny_distilled_patch16_224", depth=4, pooling="class_token", **more):
    """Two prefix tokens unless another name is given; weights large enough that attention is not uniform."""
    torch.manual_seed(0)
    classifier = build_classifier(name, CLASSES, arguments={"depth": depth}, pooling=pooling, **more).eval()
    nn.init.normal_(classifier.head.weight)
    for block in classifier.backbone.blocks:
        nn.init.normal_(block.attn.qkv.weight, std=0.1)
    return classifier


@pytest.fixture(scope="module")
def classifier():
    return build()


@pytest.fixture(scope="module")
def images():
    return torch.rand(3, 3, 32, 48, generator=torch.Generator().manual_seed(1))  # 2 x 3 patches


def gradient(mode="grad", start=-2, propagation=None):
    return CamReading("class_token_gradient", mode, start, propagation)


def one_by_one(classifier, images, class_ids, mode, start):
    """The released way: a graph through the whole network, one backward pass for each image and class."""
    maps = images.new_zeros(len(images), CLASSES, 2, 3)
    for number, ids in enumerate(class_ids):
        for class_id in ids:
            with torch.enable_grad(), AttentionTap(classifier, heads=True) as tap:
                logits = classifier(images[number : number + 1]).logits
                attentions = tap.take()[start:]
                gradients = torch.autograd.grad(logits[0, class_id - 1], attentions)
            found = class_token_map(attentions, gradients, mode, classifier.prefix_tokens)
            maps[number, class_id - 1] = found.detach().view(2, 3)
    return maps


@pytest.mark.parametrize("mode", MAP_FUNCTIONS)
@pytest.mark.parametrize("start", [-1, -2, -4])
def test_a_pass_for_each_rank_equals_a_pass_for_each_class_and_image(images, mode, start):
    classifier, images = build().double(), images.double()
    class_ids = [(1, 4), (3,), (1, 2, 3)]
    maps, (_, logits) = view_maps(classifier, images, gradient(mode, start), class_ranks(class_ids, images.device))
    expected = one_by_one(classifier, images, class_ids, mode, start)
    assert maps.shape == (3, CLASSES, 2, 3) and expected.amax() > 1e-4
    torch.testing.assert_close(maps, expected, rtol=0, atol=1e-6)
    with torch.no_grad():
        torch.testing.assert_close(logits, classifier(images).logits)
    absent = torch.tensor([[0, 1, 1, 0], [1, 1, 0, 1], [0, 0, 0, 1]], dtype=torch.bool)
    assert not maps[absent].any() and maps[~absent].flatten(1).any(dim=1).all()


@pytest.mark.parametrize("name", ["vit_small_patch14_reg4_dinov2", "vit_tiny_r_s16_p8_224", "eva02_tiny_patch14_224"])
def test_other_families(name):
    classifier = build_classifier(name, CLASSES, arguments={"depth": 3}, pooling="class_token").eval()
    nn.init.normal_(classifier.head.weight)
    images = torch.rand(2, 3, 2 * classifier.stride, 3 * classifier.stride)
    class_ids = [(2,), (4, 1)]
    maps, _ = view_maps(classifier, images, gradient(), class_ranks(class_ids, images.device))
    expected = one_by_one(classifier, images, class_ids, "grad", -2)
    torch.testing.assert_close(maps, expected, rtol=1e-4, atol=1e-6 * float(expected.amax()))
    assert maps.any()


def test_the_classifier_is_left_as_it_came(images):
    classifier = build().train()
    frozen = classifier.backbone.blocks[0].attn.qkv.weight.requires_grad_(False)
    frozen.grad = torch.ones_like(frozen)
    before = [(m._forward_pre_hooks.copy(), getattr(m, "fused_attn", None), m.training) for m in classifier.modules()]
    flags = [(p.requires_grad, p.grad) for p in classifier.parameters()]
    view_maps(classifier, images, gradient(propagation=Propagation()), class_ranks([(1,)] * 3, images.device))
    after = [(m._forward_pre_hooks, getattr(m, "fused_attn", None), m.training) for m in classifier.modules()]
    assert before == after and torch.is_grad_enabled()
    assert flags == [(p.requires_grad, p.grad) for p in classifier.parameters()]


def test_frozen_parameters_and_no_grad_make_no_difference(classifier, images):
    ranks = class_ranks([(1,), (2, 3), ()], images.device)
    usual, _ = view_maps(classifier, images, gradient(), ranks)
    frozen = build().requires_grad_(False)
    with torch.no_grad():
        maps, (_, logits) = view_maps(frozen, images, gradient(), ranks)
        assert not torch.is_grad_enabled() and not maps.requires_grad and not logits.requires_grad
    torch.testing.assert_close(maps, usual)
    assert not maps[2].any()


def test_an_error_in_the_middle_leaves_the_gradient_mode(images):
    classifier = build()

    def fail(module, inputs):
        raise ArithmeticError

    classifier.backbone.blocks[-1].register_forward_hook(lambda module, inputs, output: fail(module, inputs))
    with torch.no_grad(), pytest.raises(ArithmeticError):
        view_maps(classifier, images, gradient(), class_ranks([(1,)] * 3, images.device))
    assert torch.is_grad_enabled() and all(block.attn.fused_attn for block in classifier.backbone.blocks)


def test_only_the_class_token_of_the_last_block_has_a_gradient(classifier, images):
    """Rows of patches reach no logit through the last block, but through the one before."""
    with AttentionTap(classifier, [-2, -1], heads=True) as tap:
        logits = classifier(images).logits
        gradients = torch.autograd.grad(logits[:, 0].sum(), tap.take())
    assert not gradients[1][:, :, 1:].any() and gradients[1][:, :, 0].any()
    assert gradients[0][:, :, 2:].any()


def test_maps_do_not_depend_on_the_rest_of_the_batch(classifier, images):
    reading = gradient("cam_grad", propagation=Propagation())
    class_ids = [(1, 2), (4,), (3,)]
    together, _ = multi_scale_cams(classifier, images, [1.0, 1.5], True, reading, class_ids)
    for number in range(3):
        alone, _ = multi_scale_cams(
            classifier, images[number : number + 1], [1.0, 1.5], True, reading, [class_ids[number]]
        )
        torch.testing.assert_close(alone[0], together[number], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("propagation", [None, Propagation()])
def test_a_mirrored_image_gives_mirrored_maps(classifier, images, propagation):
    reading, class_ids = gradient(propagation=propagation), [(1, 2), (4,), (3,)]
    maps, _ = multi_scale_cams(classifier, images, [1.0, 2.0], True, reading, class_ids)
    mirrored, _ = multi_scale_cams(classifier, images.flip(-1), [1.0, 2.0], True, reading, class_ids)
    torch.testing.assert_close(mirrored.flip(-1), maps, rtol=1e-4, atol=1e-6)
    assert not torch.allclose(mirrored, maps, rtol=1e-2)


def test_unknown_classes_are_predicted_first(classifier, images):
    maps, chances = multi_scale_cams(classifier, images, [1.0], True, gradient(), [None, (2,), None], threshold=0.6)
    for number in (0, 2):
        predicted = {index for index in range(CLASSES) if chances[number, index] > 0.6} | {
            int(chances[number].argmax())
        }
        assert {index for index in range(CLASSES) if maps[number, index].any()} == predicted
    assert [bool(cam.any()) for cam in maps[1]] == [False, True, False, False]
    everywhere, _ = multi_scale_cams(classifier, images, [1.0], True, gradient(), threshold=1e-9)
    assert everywhere.flatten(2).any(dim=2).all()


def test_a_caller_in_inference_mode_gets_the_same(classifier, images):
    reading, class_ids = gradient(propagation=Propagation()), [(1,), None, (2, 3)]
    usual, chances = multi_scale_cams(classifier, images, [1.0], True, reading, class_ids)
    with torch.inference_mode():
        maps, others = multi_scale_cams(classifier, images.clone(), [1.0], True, reading, class_ids)
        assert torch.is_inference_mode_enabled()
    torch.testing.assert_close(maps, usual)
    torch.testing.assert_close(others, chances)


def test_affinity_numbers():
    affinity, maps = torch.tensor([[[0.6, 0.4], [0.1, 0.9]]]), torch.tensor([[[1.0, 0.5], [0.0, 2.0]]])
    torch.testing.assert_close(propagate_attention(maps, affinity), torch.tensor([[[0.8, 0.55], [0.8, 1.8]]]))
    torch.testing.assert_close(propagate_attention(maps, affinity, steps=2), torch.tensor([[[0.7, 0.575], [1.2, 1.7]]]))
    # Rows that sum to 12 do as those that sum to 1, once they are divided by their sum.
    torch.testing.assert_close(
        propagate_attention(maps, affinity * 12, normalize=True), propagate_attention(maps, affinity)
    )
    torch.testing.assert_close(propagate_attention(maps, 12 * torch.eye(2)[None]), 12 * maps)
    # Min-max normalisation does not see a factor, and takes .8, .55 to 1, 0.
    grid = propagate_attention(maps, affinity)[:, :1].unflatten(2, (1, 2))
    torch.testing.assert_close(normalize_cam(grid, "minmax"), torch.tensor([[[[1.0, 0.0]]]]), rtol=0, atol=1e-4)
    spread = propagate_attention(maps, 12 * torch.eye(2)[None]).unflatten(2, (1, 2))
    torch.testing.assert_close(
        normalize_cam(spread, "minmax"), normalize_cam(maps.unflatten(2, (1, 2)), "minmax"), rtol=0, atol=1e-4
    )
    assert torch.equal(propagate_attention(maps, affinity, steps=0), maps)


def test_affinity_refuses():
    with pytest.raises(ValueError, match="do not fit"):
        propagate_attention(torch.rand(2, 1, 3), torch.rand(1, 3, 3))
    with pytest.raises(ValueError, match="do not fit"):
        propagate_attention(torch.rand(1, 1, 3), torch.rand(1, 3, 2))
    with pytest.raises(ValueError, match="steps must not be negative"):
        propagate_attention(torch.rand(1, 1, 3), torch.rand(1, 3, 3), steps=-1)


@pytest.mark.parametrize("source", ["classifier_weights", "class_token_gradient"])
def test_propagation_is_the_affinity_of_the_same_view_times_its_map(classifier, images, source):
    ranks = class_ranks([(1, 2), (4,), (3,)], images.device)
    plain = CamReading(source)
    spread = CamReading(source, propagation=Propagation(blocks=(0, -1), steps=2))
    with torch.no_grad(), AttentionTap(classifier, [0, -1]) as tap:
        features, _ = classifier(images)
        affinity = sum(attention[:, 2:, 2:] for attention in tap.take())
    raw = view_maps(classifier, images, plain, ranks)[0].detach()
    if source == "classifier_weights":
        torch.testing.assert_close(raw, classifier_cam(features, classifier.head.weight), rtol=1e-4, atol=1e-4)
    expected = raw.relu().flatten(2) @ affinity.mT @ affinity.mT / 4
    found = view_maps(classifier, images, spread, ranks)[0].detach()
    torch.testing.assert_close(found.flatten(2), expected, rtol=1e-4, atol=1e-4)


def test_what_a_classifier_does_not_allow_is_said():
    cnn = build_classifier("test_resnet", CLASSES)
    CamReading().check(cnn)
    with pytest.raises(NoAttention):
        gradient().check(cnn)
    with pytest.raises(NoAttention):
        CamReading(propagation=Propagation()).check(cnn)
    patches = build(pooling="patches")
    CamReading(propagation=Propagation()).check(patches)
    with pytest.raises(ValueError, match="not read from the class token"):
        gradient().check(patches)
    with pytest.raises(ValueError, match="there is no block 4"):
        gradient(start=4).check(build())
    with pytest.raises(ValueError, match="there is no block -5"):
        CamReading(propagation=Propagation(blocks=(-5,))).check(patches)


def test_bfloat16_maps_are_close(classifier, images):
    ranks = class_ranks([(1,), (2,), (3,)], images.device)
    usual, _ = view_maps(classifier, images, gradient(propagation=Propagation()), ranks)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        maps, _ = view_maps(classifier, images, gradient(propagation=Propagation()), ranks)
    assert maps.dtype == torch.float32
    assert (maps - usual).abs().max() < 0.1 * usual.max()
