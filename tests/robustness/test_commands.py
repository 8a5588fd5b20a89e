"""What each of the hundreds of commands in these tests imported by itself would take minutes in all."""

from pathlib import Path
from typing import Any

import pytest

PROGRAM = """
import sys
from cam_pipeline.cli import main
before = {name.split(".")[0] for name in sys.modules}
try:
    main()
finally:
    print("late:", *sorted({name.split(".")[0] for name in sys.modules} - before))
"""


@pytest.mark.parametrize("command", ["check-data", "train-cls", "make-cams", "evaluate"])
def test_commands_find_all_libraries_imported(commands: Any, finished: Path, command: str) -> None:
    anew = ["--force"] if command != "check-data" else []
    ended = commands.run(command, "-c", "tiny.toml", *anew, code=PROGRAM, folder=finished)
    assert ended.code == 0, ended.stderr
    assert ended.stdout.splitlines()[-1] == "late:", "add them to IMPORTED_LATE in command_server.py"
