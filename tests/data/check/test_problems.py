import logging

import pytest

from cam_pipeline.data.check.problems import MOST, AllProblems, Problems
from cam_pipeline.errors import DataError


def test_a_run_stops_at_the_first_mistake_and_logs_a_few_warnings_of_each_kind_once(caplog):
    problems = Problems()
    for number in range(MOST + 3):
        problems.warn("file left out", f"x{number}\n.txt")
    problems.warn("odd name", "y")
    with pytest.raises(DataError, match=r"^wrong$"):
        problems.report("kind", "wrong")
    with caplog.at_level(logging.WARNING):
        problems.log_warnings()
        problems.log_warnings()
    assert [record.getMessage() for record in caplog.records] == [
        *(f"file left out: x{number} .txt" for number in range(MOST)),
        "file left out: and 3 more; see cam-pipeline check-data",
        "odd name: y",
    ]


def test_a_check_notes_all():
    problems = AllProblems()
    problems.report("kind", "wrong")
    problems.warn("other", "odd")
    assert [one.message for one in problems.errors + problems.warnings] == ["wrong", "odd"]
