"""The preview: labels of a few images at five background scores, which leaves the run alone."""

from pathlib import Path

import pytest
from PIL import Image

from cam_pipeline.config import load_config
from cam_pipeline.errors import StageNotReady
from cam_pipeline.pipeline import Pipeline
from cam_pipeline.report.preview import GAP, TILE, backgrounds, preview


@pytest.mark.parametrize(
    ("own", "drawn"),
    [('"auto"', (0.2, 0.3, 0.4, 0.5, 0.6)), ("0.31", (0.11, 0.21, 0.31, 0.41, 0.51)), ("0.05", None), ("0.99", None)],
)
def test_five_scores_around_that_of_the_config(workspace: Path, own: str, drawn: tuple[float, ...] | None) -> None:
    found = backgrounds(load_config(workspace / "tiny.toml", [f"refine.background={own}"]))
    assert len(set(found)) == 5 and sorted(found) == list(found) and found[0] > 0 and found[-1] < 1
    assert drawn in (None, found)


def test_a_preview_before_the_run(workspace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(workspace)
    pipeline = Pipeline(load_config("tiny.toml"))
    path = pipeline.folder / "preview.png"
    path.parent.mkdir()
    with pytest.raises(StageNotReady, match="add --epochs 1"):
        preview(pipeline, path, 6, None)
    ids = preview(pipeline, path, 6, 1)
    by_id = {sample.id: sample for sample in pipeline.dataset.table.samples}
    shown = {class_id for name in ids for class_id in by_id[name].class_ids or ()}
    assert len(ids) == 6 and len(shown) == len(pipeline.dataset.table.classes)
    with Image.open(path) as picture:
        assert picture.width == GAP + 6 * (TILE + GAP)
    assert pipeline.states(["train_cls"])["train_cls"].kind == "missing"
    assert {one.name for one in path.parent.iterdir()} <= {"preview.png", "digests.json"}
    pipeline.run(["train_cls"])
    before = {one.name: one.read_bytes() for one in path.parent.iterdir() if one.is_file() and one != path}
    assert preview(pipeline, path, 6, None) == ids
    assert before == {one.name: one.read_bytes() for one in path.parent.iterdir() if one.is_file() and one != path}
