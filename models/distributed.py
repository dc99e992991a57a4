"""Several processes on one model: what the programs need of torch.distributed.

Started by ``torchrun``, every process sees its share of each batch and the gradients are averaged.
The pair loss is that of the whole batch (:mod:`pairloss.distributed`); batch normalisation uses a
process's own share.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, distributed, nn
from torch.nn.parallel import DistributedDataParallel


@contextmanager
def process_group(device: torch.device) -> Iterator[None]:
    """Join the processes that torchrun started; does nothing in a program that runs alone."""
    if "WORLD_SIZE" not in os.environ:
        yield
        return
    distributed.init_process_group("nccl" if device.type == "cuda" else "gloo")
    try:
        yield
    finally:
        distributed.destroy_process_group()


def rank() -> int:
    """This process's number; 0 is the one that prints and writes."""
    return distributed.get_rank() if distributed.is_initialized() else 0


def world_size() -> int:
    """The number of processes."""
    return distributed.get_world_size() if distributed.is_initialized() else 1


def local_device(kind: str) -> torch.device:
    """The device of ``kind`` ("cpu" or "cuda") that belongs to this process."""
    if kind == "cuda":
        device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0)))
        torch.cuda.set_device(device)
        return device
    return torch.device(kind)


def shared(model: nn.Module) -> nn.Module:
    """``model``, its gradients averaged over the processes."""
    return DistributedDataParallel(model) if distributed.is_initialized() else model


def sum_over_processes(values: Tensor) -> Tensor:
    """The elementwise sum of every process's ``values``."""
    if distributed.is_initialized():
        distributed.all_reduce(values)
    return values


def wait_for_all() -> None:
    """Go on when every process has come here."""
    if distributed.is_initialized():
        distributed.barrier()


@contextmanager
def main_process_first() -> Iterator[None]:
    """The others enter when process 0 has left: it fetches, they find."""
    if rank() != 0:
        wait_for_all()
    yield
    if rank() == 0:
        wait_for_all()
