"""Runs `cam-pipeline` commands for the tests, each in a process of its own that begins with everything imported.

Importing torch takes seconds, and the tests of resume need many processes. This program imports once and forks. It
reads one JSON request a line from stdin and answers with one JSON line on stdout; `CommandServer` in commands.py is
the other end. A request holds the arguments of a command, or the `code` of another program. It may set environment
variables and attributes (`patch`: smaller parts, say) and plant a signal (`signal_at`): a kill then falls between two
given statements, not somewhere near them.
"""

import atexit
import contextlib
import gc
import json
import os
import pkgutil
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable
from importlib import import_module
from typing import Any, NoReturn

import cam_pipeline
import cam_pipeline.cli
from cam_pipeline.pipeline import load_stages

SECONDS_BETWEEN_LOOKS = 0.005
IMPORTED_LATE = (
    "defusedxml.ElementTree", "matplotlib", "pycocotools.mask", "rich._emoji_codes", "segmentation_models_pytorch",
    "timm", "torch._dynamo.exc", "torch.distributed.rendezvous", "torchvision.transforms.v2",
)  # fmt: skip
"""What commands import in the middle of their work; test_commands.py tells what is missing here."""
NOT_EVERYWHERE = ("pydensecrf.densecrf", "torch.utils.serialization")
"""The same: an extra, and what torch has since 2.7."""


def attribute(dotted: str) -> tuple[Any, str]:
    """The module or class that holds `package.module.name`, and the name."""
    path, _, name = dotted.rpartition(".")
    try:
        return import_module(path), name
    except ModuleNotFoundError:
        owner, inner = attribute(path)
        return getattr(owner, inner), name


def plant_signal(function: str, send: str, holds: str = "", call: int = 1, group: bool = False) -> None:
    """Send a signal to this process, or its group, just before the `call`-th call whose first argument holds a text."""
    owner, name = attribute(function)
    original: Callable[..., Any] = getattr(owner, name)
    seen = 0

    def with_signal(*arguments: Any, **named: Any) -> Any:
        nonlocal seen
        seen += not holds or holds in str(arguments[0] if arguments else "")
        if seen == call:
            seen += 1
            number = signal.Signals[send]
            os.killpg(os.getpgrp(), number) if group else os.kill(os.getpid(), number)
        return original(*arguments, **named)

    setattr(owner, name, with_signal)


def become_command(request: dict[str, Any]) -> NoReturn:
    """Turn this forked process into the command.

    It ends as the console script does, threads and exit handlers included, but for the last step: taking all modules
    apart would cost a second.
    """
    os.setpgid(0, 0)
    signal.signal(signal.SIGINT, signal.default_int_handler)  # as from a terminal, wherever the tests themselves run
    os.chdir(request["folder"])
    os.environ.update(request["environment"])
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    for number, path in ((1, request["stdout"]), (2, request["stderr"])):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
    for dotted, value in request["patch"].items():
        owner, name = attribute(dotted)
        assert hasattr(owner, name), f"nothing to patch: {dotted}"
        setattr(owner, name, value)
    if request["signal_at"]:
        plant_signal(**request["signal_at"])
    sys.argv = ["cam-pipeline", *request["arguments"]]
    code = 1
    try:
        if request["code"]:
            exec(request["code"], {"__name__": "__main__"})
            raise SystemExit
        cam_pipeline.cli.main()
    except SystemExit as ended:
        code = ended.code if isinstance(ended.code, int) else int(ended.code is not None)
        end_threads_and_run_exit_handlers()
    except BaseException:
        traceback.print_exc()
        end_threads_and_run_exit_handlers()
    os._exit(code)


def end_threads_and_run_exit_handlers() -> None:
    """What the interpreter does first when it ends; the exception that ended the program is still alive then."""
    threading._shutdown()
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()


def wait(pid: int, seconds: float) -> dict[str, Any]:
    """How a command ended: its exit code (minus the signal that killed it), or that it was stopped or is still busy."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        found, status = os.waitpid(pid, os.WNOHANG | os.WUNTRACED)
        if found and os.WIFSTOPPED(status):
            return {"stopped": True}
        if found:
            kill_group(pid)  # the worker processes of a killed command, if any
            return {"code": os.waitstatus_to_exitcode(status)}
        time.sleep(SECONDS_BETWEEN_LOOKS)
    kill_group(pid)
    os.waitpid(pid, 0)
    return {"late": True}


def kill_group(pid: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(pid, signal.SIGKILL)


def import_everything() -> None:
    """So that no child has to."""
    gc.disable()  # nothing of it is garbage, and looking through it takes half a second
    load_stages()
    own = (found.name for found in pkgutil.walk_packages(cam_pipeline.__path__, "cam_pipeline."))
    for name in (*IMPORTED_LATE, *own):
        if not name.endswith("__main__"):
            import_module(name)
    for name in NOT_EVERYWHERE:
        with contextlib.suppress(ImportError):
            import_module(name)
    import_module("PIL.Image").init()
    gc.freeze()  # it is never collected, so that children share its memory
    gc.enable()


def main() -> None:
    import_everything()
    print(json.dumps("ready"), flush=True)
    running: set[int] = set()
    for line in sys.stdin:
        request = json.loads(line)
        if "wait" in request:
            answer = wait(request["wait"], request["seconds"])
            running -= set() if "stopped" in answer else {request["wait"]}
        else:
            pid = os.fork()
            if not pid:
                become_command(request)
            running.add(pid)
            with contextlib.suppress(OSError):
                os.setpgid(pid, pid)  # also in the child: whichever comes first
            answer = {"pid": pid}
        print(json.dumps(answer), flush=True)
    for pid in running:
        kill_group(pid)


if __name__ == "__main__":
    main()
