"""Inputs for the kernels' insides, in numpy alone."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

# The type that the kernels compute in, for every type of logits.
COMPUTED_IN = {
    "float64": np.float64,
    "float32": np.float32,
    "float16": np.float32,
    "bfloat16": np.float32,
}
ELEMENTS = tuple(COMPUTED_IN)


def encode(values: NDArray, element: str) -> tuple[NDArray, NDArray[np.float64]]:
    """Logits as the kernels take them, and what these are as float64."""
    if element == "bfloat16":
        bits = values.astype(np.float32).view(np.uint32)
        cut = (bits & 0xFFFF0000).view(np.float32)
        return (bits >> 16).astype(np.uint16), cut.astype(np.float64)
    encoded = values.astype(element)
    return encoded, encoded.astype(np.float64)


def pack_bits(bits: NDArray[np.bool_]) -> NDArray[np.uint32]:
    """(rows, columns) as words of 32 columns, padded with zeros."""
    padded = np.pad(bits, ((0, 0), (0, -bits.shape[1] % 32)))
    return np.packbits(padded, axis=1, bitorder="little").view(np.uint32)


def unpack_bits(words: NDArray[np.uint32], columns: int) -> NDArray[np.bool_]:
    bits = np.unpackbits(words.view(np.uint8), axis=1, bitorder="little")
    return bits[:, :columns].astype(bool)
