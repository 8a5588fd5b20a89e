"""Trained networks as ONNX files, which run without this package and without torch.

    segmenter.onnx    images -> probabilities (B, 1 + C, H, W), background first
    classifier.onnx   images -> probabilities (B, C) and maps (B, C, h, w): class maps by classifier weights, >= 0

`images` are (B, 3, H, W) uint8 RGB of any size, as image files hold them, so that nobody can scale them wrongly. All
that `predict` does with an image is inside: it is resized to whole cells (`data.grid`), normalised, and the answer is
resized back. torch exports the network alone; the nodes around it are written here, as its exporter cannot express
sizes that are rounded to whole cells.
"""

import contextlib
import io
import json
import logging
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from cam_pipeline.assembly.single_stage import trained_classifier, trained_segmenter
from cam_pipeline.config import Config
from cam_pipeline.data.grid import grid_size, resize_to_grid, to_tensor
from cam_pipeline.data.images import UInt8
from cam_pipeline.errors import LibraryMissing, StageNotReady, UserError
from cam_pipeline.machine.atomic import written_aside
from cam_pipeline.machine.device import is_memory_error
from cam_pipeline.machine.threads import use_threads
from cam_pipeline.models.backbone import reason_of
from cam_pipeline.models.classifier import Classifier
from cam_pipeline.models.hybrid import TrunkFeatures, trunk_of
from cam_pipeline.models.pretrained import PretrainedHalf
from cam_pipeline.models.segmenter import Segmenter
from cam_pipeline.ops.cam import classifier_cam
from cam_pipeline.pipeline import Pipeline
from cam_pipeline.prediction.predictor import Predictor
from cam_pipeline.store.checkpoints import load_metadata
from cam_pipeline.version import __version__

logger = logging.getLogger(__name__)

NETWORKS = ("segmenter", "classifier")
OPSET = 18
LARGEST = 2**31 - 2**20
"""Bytes that a single protobuf file may hold, less some room for the graph."""
TRIED = ((97, 131), (33, 40), (300, 420))
"""Heights and widths of the images on which a file is compared with the network it was made from."""
TOLERANCE = 1e-3
"""A larger difference than this is no rounding error: those of networks that were tried were below 1e-4."""

BEFORE = """
before (uint8[batch, 3, height, width] images) => (float[batch, 3, rows, columns] resized) {
    image_size = Shape <start = 2, end = 4> (images)
    image_sides = Cast <to = 11> (image_size)
    longest_side = ReduceMax <keepdims = 1> (image_sides)
    largest_allowed = Constant <value = double[1] {MAX_SIDE}> ()
    stride = Constant <value = double[1] {STRIDE}> ()
    one_cell = Constant <value = double[1] {1}> ()
    reduction = Div (largest_allowed, longest_side)
    at_most_one = Min (one_cell, reduction)
    cells_for_pixel = Div (at_most_one, stride)
    exact_cells = Mul (image_sides, cells_for_pixel)
    rounded_cells = Round (exact_cells)
    cells = Max (rounded_cells, one_cell)
    resized_sides = Mul (cells, stride)
    zero = Constant <value = float {0}> ()
    half = Constant <value = float {0.5}> ()
    one = Constant <value = float {1}> ()
    last_axis = Constant <value = int64[1] {1}> ()
    HEIGHT
    WIDTH
    width_weights_turned = Transpose <perm = [1, 0]> (width_weights)
    of_bytes = Cast <to = 1> (images)
    white = Constant <value = float {255}> ()
    unit = Div (of_bytes, white)
    of_height = MatMul (height_weights, unit)
    resized = MatMul (of_height, width_weights_turned)
}
"""
"""`grid_size` and `resize_to_grid` as nodes; sides are doubles, as there, so that they are rounded alike."""

