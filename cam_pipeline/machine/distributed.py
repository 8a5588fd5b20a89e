"""Several processes on one run, started by torchrun: who is who, how they agree, and how they end together.

Without torchrun there is one process, and torch.distributed is never used. Processes exchange numbers and JSON;
nothing is pickled. See docs/distributed.md.
"""

import itertools
import json
import logging
import os
import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any, TypeVar

from cam_pipeline.errors import ConfigError, Interrupted, PeerLost, SaidByAnother, UserError
from cam_pipeline.machine.interrupt import ignore_from_now_on, listening, raise_if_stopped

if TYPE_CHECKING:
    import torch

logger = logging.getLogger(__name__)

T = TypeVar("T")

NEEDED = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
"""What torchrun puts into the environment of each process."""
JOIN_SECONDS = 300.0
PATIENCE = timedelta(days=20)  # the others wait while the first process refines or validates for hours
LEAVE_SECONDS = 3.0
SECONDS_BETWEEN_LOOKS = 1.0
LOST = re.compile(
    r"gloo|nccl|connection (was )?(closed|reset|refused)|broken pipe|socket|timed out|timeout", re.IGNORECASE
)
"""Words in torch.distributed's errors about a process that is gone; gloo has no error class of its own."""


def world_size() -> int:
    """Number of processes of this run."""
    return _number("WORLD_SIZE", 1)


def rank() -> int:
    """Number of this process, from 0."""
    return _number("RANK", 0) if world_size() > 1 else 0


def local_rank() -> int:
    """This process's number among those on its machine: the number of its GPU."""
    return _number("LOCAL_RANK", rank()) if world_size() > 1 else 0


def local_world_size() -> int:
    """Number of processes on this machine."""
    return _number("LOCAL_WORLD_SIZE", world_size())


def is_first() -> bool:
    """True in the process that decides, publishes results and prints messages."""
    return rank() == 0


def _number(name: str, default: int) -> int:
    text = os.environ.get(name, "")
    return int(text) if text.isdecimal() else default


@dataclass
class _Group:
    """The open connections: `store` notes how the run ended; `patient` carries all exchanges."""

    store: Any
    patient: Any
    looked: float = 0.0


_open: list[_Group] = []
_numbers = itertools.count()


@contextmanager
def group(device: "torch.device") -> Iterator[None]:
    """Join the other processes of this run, which call this, too; all leave together. A single process joins none.

    An error that ends one process ends all, and one of them reports it: the first process that meets a mistake or a
    signal raises it, the others raise SaidByAnother. If a process vanishes, the others raise PeerLost. A process that
    leaves with an error ignores signals: torchrun sends SIGTERM to the rest as soon as one is gone.
    """
    if world_size() == 1:
        yield
        return
    _open.append(_join(device))
    lost = False
    try:
        with listening(_raise_if_ended):
            yield
            meet(stoppable=True)
    except BaseException as error:
        ignore_from_now_on()
        ending = _ending(error)
        lost = isinstance(ending, PeerLost)
        if ending is error:
            raise
        raise ending from error
    finally:
        _leave(world_size() - lost)


def _join(device: "torch.device") -> _Group:
    import torch.distributed as dist  # late: --help and a single process do not need it
    from torch.distributed.distributed_c10d import PrefixStore
    from torch.distributed.rendezvous import rendezvous

    missing = [name for name in NEEDED if not os.environ.get(name)]
    if missing:
        raise ConfigError(
            f"the environment sets WORLD_SIZE={world_size()}, but not {missing[0]}; start the processes with torchrun, "
            "or unset WORLD_SIZE"
        )
    if device.type == "cuda":
        import torch

        torch.cuda.set_device(device)
    try:
        place, *_ = next(rendezvous("env://", timeout=timedelta(seconds=JOIN_SECONDS)))
        store = PrefixStore(f"cam-pipeline-{next(_numbers)}", place)
        dist.init_process_group(
            "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo",
            store=PrefixStore("torch", store),
            rank=rank(),
            world_size=world_size(),
        )
        return _Group(store, dist.new_group(backend="gloo", timeout=PATIENCE))
    except RuntimeError as error:
        where = f"{os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']}"
        reason = str(error).splitlines()[0]
        raise PeerLost(f"the {world_size()} processes of this run did not find each other at {where}: {reason}") from (
            error
        )


