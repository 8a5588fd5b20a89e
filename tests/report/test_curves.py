import json

from cam_pipeline.report.curves import trainings


def write(folder, stage, *lines):
    logs = folder / "logs"
    logs.mkdir(exist_ok=True)
    (logs / f"{stage}.jsonl").write_text(
        "\n".join(line if isinstance(line, str) else json.dumps(line) for line in lines)
    )


def test_terms_and_scores_by_epoch(tmp_path):
    write(tmp_path, "train_cls", {"epoch": 1.0, "loss": 2.0, "mAP": 0.25}, {"epoch": 2.0, "loss": 1.0, "F1": 0.5})
    [found] = trainings(tmp_path)
    assert found.stage == "train_cls"
    assert found.losses == {"loss": [(1.0, 2.0), (2.0, 1.0)]}
    assert found.scores == {"mAP": [(1.0, 0.25)], "F1": [(2.0, 0.5)]}


def test_what_is_no_number_is_left_out_and_the_last_of_an_epoch_counts(tmp_path):
    lines = [{"epoch": 1, "loss": float("nan"), "note": "x"}, {"epoch": 1, "loss": 3}, {"epoch": 1, "loss": 4}]
    write(tmp_path, "train_cls", *lines, '{"epoch": 2, "lo', "[1]", {"loss": 5})
    [found] = trainings(tmp_path)
    assert found.losses == {"loss": [(1.0, 4.0)]}


def test_without_logs(tmp_path):
    assert trainings(tmp_path) == []
    write(tmp_path, "train_seg", {"epoch": 1})
    assert trainings(tmp_path) == []