WEIGHTS = """
    SIDE_index = Constant <value = int64 {INDEX}> ()
    SIDE_of_image = Gather (image_sides, SIDE_index)
    SIDE_of_resized = Gather (resized_sides, SIDE_index)
    SIDE_before = Cast <to = 1> (SIDE_of_image)
    SIDE_after = Cast <to = 1> (SIDE_of_resized)
    SIDE_scale = Div (SIDE_before, SIDE_after)
    SIDE_reach = Max (SIDE_scale, one)
    SIDE_new = Range (zero, SIDE_after, one)
    SIDE_middles = Add (SIDE_new, half)
    SIDE_centres = Mul (SIDE_middles, SIDE_scale)
    SIDE_centres_in_column = Unsqueeze (SIDE_centres, last_axis)
    SIDE_old = Range (zero, SIDE_before, one)
    SIDE_corner_apart = Sub (SIDE_old, SIDE_centres_in_column)
    SIDE_apart = Add (SIDE_corner_apart, half)
    SIDE_distance = Abs (SIDE_apart)
    SIDE_share = Div (SIDE_distance, SIDE_reach)
    SIDE_closeness = Sub (one, SIDE_share)
    SIDE_raw_weights = Relu (SIDE_closeness)
    SIDE_total = ReduceSum <keepdims = 1> (SIDE_raw_weights, last_axis)
    SIDE_weights = Div (SIDE_raw_weights, SIDE_total)
"""
"""Antialiased bilinear resizing of one side, as a matrix (new, old) in float32, computed as torch does.

Not by ONNX's Resize: few runtimes can antialias, and onnxruntime rounds positions otherwise than torch, by which noise
of 375 x 500 pixels changed probabilities by 1.6e-4.
"""

AFTER = """
after (float[batch, labels, rows, columns] logits, int64[2] image_size)
    => (float[batch, labels, height, width] probabilities)
{
    whole = Resize <axes = [2, 3], mode = "linear">
        (logits, , , image_size)
    probabilities = Softmax <axis = 1> (whole)
}
"""


class _Maps(nn.Module):
    """Class probabilities (B, C) and the positive part of the class maps (B, C, h, w) of images on the grid."""

    def __init__(self, classifier: Classifier) -> None:
        super().__init__()
        self.classifier = classifier

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        features, logits = self.classifier(images)
        return logits.sigmoid(), classifier_cam(features, self.classifier.head.weight).relu()


@dataclass(frozen=True)
class _Network:
    """What is exported: `module` takes images whose sides are multiples of `stride`, and gives `outputs`.

    `key` is the setting of its backbone, `name` its value.
    """

    module: nn.Module
    outputs: Sequence[str]
    stride: int
    max_side: int
    key: str
    name: str
    metadata: dict[str, str]


@dataclass(frozen=True)
class Exported:
    """A file that was written. `difference`: the largest from torch's answer; None: there is no onnxruntime."""

    path: Path
    difference: float | None


def export_onnx(config: Config, folder: Path | None = None, only: Sequence[str] = ()) -> list[Exported]:
    """Write the trained networks of the config's run folder as `<name>.onnx` into `folder` (None: its `export`).

    `only`: names of `NETWORKS`; none: those that are there. With onnxruntime, each file's answers are compared with the
    network's. Raises LibraryMissing without onnx or onnxscript, StageNotReady if a network is not trained, UserError
    for one that cannot be exported, of which nothing is written.
    """
    check_libraries()
    trained = [name for name in NETWORKS if _path(config, name).is_file()]
    for name in only or ([] if trained else NETWORKS[:1]):
        if name not in trained:
            stage = config.predict.network if name == "segmenter" else config.cam.network
            raise StageNotReady(f"{config.folder} holds no {name}. Run: cam-pipeline {stage.replace('_', '-')}")
    for name in () if only else (name for name in NETWORKS if name not in trained):
        logger.info("%s holds no %s, so that is not exported", config.folder, name)
    use_threads(config.run.threads)
    config = Pipeline(config).made_with()
    run = config.run.model_copy(update={"device": "cpu", "precision": "float32"})
    config = config.model_copy(update={"run": run})
    return [_exported(config, name, (folder or config.folder / "export") / f"{name}.onnx") for name in only or trained]


def check_libraries() -> None:
    """Raise LibraryMissing unless the libraries that write ONNX files are installed."""
    lacking = [name for name in ("onnx", "onnxscript") if find_spec(name) is None]
    if lacking:
        raise LibraryMissing(
            f"{' and '.join(lacking)}, which export needs, cannot be imported; pip install 'cam-pipeline[onnx]'"
        )


