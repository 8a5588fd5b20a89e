"""Threads of torch: how many, and how they wait for each other."""

import os

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


def use_threads(count: int) -> None:
    """Let torch compute with `count` threads in this process; 0: as many as it chooses itself (one per core)."""
    if count:
        import torch  # late: the command line sets the policy above first

        torch.set_num_threads(count)
