"""CAM extraction against pytorch-grad-cam, and the size of cams.h5 against plain arrays.

Both sides read the same network (MobileNetV2 at stride 16, random weights) over the same images in memory, scales,
flips and classes. The peer gets what its interface can batch: the classes of an image. The two
alternate over parts of the images, so that both meet the same machine.
"""

import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from pytorch_grad_cam import GradCAM
from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget
from torch import Tensor, nn

from cam_pipeline.cams.multi_scale import read_maps
from cam_pipeline.cams.reading import CamReading
from cam_pipeline.config import DataSettings
from cam_pipeline.data.batches import same_size_batches
from cam_pipeline.data.demo.synthetic import generate
from cam_pipeline.data.grid import grid_size, resize_to_grid, to_tensor
from cam_pipeline.data.images import read_image
from cam_pipeline.data.readers import load_table
from cam_pipeline.models.classifier import Classifier, build_classifier
from cam_pipeline.models.placing import place
from cam_pipeline.ops.cam import classifier_cam
from cam_pipeline.store.cams import StoredCam, cam_record
from cam_pipeline.store.hdf5 import artefact_attributes
from cam_pipeline.store.parts import PartWriter

IMAGES, SIZE, SCALES, BATCH = 64, (240, 320), (0.5, 1.0, 1.5, 2.0), 16
PARTS = 4


class Logits(nn.Module):
    """What pytorch-grad-cam wants of a network: images in, logits out."""

    def __init__(self, classifier: Classifier) -> None:
        super().__init__()
        self.classifier = classifier

    def forward(self, images: Tensor) -> Tensor:
        return self.classifier(images).logits


