"""`predict` of 200 photographs against the bare work: read, forward pass, write, one image after the other.

Drawn scenes of 375 x 500 pixels as JPEG files; DeepLabV3+ on MobileNetV2, 21 labels, random weights. The bare work
writes the same label maps as plain PNG files. The two alternate in chunks, so that both meet the same machine.
"""

import tempfile
import time
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image

from cam_pipeline.config import Config
from cam_pipeline.data.demo.scenes import draw_scene
from cam_pipeline.data.grid import grid_size, resize_to_grid, to_tensor
from cam_pipeline.models.placing import image_batch, place
from cam_pipeline.models.segmenter import Segmenter, build_segmenter
from cam_pipeline.prediction.image_files import find_images
from cam_pipeline.prediction.predictor import Predictor
from cam_pipeline.report.predictions import predict_files

IMAGES, CHUNK, SIZE, LABELS = 200, 25, (375, 500), 21
AT_MOST = 1.15


@torch.inference_mode()
def bare(segmenter: Segmenter, files: list[Path], folder: Path, config: Config) -> None:
    for path in files:
        with Image.open(path) as image:
            pixels = np.asarray(image.convert("RGB"))
        grid = grid_size(*SIZE, segmenter.multiple, config.segmenter.max_side)
        batch = image_batch(resize_to_grid(to_tensor(pixels), grid, segmenter.multiple)[None], torch.device("cpu"))
        logits = F.interpolate(segmenter(batch).float(), SIZE, mode="bilinear", align_corners=False)[0]
        Image.fromarray(logits.max(dim=0).indices.to(torch.uint8).numpy()).save(folder / f"{path.stem}.png")


def main() -> None:
    torch.manual_seed(0)
    config = Config()
    segmenter = build_segmenter("deeplabv3plus", "mobilenetv2_100", LABELS).eval()
    place(segmenter, torch.device("cpu"))
    classes = ["background", *(f"class {number}" for number in range(1, LABELS))]
    spent = {"bare": 0.0, "predict": 0.0}
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        files = []
        for number in range(IMAGES):
            files.append(root / f"{number:03d}.jpg")
            Image.fromarray(draw_scene(np.random.default_rng(number), (1, 2), SIZE)[0]).save(files[-1], quality=90)
        ways = {
            "bare": lambda part, to: bare(segmenter, part, to, config),
            "predict": lambda part, to: predict_files(
                Predictor(segmenter, config),
                find_images([str(path) for path in part], to),
                to,
                classes,
                made_by="bench",
                max_pixels=config.data.max_pixels,
            ),
        }
        for way, work in ways.items():
            (root / way).mkdir()
            work(files[:2], root / way)  # warms up
        for start in range(0, IMAGES, CHUNK):
            for way, work in ways.items():
                to = root / way / str(start)
                to.mkdir()
                began = time.perf_counter()
                work(files[start : start + CHUNK], to)
                spent[way] += time.perf_counter() - began
    threads = torch.get_num_threads()
    print(f"predict, {IMAGES} photographs of {SIZE[0]} x {SIZE[1]}, CPU, {threads} threads, seconds in all")
    share = spent["predict"] / spent["bare"]
    print(f"  bare {spent['bare']:.1f}, predict {spent['predict']:.1f} = {share:.2f}   (target: at most {AT_MOST})")


if __name__ == "__main__":
    main()