def _path(config: Config, name: str) -> Path:
    return config.segmenter_path if name == "segmenter" else config.classifier_path


@torch.inference_mode(False)
def _exported(config: Config, name: str, path: Path) -> Exported:
    stored = load_metadata(_path(config, name))
    classes = tuple(stored["classes"])
    if name == "segmenter":
        segmenter = trained_segmenter(config, _path(config, name), classes)
        network = _segmenter(segmenter, config, classes)
    else:
        classifier = trained_classifier(config, _path(config, name), classes)
        network = _classifier(classifier, config, classes)
    facts = {"fingerprint": str(stored.get("fingerprint", "")), "cam-pipeline": __version__}
    content = _model(network, network.metadata | facts).SerializeToString()
    difference = None if find_spec("onnxruntime") is None else _checked(network, content, config)
    with written_aside(path) as aside:
        aside.write_bytes(content)
    return Exported(path, difference)


def _segmenter(segmenter: Segmenter, config: Config, classes: Sequence[str]) -> _Network:
    settings = config.segmenter
    facts = _facts(segmenter, ("background", *classes))
    return _Network(
        segmenter,
        ("logits",),
        segmenter.multiple,
        settings.max_side,
        "segmenter.encoder",
        settings.encoder,
        facts | {"starts_from": _start(segmenter.pretrained_half(), settings.weights)},
    )


def _classifier(classifier: Classifier, config: Config, classes: Sequence[str]) -> _Network:
    settings = config.classifier
    if config.cam.source != "classifier_weights":
        logger.warning(
            "cam.source = '%s' needs gradients, which an ONNX file does not have: its maps are those by classifier "
            "weights",
            config.cam.source,
        )
    start = _start(classifier.backbone, settings.weights)
    if isinstance(trunk := trunk_of(classifier.backbone), TrunkFeatures):
        start += f"; trunk: {_start(trunk.network, settings.trunk_weights)}"
    own = {"starts_from": start, "stride": str(classifier.stride), "offset": str(classifier.offset)}
    return _Network(
        _Maps(classifier),
        ("probabilities", "maps"),
        classifier.stride,
        config.cam.max_side,
        "classifier.backbone",
        settings.backbone,
        _facts(classifier, classes) | own,
    )


def _facts(network: PretrainedHalf, names: Sequence[str]) -> dict[str, str]:
    """What a file says about its network's input and output; `names` are those of the output's channels."""
    normalize: Any = network.normalize
    return {
        "classes": json.dumps([*names], ensure_ascii=False),
        "mean": json.dumps([round(value, 6) for value in normalize.mean.flatten().tolist()]),
        "std": json.dumps([round(value, 6) for value in normalize.std.flatten().tolist()]),
    }


def _start(network: Any, weights: str) -> str:
    """The weights that training started from: a file's name, "none", or timm's name for them and their licence."""
    if weights != "pretrained":
        return Path(weights).name
    facts = network.pretrained_cfg
    name = f"{facts.get('architecture', '')}.{facts.get('tag', '')}".strip(".")
    return f"{name} (licence: {facts.get('license') or 'not known'})"


def _model(network: _Network, metadata: dict[str, str]) -> Any:
    """The network with the nodes before and after it, as an onnx.ModelProto."""
    import onnx

    size = sum(value.numel() * value.element_size() for value in network.module.state_dict().values())
    if size > LARGEST:
        raise UserError(
            f"{network.key} '{network.name}' cannot be exported to ONNX: it is larger than the 2 GB of an ONNX file"
        )
    model = _core(network)
    graph = model.graph
    before = onnx.parser.parse_graph(
        BEFORE.replace("MAX_SIDE", str(network.max_side))
        .replace("STRIDE", str(network.stride))
        .replace("HEIGHT", WEIGHTS.replace("SIDE", "height").replace("INDEX", "0"))
        .replace("WIDTH", WEIGHTS.replace("SIDE", "width").replace("INDEX", "1"))
    )
    nodes, outputs = [*before.node, *graph.node], [*graph.output]
    if "logits" in network.outputs:
        after = onnx.parser.parse_graph(AFTER)
        nodes, outputs = [*nodes, *after.node], [*after.output]
    for node in nodes:  # torch notes where in its sources and in ours each node comes from, with paths of this machine
        node.ClearField("metadata_props")
        node.ClearField("doc_string")
    found = onnx.helper.make_graph(nodes, "cam-pipeline", [*before.input], outputs, [*graph.initializer])
    whole = onnx.helper.make_model(
        found,
        opset_imports=model.opset_import,
        functions=model.functions,
        ir_version=model.ir_version,
        producer_name="cam-pipeline",
        producer_version=__version__,
    )
    onnx.helper.set_model_props(whole, metadata)
    onnx.checker.check_model(whole)
    return whole


