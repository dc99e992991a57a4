"""Training with the loss over the batches of all processes together.

    torchrun --standalone --nproc_per_node 2 examples/distributed.py

On GPUs with NCCL where there is one for each process, else on the CPU with gloo. The loss that is
printed is that of the global batch, whatever the number of processes.
"""

from __future__ import annotations

import argparse
import os

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

import pairloss.distributed

GLOBAL_BATCH, CLUSTERS, FEATURES = 240, 4, 16


def global_batch(step: int) -> tuple[Tensor, Tensor]:
    """Points around four centres; the labels only say which of them lie around the same one."""
    centres = torch.randn(CLUSTERS, FEATURES, generator=torch.Generator().manual_seed(0))
    generator = torch.Generator().manual_seed(step)
    labels = torch.randint(CLUSTERS, (GLOBAL_BATCH,), generator=generator)
    noise = torch.randn(GLOBAL_BATCH, FEATURES, generator=generator)
    return centres[labels] + 0.4 * noise, labels


def make_network() -> nn.Module:
    return nn.Sequential(nn.Linear(FEATURES, 32), nn.ReLU(), nn.Linear(32, CLUSTERS))


def train(device: torch.device, steps: int, method: str) -> None:
    rank, world = dist.get_rank(), dist.get_world_size()
    torch.manual_seed(0)
    model = DistributedDataParallel(make_network().to(device))
    criterion = pairloss.distributed.PairKLHingeLoss(gradient="second", method=method)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.2, momentum=0.9)
    for step in range(steps):
        inputs, labels = (x.tensor_split(world)[rank].to(device) for x in global_batch(step))
        optimizer.zero_grad()
        loss = criterion(model(inputs), labels)
        loss.backward()
        optimizer.step()
        if rank == 0 and (step % 10 == 0 or step == steps - 1):
            print(f"step {step:3}   loss {loss.item():.6f}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--method", choices=["gather", "ring"], default="gather")
    arguments = parser.parse_args()

    on_gpu = torch.cuda.device_count() >= int(os.environ["LOCAL_WORLD_SIZE"])
    dist.init_process_group("nccl" if on_gpu else "gloo")
    device = torch.device("cuda", int(os.environ["LOCAL_RANK"])) if on_gpu else torch.device("cpu")
    train(device, arguments.steps, arguments.method)
    dist.barrier()  # nobody leaves while others still communicate
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