def ours(classifier: Classifier, images: list[Tensor], class_ids: list[tuple[int, ...]], device: str) -> list[Tensor]:
    """As the stage `extract_cams`: images of one size share a pass, the maps of the present classes are kept."""
    found: list[Tensor] = [torch.empty(0)] * len(images)
    grids = [(image.shape[-2] // classifier.stride, image.shape[-1] // classifier.stride) for image in images]
    for batch in same_size_batches(grids, BATCH):
        stacked = torch.stack([images[i] for i in batch]).to(device).contiguous(memory_format=torch.channels_last)
        maps = read_maps(classifier, stacked, CamReading(scales=SCALES, flip=True)).maps
        for i, cam in zip(batch, maps.cpu(), strict=True):
            found[i] = cam[[class_id - 1 for class_id in class_ids[i]]]
    return found


def peer(gradcam: GradCAM, images: list[Tensor], class_ids: list[tuple[int, ...]], device: str) -> list[Tensor]:
    """The same through pytorch-grad-cam: one call for an image, scale and flip, with all present classes."""
    found = []
    for image, present in zip(images, class_ids, strict=True):
        targets = [ClassifierOutputTarget(class_id - 1) for class_id in present]
        total: Any = 0
        for scale in SCALES:
            size = [round(side / 16 * scale) * 16 for side in image.shape[-2:]]
            scaled = F.interpolate(image[None].to(device), size, mode="bilinear", align_corners=False)
            for flip in (False, True):
                view = (scaled.flip(-1) if flip else scaled).expand(len(present), -1, -1, -1).contiguous()
                maps = torch.from_numpy(gradcam(input_tensor=view, targets=targets))[None]
                maps = F.interpolate(maps, image.shape[-2:], mode="bilinear", align_corners=False)[0]
                total = total + (maps.flip(-1) if flip else maps)
        found.append(total)
    return found


def seconds(work: Callable[[], Any], device: str) -> float:
    """Wall time of one call."""
    started = time.perf_counter()
    work()
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - started


@torch.no_grad()
def agreement(classifier: Classifier, gradcam: GradCAM, image: Tensor, present: tuple[int, ...], device: str) -> float:
    """Least correlation of the two sides' maps of one view, where they show the same: both compute one thing."""
    features = classifier(image[None].to(device)).features
    maps = classifier_cam(features, classifier.head.weight)[0].relu().cpu()
    correlations = []
    for class_id in present:
        with torch.enable_grad():
            other = gradcam(input_tensor=image[None], targets=[ClassifierOutputTarget(class_id - 1)])
        mine = F.interpolate(maps[None, None, class_id - 1], image.shape[-2:], mode="bilinear", align_corners=False)
        if mine.any():
            correlations.append(float(np.corrcoef(mine.flatten(), other.flatten())[0, 1]))
    return min(correlations, default=1.0)


def bytes_per_image(maps: list[Tensor], class_ids: list[tuple[int, ...]], sizes: list[tuple[int, int]]) -> list[float]:
    """Mean bytes of an image in cams.h5, and of its present classes as float32 .npy at image size."""
    names = [f"{i:04d}" for i in range(len(maps))]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "cams.h5"
        writer = PartWriter(path, "cams", artefact_attributes(("a",), "", ""), [names])
        facts = zip(names, maps, class_ids, sizes, strict=True)
        writer.write(0, [cam_record(StoredCam(name, cam, ids, size)) for name, cam, ids, size in facts])
        writer.join(names)
        stored = path.stat().st_size
        plain = 0
        for ids, size in zip(class_ids, sizes, strict=True):
            np.save(Path(folder) / "plain.npy", np.zeros((len(ids), *size), dtype=np.float32))
            plain += (Path(folder) / "plain.npy").stat().st_size
    return [stored / len(maps), plain / len(maps)]


def main() -> None:
    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.manual_seed(0)
    classifier = build_classifier("mobilenetv2_100", 6, stride=16).eval()
    place(classifier, torch.device(device))
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder) / "data"
        generate(root, train=IMAGES, val=1, size=SIZE)
        samples = load_table(DataSettings(root=root)).split("train")
        pictures = [to_tensor(read_image(sample.image)) for sample in samples]
    class_ids = [sample.class_ids or () for sample in samples]
    sizes = [(picture.shape[-2], picture.shape[-1]) for picture in pictures]
    images = [
        resize_to_grid(picture, grid_size(*size, 16, 1024), 16) for picture, size in zip(pictures, sizes, strict=True)
    ]
    gradcam = GradCAM(model=Logits(classifier), target_layers=[classifier.backbone.bn2])
    mine = ours(classifier, images, class_ids, device)  # also warms up
    peer(gradcam, images[:4], class_ids[:4], device)
    times: dict[str, list[float]] = {"ours": [], "peer": []}
    for part in range(PARTS):
        some, shown = images[part::PARTS], class_ids[part::PARTS]
        times["ours"].append(seconds(lambda: ours(classifier, some, shown, device), device))  # noqa: B023 (called at once)
        times["peer"].append(seconds(lambda: peer(gradcam, some, shown, device), device))  # noqa: B023
    rate = {side: IMAGES / sum(values) for side, values in times.items()}
    ratios = [other / own for own, other in zip(times["ours"], times["peer"], strict=True)]
    print(f"CAM extraction, {IMAGES} generated images of about {SIZE[0]} x {SIZE[1]}, 1 to 3 classes, scales", end=" ")
    print(f"{SCALES} and flip, MobileNetV2 at stride 16, {device}, {torch.get_num_threads()} threads")
    print(f"  cam-pipeline      {rate['ours']:7.2f} images/s")
    print(f"  pytorch-grad-cam  {rate['peer']:7.2f} images/s")
    print(f"  ratio             {rate['ours'] / rate['peer']:7.2f}   (target: 2 on the CPU, 10 with CUDA)", end="")
    print(f"; of the parts: {min(ratios):.2f} to {max(ratios):.2f}")
    alike = min(agreement(classifier, gradcam, images[i], class_ids[i], device) for i in range(8))
    print(f"  least correlation of the two sides' maps of one view: {alike:.4f}")
    noise = [torch.rand_like(cam) for cam in mine]  # does not compress: no trained network gives larger records
    stored, plain = bytes_per_image(noise, class_ids, sizes)
    print(f"cams.h5: at most {stored:,.0f} bytes an image; float32 .npy at image size: {plain:,.0f}")
    print(f"  ratio             1 / {plain / stored:.0f}   (target: at most 1 / 20)")


if __name__ == "__main__":
    main()
