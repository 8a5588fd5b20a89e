"""`CommandServer`: `cam-pipeline` commands for the tests, each in a process of its own that needs no time to start."""

import itertools
import json
import os
import select
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

SMALL_PICTURES = {
    "cam_pipeline.report.contact_sheet.TILE_WIDTH": 70,
    "cam_pipeline.report.contact_sheet.TILE_HEIGHT": 60,
}
"""A third of the usual sides: to compress the contact sheet would take longer than all else in `evaluate`."""


@dataclass(frozen=True)
class Ended:
    """How a command ended. `code` is its exit code, minus the number of the signal that killed it; None: stopped."""

    code: int | None
    stdout: str
    stderr: str


class CommandServer:
    """Starts `cam-pipeline` commands in forked processes (see command_server.py); `wait` says how they ended."""

    def __init__(self, logs: Path) -> None:
        self.logs, self.count = logs, itertools.count()
        self.outputs: dict[int, tuple[Path, Path]] = {}
        command = [sys.executable, str(Path(__file__).with_name("command_server.py"))]
        # One thread: floating-point sums then come out alike in every process.
        environment = os.environ | {"OMP_NUM_THREADS": "1", "COLUMNS": "200"}
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment)
        assert self._answer(300) == "ready"

    def start(
        self,
        *arguments: str,
        folder: Path,
        patch: Mapping[str, Any] | None = None,
        signal_at: Mapping[str, Any] | None = None,
        environment: Mapping[str, str] | None = None,
        code: str = "",
    ) -> int:
        """Start a command, or a program of that code, in a folder; its process id, also that of its process group."""
        outputs = [self.logs / f"{next(self.count):04d}.{name}" for name in ("stdout", "stderr")]
        request = {
            "arguments": arguments,
            "code": code,
            "folder": str(folder),
            "patch": SMALL_PICTURES | dict(patch or {}),
            "signal_at": signal_at,
            "environment": environment or {},
            "stdout": str(outputs[0]),
            "stderr": str(outputs[1]),
        }
        pid = int(self._ask(request, 300)["pid"])
        self.outputs[pid] = outputs[0], outputs[1]
        return pid

    def wait(self, pid: int, seconds: float = 300) -> Ended:
        """Wait until a command ends or is stopped; one that takes longer is killed, and the test fails."""
        answer = self._ask({"wait": pid, "seconds": seconds}, seconds + 300)
        stdout, stderr = (path.read_text() for path in self.outputs[pid])
        assert "late" not in answer, f"still running after {seconds} s\n{stdout}\n{stderr}"
        return Ended(answer.get("code"), stdout, stderr)

    def run(self, *arguments: str, folder: Path, **more: Any) -> Ended:
        """Start a command and wait for its end."""
        return self.wait(self.start(*arguments, folder=folder, **more))

    def close(self) -> None:
        """End the server and whatever it started that still runs."""
        assert self.process.stdin and self.process.stdout
        self.process.stdin.close()
        self.process.wait(timeout=60)
        self.process.stdout.close()

    def _ask(self, request: Mapping[str, Any], seconds: float) -> dict[str, Any]:
        assert self.process.stdin
        self.process.stdin.write(json.dumps(request).encode() + b"\n")
        self.process.stdin.flush()
        answer: dict[str, Any] = self._answer(seconds)
        return answer

    def _answer(self, seconds: float) -> Any:
        assert self.process.stdout
        ready, _, _ = select.select([self.process.stdout], [], [], seconds)
        assert ready, "the command server does not answer"
        return json.loads(self.process.stdout.readline())
