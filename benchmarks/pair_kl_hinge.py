"""The cases of ``pairloss.pair_kl_hinge_loss``, and the methods that are timed on them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

import pairloss
from benchmarks import baselines
from benchmarks.baselines import Loss
from benchmarks.timing import Step

MARGIN = 2.0
CLASSES = 10
PARTS = ("forward", "backward", "full")
# Products of N x N and N x K size that the plain gradient takes: one for KL, two for the gradient.
PRODUCTS = {"forward": 1, "backward": 2, "full": 3}
# At these sizes a GPU waits for Python, unless what it does is replayed as a CUDA graph.
GRAPH_ROWS = 1024

Size = tuple[int, int]
SIZES: tuple[Size, ...] = (
    (16, 10),
    (128, 34),
    (1024, 34),
    (128, 4096),
    (1024, 4096),
    (4096, 10),
    (8192, 34),
)
MORE_SIZES: tuple[Size, ...] = ((1024, 128), (1024, 500), (4096, 128))
MORE_CUDA_SIZES: tuple[Size, ...] = ((16384, 34), (16384, 128), (8192, 4096), (262144, 34))
QUICK_SIZES: tuple[Size, ...] = ((16, 10), (64, 34))
# Those that the goals for logits of a training are about.
REAL_SIZES: tuple[Size, ...] = ((16, 10), (1024, 128), (1024, 500), (4096, 10), (4096, 128))


@dataclass(frozen=True)
class Case:
    """A batch of ``rows`` x ``columns`` ``logits`` (see logits.py), and what is timed on it."""

    rows: int
    columns: int
    logits: str = "random"
    what: str = "full"
    dtype: str = "float32"
    device: str = "cpu"

    @property
    def pairs(self) -> float:
        """Unordered pairs."""
        return self.rows * (self.rows - 1) / 2

    @property
    def flops(self) -> float:
        """Of the plain form: 2 N^2 K for each product, 6 N^2 K for loss and gradient."""
        return PRODUCTS[self.what] * 2.0 * self.rows**2 * self.columns

    def __str__(self) -> str:
        extra = [
            value
            for value, usual in ((self.what, "full"), (self.dtype, "float32"))
            if value != usual
        ]
        return " ".join([f"({self.rows}, {self.columns})", self.logits, *extra])


@dataclass(frozen=True)
class Method:
    """One way to get the loss.

    Attributes:
        make: gives the loss function; an ImportError says that it cannot be had here.
        squares: tensors of N x N that it holds at its peak (measured), and
        cubes: of N x N x K: for giving it up before it takes too much memory.
        compiles: its code is made for one size.
        baseline: ours is compared with the better of the methods that have this.
        graphed: replay a CUDA graph of it; compared with others of this kind.
        yardstick: no loss at all but matrix products to compare with.
        pilot: first look at a small batch whether it would take too long.
        weighed: its memory is measured (that of a CUDA graph lies beside the allocator's count).
        scale: its loss over that of pairloss, from N.
        agreement: how far its loss may be off, relative; None: as the dtype allows.
        devices: where it makes sense.
    """

    name: str
    make: Callable[[], Loss]
    squares: float = 0.0
    cubes: float = 0.0
    compiles: bool = False
    baseline: bool = False
    graphed: bool = False
    yardstick: bool = False
    pilot: bool = False
    weighed: bool = True
    scale: Callable[[int], float] = lambda rows: 1.0
    agreement: float | None = None
    devices: tuple[str, ...] = ("cpu", "cuda")

    def is_for(self, case: Case) -> bool:
        if self.graphed and (case.what != "full" or case.rows > GRAPH_ROWS):
            return False
        return case.device in self.devices

    def peak_bytes(self, case: Case) -> float:
        """Estimate of the memory that it takes."""
        per_pair = self.squares + self.cubes * case.columns
        itemsize: int = getattr(torch, case.dtype).itemsize
        return itemsize * case.rows * (per_pair * case.rows + 8 * case.columns)


def _ours(precision: str = "fp32") -> Loss:
    return lambda logits, labels, margin: pairloss.pair_kl_hinge_loss(
        logits, labels, margin=margin, precision=precision
    )


def _less_precise(precision: str, agreement: float) -> Method:
    return Method(
        f"pairloss {precision}",
        lambda: _ours(precision),
        agreement=agreement,
        devices=("cuda",),
    )


def _no_loss() -> Loss:
    raise NotImplementedError("a yardstick has no loss")


_eager = Method("eager", lambda: baselines.eager, squares=4.5, baseline=True)
_compile = Method("compile", baselines.compiled, squares=2, compiles=True, baseline=True)
_METHODS = (
    Method("pairloss", _ours),
    _less_precise("tf32x3", 1e-4),
    _less_precise("bf16x3", 1e-3),
    _less_precise("tf32", 0.05),
    _eager,
    _compile,
    replace(
        _compile,
        name="compile max-autotune",
        make=lambda: baselines.compiled("max-autotune"),
        weighed=False,  # it makes CUDA graphs of its own
        devices=("cuda",),
    ),
    Method("pairloss, graph", _ours, graphed=True, weighed=False, devices=("cuda",)),
    replace(_eager, name="eager, graph", graphed=True, weighed=False, devices=("cuda",)),
    replace(_compile, name="compile, graph", graphed=True, weighed=False, devices=("cuda",)),
    Method(
        "L2C PairEnum",
        lambda: baselines.l2c,
        cubes=5,
        pilot=True,
        scale=lambda rows: (rows - 1) / (2 * rows),
    ),
    Method("metric-learning", baselines.metric_learning, squares=8, pilot=True),
    Method("KeOps", baselines.keops, pilot=True),
    Method("matrix products", _no_loss, squares=1, yardstick=True, weighed=False),
)
METHODS = {method.name: method for method in _METHODS}


def make_step(method: Method, what: str, logits: Tensor, labels: Tensor) -> Step:
    """The step of ``method`` that is timed: it gives (loss, gradient), or what there is of them.

    "forward" is an evaluation, without a gradient. "backward" is what ``loss.backward()`` takes
    after a forward pass off the clock, which for pairloss is only a scaling: it computes the
    gradient beside the loss. "full" is both, as in training, and the one to compare by.
    """
    if method.yardstick:
        return _matrix_products(what, logits)
    loss_function = method.make()
    leaf = logits.detach().requires_grad_()

    def forward() -> Tensor:
        return loss_function(leaf, labels, MARGIN)

    def backward(loss: Tensor) -> Tensor:
        return torch.autograd.grad(loss, leaf)[0]

    def full() -> tuple[Tensor, Tensor]:
        loss = forward()
        return loss, backward(loss)

    if what == "forward":
        return Step(torch.no_grad()(forward))
    if what == "backward":
        return Step(backward, prepare=forward)
    return Step(_replay(full) if method.graphed else full)


def _matrix_products(what: str, logits: Tensor) -> Step:
    """As many sgemm of the loss's size as its plain form takes, on memory that is there already."""
    log_p = logits.log_softmax(1)
    p = log_p.exp()
    divergence = p @ log_p.T
    first, second = torch.empty_like(p), torch.empty_like(p)

    def run() -> None:
        if what != "backward":
            torch.mm(p, log_p.T, out=divergence)
        if what != "forward":
            torch.mm(divergence, log_p, out=first)
            torch.mm(divergence.T, p, out=second)

    return Step(run)


def _replay(step: Callable[[], Any]) -> Callable[[], Any]:
    """A CUDA graph of ``step``, which replays it and gives the same tensors, filled anew."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):  # capture wants what is lazy done, and on another stream
        for _ in range(3):
            step()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        result = step()

    def replay() -> Any:
        graph.replay()
        return result

    return replay