def _core(network: _Network) -> Any:
    """The network alone, from `resized`, as an onnx.ModelProto. Raises UserError if torch cannot export it."""
    batch, rows, columns = (torch.export.Dim(name, min=1) for name in ("batch", "rows", "columns"))
    shapes = ({0: batch, 2: network.stride * rows, 3: network.stride * columns},)
    # Only its shape is used. A Swin takes other paths for images smaller than its windows, and torch would keep these.
    example = torch.zeros(2, 3, 9 * network.stride, 11 * network.stride)
    try:
        with _silent():
            program = torch.onnx.export(
                network.module,
                (example,),
                dynamo=True,
                dynamic_shapes=shapes,
                input_names=["resized"],
                output_names=[*network.outputs],
                opset_version=OPSET,
                verbose=False,
            )
    except Exception as error:  # of any kind: the code of hundreds of models
        if is_memory_error(error):
            raise
        raise UserError(
            f"{network.key} '{network.name}' cannot be exported to ONNX by torch {torch.__version__}: "
            f"{reason_of(error.__cause__ if isinstance(error.__cause__, Exception) else error)}"
        ) from error
    assert program is not None
    return program.model_proto


@contextlib.contextmanager
def _silent() -> Iterator[None]:
    """Inside, what torch's exporter prints, logs and warns of is dropped."""
    before = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


def _checked(network: _Network, content: bytes, config: Config) -> float:
    """The largest difference between a file's answers and torch's. Raises UserError for one that is too large."""
    random = np.random.default_rng(0)
    images = [random.integers(0, 256, (*size, 3), np.uint8) for size in TRIED]
    cannot = f"{network.key} '{network.name}' cannot be exported to ONNX"
    try:
        found = [_difference(content, pixels, _expected(network, pixels, config)) for pixels in images]
    except Exception as error:  # onnxruntime has an error of its own for each of its codes
        if is_memory_error(error):
            raise
        raise UserError(f"{cannot}: onnxruntime cannot run the file: {reason_of(error)}") from error
    difference = float(np.max(found))  # NaN if one is
    if not difference <= TOLERANCE:
        raise UserError(f"{cannot}: the file's answer differs from the network's by {difference:.1g}")
    return difference


@torch.inference_mode()
def _expected(network: _Network, pixels: UInt8, config: Config) -> list[Any]:
    """torch's answers to one image, each as an array with a batch of one."""
    if isinstance(network.module, Segmenter):
        return [Predictor(network.module, config).probabilities(pixels)[None].numpy()]
    grid = grid_size(pixels.shape[0], pixels.shape[1], network.stride, network.max_side)
    answers = network.module(resize_to_grid(to_tensor(pixels), grid, network.stride)[None])
    return [answer.numpy() for answer in answers]


def _difference(content: bytes, pixels: UInt8, expected: Sequence[Any]) -> float:
    """The largest difference of a file's answers from those expected; above 1, as a share of the largest value."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4  # what it prints comes as an exception, too
    session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    found = session.run(None, {"images": np.ascontiguousarray(pixels.transpose(2, 0, 1))[None]})
    apart = [
        np.abs(ours - theirs).max() / max(1.0, np.abs(theirs).max())
        for ours, theirs in zip(found, expected, strict=True)
    ]
    return float(np.max(apart))
