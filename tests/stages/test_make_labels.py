import numpy as np

from cam_pipeline.config import Config
from cam_pipeline.pipeline import load_stages
from cam_pipeline.stages.make_labels import labelled, loses_class
from cam_pipeline.store.scores import StoredScores


def test_labels_and_confidence_by_hand():
    background = [[0.9, 0.3, 0.6], [0.2, 0.0, 0.5]]
    first, second = [[0.1, 0.6, 0.4], [0.3, 0.0, 0.3]], [[0.0, 0.1, 0.0], [0.5, 1.0, 0.2]]
    scores = StoredScores("a", np.array([background, first, second], dtype=np.float32), (7, 3))
    config = Config.model_validate({"labels": {"low": 0.35, "high": 0.55}})
    record = labelled(scores, config)
    # 0.1 < low; 7 with 0.6; best class 0.4 between; 3 with 0.5 < high; 3 with 1; best class 0.3 < low.
    assert record.name == "a"
    assert record.arrays["labels"].tolist() == [[0, 7, 255], [255, 3, 0]]
    assert record.arrays["confidence"].tolist() == [[230, 153, 153], [128, 255, 128]]
    assert {array.dtype for array in record.arrays.values()} == {np.dtype(np.uint8)}


def test_an_image_that_loses_a_class_is_seen():
    def loses(class_ids, *channels):
        stored = StoredScores("a", np.array([[[score] for score in channel] for channel in channels]), class_ids)
        return loses_class(stored, labelled(stored, Config()))

    assert not loses((), [1.0, 1.0])
    assert not loses((7, 3), [0.1, 0.1], [0.9, 0.0], [0.0, 0.9])
    assert loses((7, 3), [0.1, 0.1], [0.9, 0.9], [0.0, 0.0])
    assert loses((7,), [0.9, 0.9], [0.1, 0.1])


def test_only_the_thresholds_make_it_stale():
    stage = load_stages()["make_labels"]
    assert stage.params == ("labels",) and stage.needs(Config()) == ("refine_cams",)
