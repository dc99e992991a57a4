"""Peak memory of one call beyond its inputs: what it allocates and the results that it gives.

On a GPU the framework's allocator counts it. On a CPU it is measured in a process of its own, by
the kernel's mark of the most memory the process has had (VmHWM), which writing 5 to
/proc/self/clear_refs sets back: Linux only. The process first makes a call of few rows, for what is
loaded or started once, and so that buffers kept from call to call count in full; for code that is
compiled for the size it must be a whole call. Differences below 1 MiB or so are noise.
"""

from __future__ import annotations

import gc
import multiprocessing
import os
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor

from benchmarks.pair_kl_hinge import METHODS, Method, make_step
from benchmarks.timing import Step

STATUS = Path("/proc/self/status")
CLEAR_REFS = Path("/proc/self/clear_refs")
WARM_UP_ROWS = 32
LONGEST = 120.0  # seconds


class NotMeasuredError(Exception):
    """The peak could not be measured; the message says why."""


def cuda_peak(step: Step) -> int:
    """Bytes. ``step`` has been called before."""
    call = step.prepared()
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    result = call()
    torch.cuda.synchronize()
    del result
    return torch.cuda.max_memory_allocated() - before


def cpu_peak(method: Method, what: str, logits: Tensor, labels: Tensor) -> int:
    """Bytes, from a fresh process."""
    if not os.access(CLEAR_REFS, os.W_OK):
        raise NotMeasuredError(f"no {CLEAR_REFS} to write to")
    here, there = multiprocessing.Pipe()
    process = _context().Process(
        target=_child,
        args=(there, method.name, what, logits.double().numpy(), labels.numpy()),
        kwargs={"dtype": logits.dtype, "threads": torch.get_num_threads()},
    )
    process.start()
    there.close()
    try:
        if not here.poll(LONGEST):
            process.kill()
            raise NotMeasuredError(f"it took more than {LONGEST:.0f} s")
        answer = here.recv()
    except EOFError:
        process.join()
        raise NotMeasuredError(f"the process ended with code {process.exitcode}") from None
    process.join()
    if isinstance(answer, str):
        raise NotMeasuredError(answer)
    return int(answer)


def _context() -> multiprocessing.context.ForkServerContext:
    """Children of a server that has imported everything and started no thread."""
    # Read when a process starts: memory that is freed goes back to the system at once.
    os.environ.setdefault("MALLOC_MMAP_THRESHOLD_", "65536")
    os.environ.setdefault("MALLOC_TRIM_THRESHOLD_", "65536")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])
    return context


def _child(
    connection: Connection,
    name: str,
    what: str,
    logits: NDArray[Any],
    labels: NDArray[Any],
    dtype: torch.dtype,
    threads: int,
) -> None:
    try:
        torch.set_num_threads(threads)
        batch = torch.from_numpy(logits).to(dtype), torch.from_numpy(labels)
        del logits
        connection.send(_peak(METHODS[name], what, *batch))
    except Exception as error:
        connection.send(f"{type(error).__name__}: {error}")


def _peak(method: Method, what: str, logits: Tensor, labels: Tensor) -> int:
    step = make_step(method, what, logits, labels)
    if method.compiles:
        warm_up = step
    else:
        few = slice(WARM_UP_ROWS)
        warm_up = make_step(method, what, logits[few].clone(), labels[few].clone())
    warm_up.prepared()()
    call = step.prepared()
    gc.collect()
    before = _status("VmRSS")
    CLEAR_REFS.write_text("5")
    result = call()
    peak = _status("VmHWM")
    del result
    return max(peak - before, 0)


def _status(name: str) -> int:
    for line in STATUS.read_text().splitlines():
        if line.startswith(name + ":"):
            return int(line.split()[1]) * 1024
    raise NotMeasuredError(f"no {name} in {STATUS}")
