"""Threads of torch: how many, and how they wait for each other."""

import os

from cam_pipeline.machine.cores import usable_cores

WAITING = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME")
"""Variables by which a user may have chosen already; the last two are GNU's and Intel's own."""


def wait_without_spinning() -> None:
    """Let OpenMP's threads sleep while they wait. It must be set before torch is loaded; worker processes inherit it.

    By default they spin. Beside other work, or our own workers, they then take the cores that the thread they wait for
    needs: beside seven busy processes on two cores a training took 82 s in place of 30 (docs/performance.md).
    """
    if not any(name in os.environ for name in WAITING):
        os.environ["OMP_WAIT_POLICY"] = "PASSIVE"


def waiting() -> str:
    """How threads wait, as the environment says: `OMP_WAIT_POLICY=PASSIVE`; "" if it leaves that to OpenMP."""
    return ", ".join(f"{name}={os.environ[name]}" for name in WAITING if name in os.environ)


def thread_count(count: int) -> int:
    """Threads that torch computes with for `run.threads`; 0: torch's own number, but no more than usable cores.

    torch counts the cores that a process is bound to, not a container's quota: with more threads than that, all are
    stopped together when it is used up. OMP_NUM_THREADS is a choice, too, and stands.
    """
    import torch  # late: the command line sets the policy above first

    if count or "OMP_NUM_THREADS" in os.environ:
        return count or torch.get_num_threads()
    return min(torch.get_num_threads(), usable_cores())


def use_threads(count: int) -> None:
    """Let torch compute with `thread_count(count)` threads in this process."""
    import torch

    if (threads := thread_count(count)) != torch.get_num_threads():
        torch.set_num_threads(threads)
