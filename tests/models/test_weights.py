import logging
import pickle

import pytest
import timm
import torch
from safetensors.torch import save_file
from torch import nn

from cam_pipeline.errors import WeightsError
from cam_pipeline.models.weights import load_backbone, read_weights


def create(name="test_resnet", seed=0, **arguments):
    torch.manual_seed(seed)
    return timm.create_model(name, **{"num_classes": 0, **arguments})


def equal(one, other):
    return list(one) == list(other) and all(torch.equal(one[key], other[key]) for key in one)


@pytest.mark.parametrize(
    ("save", "wrap", "prefix"),
    [
        (torch.save, lambda state: state, ""),
        (torch.save, lambda state: state, "module."),
        (torch.save, lambda state: {"state_dict": state, "epoch": 3}, "module."),
        (torch.save, lambda state: {"model": state}, ""),
        (save_file, lambda state: state, ""),
        (save_file, lambda state: state, "module."),
    ],
)
def test_files_of_many_kinds_load(tmp_path, save, wrap, prefix):
    source, target = create(seed=1), create(seed=2)
    path = tmp_path / ("w.pth" if save is torch.save else "w.safetensors")
    save(wrap({prefix + key: value for key, value in source.state_dict().items()}), path)
    assert not equal(target.state_dict(), source.state_dict())
    load_backbone(target, path)
    assert equal(target.state_dict(), source.state_dict())


def test_the_old_classifier_is_left_out_and_named(tmp_path, caplog):
    source, path = create(num_classes=7, seed=1), tmp_path / "w.pth"
    torch.save(source.state_dict(), path)
    target = create(seed=2)
    with caplog.at_level(logging.INFO, "cam_pipeline"):
        load_backbone(target, path)
    assert "not used: fc.bias, fc.weight" in caplog.text
    assert all(torch.equal(value, source.state_dict()[key]) for key, value in target.state_dict().items())


def test_missing_tensors_are_listed_and_nothing_is_loaded(tmp_path):
    state, path = create(seed=1).state_dict(), tmp_path / "w.pth"
    for key in [key for key in state if key.startswith("layer4.0.")]:
        del state[key]
    torch.save(state, path)
    target = create(seed=2)
    before = {key: value.clone() for key, value in target.state_dict().items()}
    with pytest.raises(
        WeightsError, match=r"w\.pth does not fit .* \d+ of \d+ tensors are missing: layer4\.0\.\S+, "
    ) as e:
        load_backbone(target, path)
    assert "and " in str(e.value) and "more" in str(e.value) and "num_batches_tracked" not in str(e.value)
    assert equal(target.state_dict(), before)


def test_tensors_of_another_shape_are_listed(tmp_path):
    state, path = create(seed=1).state_dict(), tmp_path / "w.pth"
    key = next(key for key in state if key.endswith("conv2.weight"))
    wanted = tuple(state[key].shape)
    state[key] = state[key][:, :-1]
    given = tuple(state[key].shape)
    torch.save(state, path)
    with pytest.raises(WeightsError) as caught:
        load_backbone(create(), path)
    assert f"1 tensors have another shape: {key} {given} should be {wanted}" in str(caught.value)


def test_weights_of_another_architecture_do_not_load(tmp_path):
    path = tmp_path / "w.pth"
    torch.save(create("test_convnext").state_dict(), path)
    with pytest.raises(WeightsError, match="tensors are missing"):
        load_backbone(create(), path)


def test_the_batch_counter_of_batch_norm_may_be_missing(tmp_path):
    source, path = create(seed=1).state_dict(), tmp_path / "w.pth"
    torch.save({key: value for key, value in source.items() if not key.endswith("num_batches_tracked")}, path)
    target = create(seed=2)
    load_backbone(target, path)
    assert equal(target.state_dict(), source)


@pytest.mark.parametrize("name", ["test_convnext", "test_resnet", "test_efficientnet"])
def test_keys_of_feature_pyramids_are_found(tmp_path, name):
    source, path = create(name, seed=1), tmp_path / "w.pth"
    torch.save(source.state_dict(), path)
    pyramid = create(name, seed=2, features_only=True)
    if name == "test_convnext":
        assert any(key.startswith("stages_0.") for key in pyramid.state_dict()), "flat keys are what is tested here"
    load_backbone(pyramid, path)
    images = torch.rand(1, 3, 64, 96)
    with torch.no_grad():
        expected = source.eval().forward_intermediates(images, intermediates_only=True)[-1]
        torch.testing.assert_close(pyramid.eval()(images)[-1], expected)


class Malicious:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (open, (str(self.path), "w"))


@pytest.mark.parametrize("write", [torch.save, lambda value, path: path.write_bytes(pickle.dumps(value, protocol=2))])
def test_a_malicious_pickle_is_refused_and_not_executed(tmp_path, write):
    path, mark = tmp_path / "w.pth", tmp_path / "executed"
    write({"weight": torch.zeros(1), "evil": Malicious(mark)}, path)
    with pytest.raises(WeightsError, match=r"w\.pth cannot be read as weights"):
        read_weights(path)
    assert not mark.exists()


def test_files_without_weights_are_named(tmp_path):
    with pytest.raises(WeightsError, match=r"there is no weights file .*gone\.pth"):
        read_weights(tmp_path / "gone.pth")
    whole = tmp_path / "whole.pth"
    torch.save({"weight": torch.zeros(1000)}, whole)
    for name, content in [
        ("half.pth", whole.read_bytes()[:2000]),
        ("empty.pth", b""),
        ("text.pth", b"no weights\n"),
        ("text.safetensors", b"no weights\n"),
        ("empty.safetensors", b""),
    ]:
        (tmp_path / name).write_bytes(content)
        with pytest.raises(WeightsError, match=f"{name} cannot be read as weights") as caught:
            read_weights(tmp_path / name)
        assert "\n" not in str(caught.value)
    for value in ([torch.zeros(1)], {"epoch": 3, "weight": torch.zeros(1)}, torch.zeros(2)):
        torch.save(value, whole)
        with pytest.raises(WeightsError, match="holds something other than named tensors"):
            read_weights(whole)


@pytest.mark.parametrize(
    "spoil", [lambda value: value * float("nan"), lambda value: value.to(torch.complex64), torch.round]
)
def test_weights_that_are_no_finite_real_numbers_are_refused(tmp_path, spoil):
    network = nn.Sequential(nn.Linear(2, 3))
    state = {key: spoil(value) for key, value in network.state_dict().items()}
    if spoil is torch.round:
        state = {key: value.to(torch.int64) for key, value in state.items()}
    torch.save(state, tmp_path / "w.pth")
    with pytest.raises(WeightsError, match="2 tensors hold other than finite real numbers"):
        load_backbone(network, tmp_path / "w.pth")
