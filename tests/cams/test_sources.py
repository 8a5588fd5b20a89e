"""Maps from class-token gradients (ACR) and propagation by attention, on grids of 2 x 3 and 3 x 5 patches."""

from typing import get_args

import pytest
import torch
from torch import nn

from cam_pipeline.cams.multi_scale import check_reading, read_maps
from cam_pipeline.cams.reading import AttentionPropagation, CamReading
from cam_pipeline.cams.sources import SOURCES, class_token_gradient
from cam_pipeline.config import CamSettings
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


def gradient(mode="grad", start=-2, **more):
    return CamReading(source="class_token_gradient", map_function=mode, start_layer=start, **more)


def test_every_source_can_be_named_in_a_config():
    assert set(get_args(CamSettings.model_fields["source"].annotation)) == set(SOURCES)


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
    maps, (_, logits) = class_token_gradient(classifier, images, gradient(mode, start), class_ids)
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
    maps, _ = class_token_gradient(classifier, images, gradient(), class_ids)
    expected = one_by_one(classifier, images, class_ids, "grad", -2)
    torch.testing.assert_close(maps, expected, rtol=1e-4, atol=1e-6 * float(expected.amax()))
    assert maps.any()


def test_the_classifier_is_left_as_it_came(images):
    classifier = build().train()
    frozen = classifier.backbone.blocks[0].attn.qkv.weight.requires_grad_(False)
    frozen.grad = torch.ones_like(frozen)
    before = [(m._forward_pre_hooks.copy(), getattr(m, "fused_attn", None), m.training) for m in classifier.modules()]
    flags = [(p.requires_grad, p.grad) for p in classifier.parameters()]
    read_maps(classifier, images, gradient(propagation=AttentionPropagation()), [(1,)] * 3)
    after = [(m._forward_pre_hooks, getattr(m, "fused_attn", None), m.training) for m in classifier.modules()]
    assert before == after and torch.is_grad_enabled()
    assert flags == [(p.requires_grad, p.grad) for p in classifier.parameters()]


def test_frozen_parameters_and_no_grad_make_no_difference(classifier, images):
    class_ids = [(1,), (2, 3), ()]
    usual, _ = class_token_gradient(classifier, images, gradient(), class_ids)
    frozen = build().requires_grad_(False)
    with torch.no_grad():
        maps, (_, logits) = class_token_gradient(frozen, images, gradient(), class_ids)
        assert not torch.is_grad_enabled() and not maps.requires_grad and not logits.requires_grad
    torch.testing.assert_close(maps, usual)
    assert not maps[2].any()


def test_an_error_in_the_middle_leaves_the_gradient_mode(images):
    classifier = build()

    def fail(module, inputs):
        raise ArithmeticError

    classifier.backbone.blocks[-1].register_forward_hook(lambda module, inputs, output: fail(module, inputs))
    with torch.no_grad(), pytest.raises(ArithmeticError):
        class_token_gradient(classifier, images, gradient(), [(1,)] * 3)
    assert torch.is_grad_enabled() and all(block.attn.fused_attn for block in classifier.backbone.blocks)


def test_only_the_class_token_of_the_last_block_has_a_gradient(classifier, images):
    """Rows of patches reach no logit through the last block, but through the one before."""
    with AttentionTap(classifier, [-2, -1], heads=True) as tap:
        logits = classifier(images).logits
        gradients = torch.autograd.grad(logits[:, 0].sum(), tap.take())
    assert not gradients[1][:, :, 1:].any() and gradients[1][:, :, 0].any()
    assert gradients[0][:, :, 2:].any()