def exchange(*values: float, stoppable: bool = False) -> list[tuple[float, ...]]:
    """The values of every process, by rank. All call it with equally many values; it waits for the slowest.

    A signal ends the waiting only if `stoppable`. Raises SaidByAnother if another process ends.
    """
    if world_size() == 1:
        return [values]
    import torch
    import torch.distributed as dist

    mine = torch.tensor(values or (0.0,), dtype=torch.float64)
    gathered = [torch.empty_like(mine) for _ in range(world_size())]
    _wait(dist.all_gather(gathered, mine, group=_open[-1].patient, async_op=True), stoppable)
    return [tuple(row.tolist()[: len(values)]) for row in gathered]


def meet(stoppable: bool = False) -> None:
    """Wait until all processes are here."""
    exchange(stoppable=stoppable)


def first_before_others(work: Callable[[], T]) -> T:
    """The result of `work` in each process. The first process, which may tidy up for all, runs it before the others."""
    if not is_first():
        meet(stoppable=True)
    result = work()
    if is_first():
        meet(stoppable=True)
    return result


def from_first(work: Callable[[], T], stoppable: bool = False) -> T:
    """The result of `work` in the first process, for all. It travels as JSON: tuples arrive as lists."""
    if world_size() == 1:
        return work()
    import torch
    import torch.distributed as dist

    result = work() if is_first() else None
    text = json.dumps(result).encode() if is_first() else b""
    length = int(exchange(len(text), stoppable=stoppable)[0][0])
    buffer = torch.frombuffer(bytearray(text or bytes(length)), dtype=torch.uint8)
    _wait(dist.broadcast(buffer, src=0, group=_open[-1].patient, async_op=True), stoppable)
    answer: Any = result if is_first() else json.loads(bytes(buffer.tolist()))
    return answer  # type: ignore[no-any-return]


def check_shares(key: str, count: int, parts: int = 1) -> None:
    """Raise ConfigError, naming the key, if `count` images in `parts` cannot be divided evenly over the processes."""
    if count % (world_size() * parts):
        divided = f" in {parts} parts" if parts > 1 else ""
        raise ConfigError(
            f"{key} = {count}{divided} cannot be divided over {world_size()} processes; "
            f"make it a multiple of {world_size() * parts}"
        )


def _wait(work: Any, stoppable: bool) -> None:
    """Wait for a collective in small steps, so that signals and the end of other processes are noticed."""
    pause = 20e-6
    while not work.is_completed():
        raise_if_stopped() if stoppable else _raise_if_ended()
        time.sleep(pause)
        pause = min(2 * pause, 0.02)
    work.wait()  # raises what went wrong


def _raise_if_ended() -> None:
    """Raise SaidByAnother if another process has noted that it ends; checks once a second at most."""
    here = _open[-1]
    now = time.monotonic()
    if now - here.looked > SECONDS_BETWEEN_LOOKS:
        here.looked = now
        if here.store.check(["code"]):
            raise SaidByAnother(int(here.store.get("code")))


def _ending(error: BaseException) -> BaseException:
    """The error to end with. The first process to end, and any that meets a bug, keeps its own, which is reported.

    The others end with SaidByAnother, which carries the first one's exit code.
    """
    if isinstance(error, RuntimeError) and _is_lost_peer(error):
        logger.debug("lost: %s", error)
        error = PeerLost(
            "another process of this run ended without a message; finished work is saved. Start the same command again"
        )
    if isinstance(error, SaidByAnother):
        return error
    stopped = (Interrupted, KeyboardInterrupt)
    explained = (UserError, OSError, MemoryError)
    code = 130 if isinstance(error, stopped) else 2 if isinstance(error, explained) else 1
    store = _open[-1].store
    with suppress(RuntimeError):  # the store ended with the process that held it: report
        if store.add("ended", 1) == 1:
            store.set("code", str(code))
        elif code != 1:
            return SaidByAnother(int(store.get("code")))
    return error


def _is_lost_peer(error: RuntimeError) -> bool:
    import torch
    import torch.distributed as dist

    of_torch = isinstance(error, dist.DistError) or type(error) is RuntimeError
    return of_torch and not isinstance(error, torch.OutOfMemoryError) and LOST.search(str(error)) is not None


def _leave(alive: int) -> None:
    """Close the connections. The first process may hold the store, so it waits a while for the others to leave."""
    import torch.distributed as dist

    here = _open[-1]
    with suppress(RuntimeError):
        gone = here.store.add("left", 1)
        deadline = time.monotonic() + LEAVE_SECONDS
        while is_first() and gone < alive and time.monotonic() < deadline:
            time.sleep(0.02)
            gone = here.store.add("left", 0)
    _open.pop()
    dist.destroy_process_group()
