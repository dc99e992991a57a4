"""The all-pairs loss over the global batch of a process group (torch.distributed).

Every rank evaluates the pairs within its own rows, and those of its rows with all others', which
are a reference set without a gradient. That gives its rows their complete gradient, so there is no
communication in the backward. Pairs of two ranks are seen by both: in the value they count half.
docs/distributed.md has the cost.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor, nn

from pairloss._arguments import (
    FLOAT_DTYPES,
    IMPLEMENTATIONS,
    Inputs,
    Options,
    PairStats,
    check_choice,
    check_inputs,
    check_options,
)
from pairloss._ops.pair_kl_hinge import _scaled
from pairloss.pair_kl_hinge import pair_kl_hinge_loss as _local_loss

__all__ = ["PairKLHingeLoss", "pair_kl_hinge_loss"]

METHODS = ("gather", "ring")


def pair_kl_hinge_loss(
    logits: Tensor,
    labels: Tensor,
    *,
    margin: float = 2.0,
    gradient: str = "both",
    reduction: str = "mean",
    ignore_index: int = -100,
    level_weights: Sequence[float] | Tensor | None = None,
    similar_weight: float = 1.0,
    dissimilar_weight: float = 1.0,
    balance: str | None = None,
    precision: str = "fp32",
    sample_weights: Tensor | None = None,
    return_stats: bool = False,
    impl: str = "auto",
    group: dist.ProcessGroup | None = None,
    method: str = "gather",
    averaged_gradients: bool = True,
) -> Tensor | tuple[Tensor, PairStats]:
    """:func:`pairloss.pair_kl_hinge_loss` of the rows of all ranks together.

    Every rank of the group must call it, with its own rows: of one K, dtype and number of levels,
    but as many as it has, also none. All ranks get the same loss and statistics, which are those of
    one process that has all rows, to rounding; each gets the gradient of its own rows.

    Args:
        logits, labels, sample_weights: of this rank: (N_r, K), (N_r,) or (N_r, G), and (N_r,).
        reduction: ``"mean"`` or ``"sum"``, over the pairs of the global batch.
        group: the process group, of any backend; None: the default one. Without an initialised
            process group this is the loss of the batch.
        method: ``"gather"``: all logits are gathered once, and stay O(N K) per rank until the loss
            is there. ``"ring"``: blocks of N_r rows are passed from rank to rank, while the one
            before is worked on: O(N_r K) memory, beside the labels. Both give the same.
        averaged_gradients: the gradients of the ranks will be averaged, as DistributedDataParallel
            and FSDP do: they are made larger by the number of ranks, so that the average is the
            gradient of the global loss. False: the gradient of the logits is that of the loss.

    The other arguments are those of :func:`pairloss.pair_kl_hinge_loss`.

    Raises:
        ValueError: on every rank, if the ranks do not agree about K, dtype, levels or weights.
    """
    options = check_options(
        margin,
        gradient,
        reduction,
        ignore_index,
        similar_weight,
        dissimilar_weight,
        balance,
        precision,
    )
    if reduction == "none":
        raise ValueError(
            'reduction: expected "mean" or "sum" over the global batch, got "none", whose upstream '
            "gradients lie on other ranks"
        )
    check_choice("impl", impl, IMPLEMENTATIONS)
    check_choice("method", method, METHODS)
    inputs = check_inputs(
        logits, labels, sample_weights=sample_weights, level_weights=level_weights
    )
    ranks = _Ranks(inputs, group)
    terms = _terms(inputs, options, ranks.all_labels())
    local = _Sum(inputs, options, impl)
    for arguments in terms:
        local.add(arguments, None)
    if ranks.world > 1:
        for block in ranks.gathered() if method == "gather" else ranks.passed_around():
            for arguments in terms:
                local.add(arguments, block)
    stats = ranks.total(local.stats)
    loss = stats[3:].sum().to(local.logits.dtype)
    if local.grad is not None:
        factor = float(ranks.world) if averaged_gradients else 1.0
        loss = _WithGradient.apply(logits, loss, local.grad, factor)
    if not return_stats:
        return loss
    active_fraction = stats[2] / (2 * stats[1]).clamp(min=1)
    stats = torch.stack([*stats[:2], active_fraction, *stats[3:]])
    return loss, PairStats.of(stats, levels=inputs.has_levels)


class PairKLHingeLoss(nn.Module):
    """:func:`pair_kl_hinge_loss` as a module; the arguments mean the same.

    Example::

        criterion = pairloss.distributed.PairKLHingeLoss()
        loss = criterion(ddp_model(images), labels)  # the global batch's, on every rank
        loss.backward()
    """

    def __init__(self, **options: Any) -> None:
        super().__init__()
        if unknown := options.keys() - _OPTIONS:
            raise TypeError(
                f"PairKLHingeLoss: expected options among {', '.join(sorted(_OPTIONS))}, "
                f"got {', '.join(sorted(unknown))}"
            )
        self.options = options

    def forward(
        self, logits: Tensor, labels: Tensor, *, sample_weights: Tensor | None = None
    ) -> Tensor | tuple[Tensor, PairStats]:
        """The loss of all ranks' ``logits`` (N_r, K) with ``labels`` (N_r,) or (N_r, G)."""
        return pair_kl_hinge_loss(logits, labels, sample_weights=sample_weights, **self.options)

    def extra_repr(self) -> str:
        return ", ".join(f"{name}={value!r}" for name, value in self.options.items())