def test_maps_do_not_depend_on_the_rest_of_the_batch(classifier, images):
    reading = gradient("cam_grad", propagation=AttentionPropagation(), scales=(1.0, 1.5), flip=True)
    class_ids = [(1, 2), (4,), (3,)]
    together = read_maps(classifier, images, reading, class_ids).maps
    for number in range(3):
        alone = read_maps(classifier, images[number : number + 1], reading, [class_ids[number]]).maps
        torch.testing.assert_close(alone[0], together[number], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("propagation", [None, AttentionPropagation()])
def test_a_mirrored_image_gives_mirrored_maps(classifier, images, propagation):
    reading = gradient(propagation=propagation, scales=(1.0, 2.0), flip=True)
    class_ids = [(1, 2), (4,), (3,)]
    maps = read_maps(classifier, images, reading, class_ids).maps
    mirrored = read_maps(classifier, images.flip(-1), reading, class_ids).maps
    torch.testing.assert_close(mirrored.flip(-1), maps, rtol=1e-4, atol=1e-6)
    assert not torch.allclose(mirrored, maps, rtol=1e-2)


def test_unknown_classes_are_predicted_first(classifier, images):
    found = read_maps(
        classifier, images, gradient(flip=True, presence_threshold=0.6, at_least_one=True), [None, (2,), None]
    )
    for number in (0, 2):
        own = found.probabilities[number]
        predicted = {index for index in range(CLASSES) if own[index] > 0.6} | {int(own.argmax())}
        assert {index for index in range(CLASSES) if found.maps[number, index].any()} == predicted
        assert found.class_ids[number] == tuple(1 + index for index in sorted(predicted))
    assert [bool(cam.any()) for cam in found.maps[1]] == [False, True, False, False] and found.class_ids[1] == (2,)
    everywhere = read_maps(classifier, images, gradient(flip=True, presence_threshold=1e-9)).maps
    assert everywhere.flatten(2).any(dim=2).all()


def test_a_caller_in_inference_mode_gets_the_same(classifier, images):
    reading = gradient(propagation=AttentionPropagation(), flip=True)
    class_ids = [(1,), None, (2, 3)]
    usual = read_maps(classifier, images, reading, class_ids)
    with torch.inference_mode():
        found = read_maps(classifier, images.clone(), reading, class_ids)
        assert torch.is_inference_mode_enabled()
    torch.testing.assert_close(found.maps, usual.maps)
    torch.testing.assert_close(found.probabilities, usual.probabilities)


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
    class_ids = [(1, 2), (4,), (3,)]
    plain = CamReading(source=source)
    spread = CamReading(source=source, propagation=AttentionPropagation(blocks=(0, -1), steps=2))
    with torch.no_grad(), AttentionTap(classifier, [0, -1]) as tap:
        features, _ = classifier(images)
        affinity = sum(attention[:, 2:, 2:] for attention in tap.take())
    raw = SOURCES[source].maps_of(classifier, images, plain, class_ids)[0].detach()
    if source == "classifier_weights":
        torch.testing.assert_close(raw, classifier_cam(features, classifier.head.weight), rtol=1e-4, atol=1e-4)
    expected = raw.relu().flatten(2) @ affinity.mT @ affinity.mT / 4
    found = read_maps(classifier, images, spread, class_ids).maps
    torch.testing.assert_close(found.flatten(2), expected, rtol=1e-4, atol=1e-4)


def test_what_a_classifier_does_not_allow_is_said():
    cnn = build_classifier("test_resnet", CLASSES)
    check_reading(CamReading(), cnn)
    with pytest.raises(NoAttention):
        check_reading(gradient(), cnn)
    with pytest.raises(NoAttention):
        check_reading(CamReading(propagation=AttentionPropagation()), cnn)
    patches = build(pooling="patches")
    check_reading(CamReading(propagation=AttentionPropagation()), patches)
    with pytest.raises(ValueError, match="not read from the class token"):
        check_reading(gradient(), patches)
    with pytest.raises(ValueError, match="there is no block 4"):
        check_reading(gradient(start=4), build())
    with pytest.raises(ValueError, match="there is no block -5"):
        check_reading(CamReading(propagation=AttentionPropagation(blocks=(-5,))), patches)


def test_maps_by_gradient_need_the_classes_of_every_image(classifier, images):
    for class_ids in ((), [(1,)]):
        with pytest.raises(ValueError, match="need the classes of each of 3 images"):
            class_token_gradient(classifier, images, gradient(), class_ids)


def test_bfloat16_maps_are_close(classifier, images):
    reading = gradient(propagation=AttentionPropagation())
    class_ids = [(1,), (2,), (3,)]
    usual = read_maps(classifier, images, reading, class_ids).maps
    with torch.autocast("cpu", dtype=torch.bfloat16):
        maps = read_maps(classifier, images, reading, class_ids).maps
    assert maps.dtype == torch.float32
    assert (maps - usual).abs().max() < 0.1 * usual.max()
