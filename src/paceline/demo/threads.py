"""How many threads to compute with, decided by trying: on a busy machine threads wait for each other at every layer."""

from __future__ import annotations

import os
from collections.abc import Callable

FASTER = 1.5  # how much faster one thread must be to be preferred; less may be noise


def settle_threads(measure: Callable[[], float]) -> int:
    """Let torch use all cores, or one thread where that is clearly faster right now.

    Where other programs hold the cores, two threads can be a hundred times slower than one: whichever is scheduled first waits for the
    other, dozens of times per token. `OMP_NUM_THREADS`, if the user set it, is respected.

    Args:
        measure: seconds of a short piece of work; called once with each setting.

    Returns:
        The number of threads from now on.
    """
    import torch

    if "OMP_NUM_THREADS" in os.environ:
        return torch.get_num_threads()
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else (os.cpu_count() or 1)
    torch.set_num_threads(1)
    alone = measure()
    if cores > 1:
        torch.set_num_threads(cores)
        if measure() > FASTER * alone:
            torch.set_num_threads(1)
    return torch.get_num_threads()
