"""A batch larger than what fits through the encoder with a graph: the pair loss in chunks.

    python examples/grad_cache.py

All pairs of the batch count, although only a chunk of it is in memory with its activations at any
time. The gradient is the one of the whole batch, for twice the encoder's forward passes.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import get_device_states, set_device_states

import pairloss


class RandomState:
    """Of the CPU and of the devices of some tensors, so that dropout draws the same twice."""

    def __init__(self, *tensors: Tensor) -> None:
        self.of_cpu = torch.get_rng_state()
        self.of_devices = get_device_states(*tensors)

    def restore(self) -> None:
        torch.set_rng_state(self.of_cpu)
        set_device_states(*self.of_devices)


def backward_in_chunks(
    encoder: nn.Module, inputs: Tensor, labels: Tensor, chunk_rows: int, **options: Any
) -> Tensor:
    """Adds the gradient of the loss of the whole batch to the encoder's; returns the loss.

    The encoder must treat rows one by one: what its batch normalisation sees is a chunk.
    """
    chunks = inputs.split(chunk_rows)
    states, logits = [], []
    with torch.no_grad():
        for chunk in chunks:
            states.append(RandomState(chunk))
            logits.append(encoder(chunk))
    loss, grad = pairloss.loss_and_grad(torch.cat(logits), labels, **options)
    after = RandomState(inputs)
    for chunk, state, of_chunk in zip(chunks, states, grad.split(chunk_rows), strict=True):
        state.restore()
        output = encoder(chunk)
        output.backward(of_chunk.to(output.dtype))
    after.restore()
    return loss


def main() -> None:
    torch.manual_seed(0)
    centres = torch.randn(8, 32)
    labels = torch.randint(8, (2048,))
    inputs = centres[labels] + 0.5 * torch.randn(2048, 32)
    encoder = nn.Sequential(nn.Linear(32, 256), nn.ReLU(), nn.Dropout(0.1), nn.Linear(256, 8))
    optimizer = torch.optim.SGD(encoder.parameters(), lr=0.2, momentum=0.9)
    for step in range(30):
        optimizer.zero_grad()
        loss = backward_in_chunks(encoder, inputs, labels, chunk_rows=256, balance="pairs")
        optimizer.step()
        if step % 5 == 4:
            print(f"step {step + 1:3}   loss {loss.item():.4f}")


if __name__ == "__main__":
    main()