_OPTIONS = set(inspect.getfullargspec(pair_kl_hinge_loss).kwonlyargs) - {"sample_weights"}


# ---- What a rank adds up ------------------------------------------------------------------------


class _Block(NamedTuple):
    """The rows of one rank, or of several."""

    logits: Tensor
    labels: Tensor  # (n, G)
    weights: Tensor | None


class _Term(NamedTuple):
    """One call of the local loss: some of the levels, and what is fixed by the global batch."""

    levels: slice
    options: dict[str, Any]


def _terms(inputs: Inputs, options: Options, all_labels: Tensor) -> list[_Term]:
    """The calls of reduction "sum" that add up to the loss."""
    similar, dissimilar = _count_pairs(all_labels, options.ignore_index)
    given = inputs.level_weights
    weights = [1.0] * len(similar) if given is None else given.tolist()
    if options.reduction == "mean":
        weights = [
            weight / max(s + d, 0.5)
            for weight, s, d in zip(weights, similar, dissimilar, strict=True)
        ]
    kinds = {
        "similar_weight": options.similar_weight,
        "dissimilar_weight": options.dissimilar_weight,
    }
    if not options.balance:
        return [_Term(slice(None), {"level_weights": weights, **kinds})]
    # Each kind weighs as much as half of all pairs of its level, so levels cannot share a call.
    terms = []
    for g, (s, d) in enumerate(zip(similar, dissimilar, strict=True)):
        balanced = {
            "similar_weight": options.similar_weight * (s + d) / (2 * max(s, 0.5)),
            "dissimilar_weight": options.dissimilar_weight * (s + d) / (2 * max(d, 0.5)),
        }
        terms.append(_Term(slice(g, g + 1), {"level_weights": [weights[g]], **balanced}))
    return terms


