"""The paper's variants A-D (its Figure 2): what is compared, by which labels, with which weight."""

from __future__ import annotations

from dataclasses import dataclass, replace

FINE, COARSE = 0, 1  # the levels of the labels


@dataclass(frozen=True)
class Tap:
    """One pair loss: on the outputs of ``layer``, with the labels of ``level``, times ``weight``.

    Layers: "fc1" (the second-to-last), "fc2", "fc3" (the last), and "skip", a branch around fc1.
    """

    layer: str
    level: int
    weight: float


VARIANTS = {
    "A": (Tap("fc3", FINE, 1.0),),
    "B": (Tap("fc2", FINE, 0.2), Tap("fc3", FINE, 0.8)),
    "C": (Tap("fc1", COARSE, 0.4), Tap("fc2", FINE, 0.2), Tap("fc3", FINE, 0.4)),
    "D": (Tap("skip", COARSE, 0.4), Tap("fc2", FINE, 0.2), Tap("fc3", FINE, 0.4)),
}

# What a layer passes on; the last layer has nothing after it.
AFTER_RELU = {"fc1": "act1", "fc2": "act2", "skip": "act_skip", "fc3": "fc3"}


def taps(
    variant: str, weights: tuple[float, ...] = (), *, after_relu: bool = False
) -> tuple[Tap, ...]:
    """The taps of ``variant``, in network order, earliest first.

    Args:
        weights: instead of the variant's own, one for each tap.
        after_relu: compare what a layer passes on instead of its linear outputs.
    """
    chosen = VARIANTS[variant]
    if weights:
        if len(weights) != len(chosen):
            raise ValueError(
                f"loss_weights: expected {len(chosen)} for variant {variant} "
                f"({', '.join(tap.layer for tap in chosen)}), got {len(weights)}"
            )
        chosen = tuple(replace(t, weight=w) for t, w in zip(chosen, weights, strict=True))
    if after_relu:
        chosen = tuple(replace(tap, layer=AFTER_RELU[tap.layer]) for tap in chosen)
    return chosen


def has_branch(variant: str) -> bool:
    """Whether the network of ``variant`` has the skip branch."""
    return any(tap.layer == "skip" for tap in VARIANTS[variant])
