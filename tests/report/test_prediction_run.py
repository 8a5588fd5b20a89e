from pathlib import Path

import pytest
import torch

from cam_pipeline.config import load_config
from cam_pipeline.errors import OutOfMemory
from cam_pipeline.report import prediction_run as module


def test_too_little_memory_is_one_line_that_names_the_setting(finished: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_room(*_: object, **__: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.chdir(finished)
    monkeypatch.setattr(module, "predict_files", no_room)
    config = load_config("tiny.toml")
    with pytest.raises(
        OutOfMemory, match=r"^predict: .* lower segmenter.max_side \(now 1024\)\. Finished work is kept$"
    ):
        module.predict_with(
            config, [], finished / "out", scales=[1.0], flip=False, crf=False, overlays=False, force=False
        )