def _count_pairs(labels: Tensor, ignore_index: int) -> tuple[list[int], list[int]]:
    """Similar and dissimilar unordered pairs of every level."""
    similar, dissimilar = [], []
    for of_level in labels.unbind(1):
        sizes = of_level[of_level != ignore_index].unique(return_counts=True)[1]
        rows = int(sizes.sum())
        similar.append(int((sizes * (sizes - 1) // 2).sum()))
        dissimilar.append(rows * (rows - 1) // 2 - similar[-1])
    return similar, dissimilar


class _Sum:
    """The sum over this rank's pairs, by term and block, and its gradient so far.

    Attributes:
        stats: (5, G): numbers of pairs, of active ordered pairs, and the two parts of the value.
        grad: of this rank's logits; None where none is wanted.
    """

    def __init__(self, inputs: Inputs, options: Options, impl: str) -> None:
        logits = inputs.logits.detach()
        # Half precision would round every block's gradient.
        full = torch.float64 if logits.dtype == torch.float64 else torch.float32
        self.logits = logits.to(full)
        self.labels, self.weights = inputs.level_labels, inputs.sample_weights
        self.fixed = {
            "margin": options.margin,
            "gradient": options.gradient,
            "ignore_index": options.ignore_index,
            "precision": options.precision,
            "reduction": "sum",
            "return_stats": True,
            "impl": impl,
        }
        wanted = torch.is_grad_enabled() and inputs.logits.requires_grad
        self.grad = torch.zeros_like(self.logits) if wanted else None
        shape = (5, self.labels.shape[1])
        self.stats = torch.zeros(shape, dtype=torch.float64, device=logits.device)

    def add(self, term: _Term, block: _Block | None) -> None:
        """The pairs with the rows of ``block``; None: those within this rank's."""
        others: dict[str, Any] = {}
        if block is not None:
            others = {
                "ref_logits": block.logits.to(self.logits.dtype),
                "ref_labels": block.labels[:, term.levels],
                "ref_sample_weights": block.weights,
            }
        leaf = self.logits.detach().requires_grad_(self.grad is not None)
        with torch.set_grad_enabled(self.grad is not None):
            loss, stats = _local_loss(  # type: ignore[call-overload]
                leaf,
                self.labels[:, term.levels],
                sample_weights=self.weights,
                **others,
                **term.options,
                **self.fixed,
            )
        if self.grad is not None:
            self.grad += torch.autograd.grad(loss, leaf)[0]
        active = stats.active_fraction * 2 * stats.dissimilar_pairs
        seen = torch.stack([*stats[:2], active, *stats[3:]])
        # A pair of two ranks is seen by both.
        self.stats[:, term.levels] += seen if block is None else seen / 2


class _WithGradient(torch.autograd.Function):
    """``loss``, with ``factor * grad`` as its gradient in the logits."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, loss: Tensor, grad: Tensor, factor: float) -> Tensor:
        ctx.save_for_backward(logits, grad)
        ctx.factor = factor
        return loss

    @staticmethod
    def backward(ctx: Any, grad_loss: Tensor) -> tuple[Tensor, None, None, None]:
        logits, grad = ctx.saved_tensors
        return _scaled(grad, grad_loss * ctx.factor, logits), None, None, None


# ---- Communication ------------------------------------------------------------------------------


class _Ranks:
    """This rank's rows among those of the group. Rows travel as bytes: every dtype does."""

    def __init__(self, inputs: Inputs, group: dist.ProcessGroup | None) -> None:
        initialised = dist.is_available() and dist.is_initialized()
        self.group = group
        self.world = dist.get_world_size(group) if initialised else 1
        self.rank = dist.get_rank(group) if initialised else 0
        self.device = inputs.logits.device
        # gloo works on the CPU.
        gloo = initialised and dist.get_backend(group) == "gloo"
        self.on_wire = torch.device("cpu") if gloo else self.device
        self.local = _Block(inputs.logits.detach(), inputs.level_labels, inputs.sample_weights)
        self.sizes = self._agree(inputs)

    def _agree(self, inputs: Inputs) -> list[int]:
        """The numbers of rows, if all ranks' rows are of one kind."""
        rows, columns = inputs.logits.shape
        kind = {
            "columns": columns,
            "dtype": FLOAT_DTYPES.index(inputs.logits.dtype),
            "levels": inputs.level_labels.shape[1],
            "sample_weights": int(inputs.sample_weights is not None),
        }
        numbers = torch.tensor([rows, *kind.values()], device=self.on_wire)
        of_ranks = torch.stack(self._all_gather(numbers)).tolist()
        for at, name in enumerate(kind, start=1):
            values = [of_rank[at] for of_rank in of_ranks]
            if len(set(values)) > 1:
                shown = [str(FLOAT_DTYPES[v]) for v in values] if name == "dtype" else values
                raise ValueError(
                    f"pairloss.distributed: expected the same {name} on all ranks, got {shown}"
                )
        return [of_rank[0] for of_rank in of_ranks]

    def all_labels(self) -> Tensor:
        """(N, G) of all ranks."""
        return torch.cat(self._gather_rows(self.local.labels))

    def gathered(self) -> Iterator[_Block]:
        """The rows of all other ranks as one block."""
        records = self._gather_rows(self._pack())
        del records[self.rank]
        yield self._unpack(torch.cat(records))

    def passed_around(self) -> Iterator[_Block]:
        """The rows of one other rank after the other; the next are on the way meanwhile."""
        held = self._padded(self._pack())
        for step in range(1, self.world):
            received = torch.empty_like(held)
            to, source = (self.rank + 1) % self.world, (self.rank - 1) % self.world
            operations = [
                dist.P2POp(dist.isend, held, group=self.group, group_peer=to),
                dist.P2POp(dist.irecv, received, group=self.group, group_peer=source),
            ]
            pending = dist.batch_isend_irecv(operations)
            if step > 1:
                yield self._block_of(held, step - 1)
            for request in pending:
                request.wait()
            held = received
        yield self._block_of(held, self.world - 1)

    def total(self, stats: Tensor) -> Tensor:
        """The sum over all ranks, in their order: the same bits on each."""
        of_ranks = self._all_gather(stats.to(self.on_wire))
        return torch.stack(of_ranks).sum(0).to(self.device)

    def _block_of(self, record: Tensor, steps: int) -> _Block:
        """What has been passed on ``steps`` times."""
        return self._unpack(record[: self.sizes[(self.rank - steps) % self.world]])

    def _pack(self) -> Tensor:
        """(N_r, bytes)."""
        parts = [self.local.logits, self.local.labels]
        if self.local.weights is not None:
            parts.append(self.local.weights[:, None])
        return torch.cat([part.contiguous().view(torch.uint8) for part in parts], 1)

    def _unpack(self, record: Tensor) -> _Block:
        parts, at = [], 0
        weights = self.local.weights
        for like in (
            self.local.logits,
            self.local.labels,
            *(() if weights is None else (weights[:, None],)),
        ):
            width = like.shape[1] * like.element_size()
            # A copy: a view as another dtype must begin at a multiple of its size.
            part = record[:, at : at + width].clone(memory_format=torch.contiguous_format)
            parts.append(part.view(like.dtype).to(self.device))
            at += width
        return _Block(parts[0], parts[1], None if weights is None else parts[2][:, 0])

    def _gather_rows(self, rows: Tensor) -> list[Tensor]:
        gathered = self._all_gather(self._padded(rows))
        return [x[:size] for x, size in zip(gathered, self.sizes, strict=True)]

    def _padded(self, rows: Tensor) -> Tensor:
        """Collectives take the same number of rows from each rank."""
        padded = torch.zeros(
            (max(self.sizes), rows.shape[1]), dtype=rows.dtype, device=self.on_wire
        )
        padded[: len(rows)] = rows
        return padded

    def _all_gather(self, x: Tensor) -> list[Tensor]:
        if self.world == 1:
            return [x]
        gathered = [torch.empty_like(x) for _ in range(self.world)]
        if x.numel() > 0:
            dist.all_gather(gathered, x.contiguous(), group=self.group)
        return gathered
