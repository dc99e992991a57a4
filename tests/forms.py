"""The grid of forms that test_pair_kl_hinge_forms.py runs over, and the data of each."""

from __future__ import annotations

from functools import cache
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from pairloss import pair_kl_hinge_loss, pair_kl_hinge_loss_from_similarity
from tests import cases, truth, truth_forms
from tests.cases import IGNORE_INDEX


class Form(NamedTuple):
    rows: int = 33
    columns: int = 10
    dtype: torch.dtype = torch.float64
    layout: str = "contiguous"
    labels: str = "few"
    ignored: str = "none"
    levels: int = 0  # 0: labels (N,)
    ref_rows: int = -1  # -1: no reference set
    similarity: str = ""  # a dtype, for the form with a matrix
    symmetric: bool = True
    weighted: str = ""  # any of "level", "kind", "sample", "ref", "balance"
    masked: bool = False  # -inf in columns of some rows, alike for rows that are similar
    near: float = 1.0  # the margin
    clusters: bool = False  # rows of a label are alike, and levels nested: tiles that are certain

    def __str__(self) -> str:
        shown = {
            name: value
            for name, value in self._asdict().items()
            if value != Form._field_defaults[name]
        }
        return "-".join(f"{k}={str(v).removeprefix('torch.')}" for k, v in shown.items()) or "plain"


class Batch(NamedTuple):
    tensors: dict[str, Tensor]  # arguments; the logits in the form's layout
    options: dict[str, Any]
    truth: truth_forms.FormTruth

    def loss(self, device: torch.device, **more: Any) -> Any:
        """What the form's function returns, and the logits and reference logits it was given."""
        tensors = {name: self._move(name, x, device) for name, x in self.tensors.items()}
        leaves = [tensors[name].requires_grad_() for name in _LEAVES if name in tensors]
        return call(tensors, **{**self.options, **more}), leaves

    def _move(self, name: str, x: Tensor, device: torch.device) -> Tensor:
        return cases.move(x, device) if name in _LEAVES else x.to(device)


_LEAVES = ("logits", "ref_logits")


def call(tensors: dict[str, Tensor], **options: Any) -> Any:
    if "similarity" in tensors:
        return pair_kl_hinge_loss_from_similarity(**tensors, **options)
    return pair_kl_hinge_loss(**tensors, **options)


@cache
def make(form: Form) -> Batch:
    """Random logits with pairs on both sides of the margin, and none close to it."""
    rng = np.random.default_rng([form.rows, form.columns, form.levels, form.ref_rows + 1])
    tensors = {"logits": _logits(form, form.rows, rng)}
    tensors |= _relations(form, rng)
    if form.ref_rows >= 0:
        tensors["ref_logits"] = _logits(form, form.ref_rows, rng)
    if form.clusters:
        _cluster(tensors, rng)
    if form.masked:
        _mask(tensors)
    full = torch.float64 if form.dtype == torch.float64 else torch.float32
    for of, rows in (("sample", form.rows), ("ref", form.ref_rows)):
        if of in form.weighted:
            name = "sample_weights" if of == "sample" else "ref_sample_weights"
            tensors[name] = torch.from_numpy(rng.uniform(0.2, 3.0, rows)).to(full)
            tensors[name][::5] = 0.0

    options: dict[str, Any] = {}
    if "level" in form.weighted:
        options["level_weights"] = tuple(rng.uniform(0.1, 2.0, form.levels).tolist())
    if "kind" in form.weighted:
        options |= {"similar_weight": 0.4, "dissimilar_weight": 1.7}
    if "balance" in form.weighted:
        options["balance"] = "pairs"

    arrays = {
        name: (x.double() if name in _LEAVES else x).detach().numpy() for name, x in tensors.items()
    }
    result = truth_forms.evaluate(**arrays, **options)
    divergence = result.dissimilar_divergence
    margin = truth.margin_in_a_gap(divergence[np.isfinite(divergence)], form.near)
    result = result.with_margin(margin)
    if divergence.size >= 100 and form.columns > 1:
        assert 0.05 < (divergence < margin).mean() < 0.95, f"{form}: all on one side of the margin"
    return Batch(tensors, {**options, "margin": margin}, result)


def _logits(form: Form, rows: int, rng: np.random.Generator) -> Tensor:
    values = torch.from_numpy(rng.standard_normal((rows, form.columns)) * 1.1).to(form.dtype)
    return cases.lay_out(values, form.layout)


def _relations(form: Form, rng: np.random.Generator) -> dict[str, Tensor]:
    """What says which pairs are similar."""
    if form.similarity:
        signs = rng.integers(-1, 2, (form.rows, form.rows))
        if form.symmetric:
            signs = np.triu(signs) + np.triu(signs, 1).T
        matrix = torch.from_numpy(signs)
        if form.ignored == "all":
            matrix.zero_()
        if form.similarity == "bool":
            return {"similarity": matrix > 0}
        # Of a float the sign counts.
        scale = 0.3 if form.similarity.startswith("float") else 1
        return {"similarity": (matrix * scale).to(getattr(torch, form.similarity))}
    result = {"labels": _labels(form, form.rows, rng)}
    if form.ref_rows >= 0:
        result["ref_labels"] = _labels(form, form.ref_rows, rng)
    return result


def _labels(form: Form, rows: int, rng: np.random.Generator) -> Tensor:
    levels = []
    fine = rng.choice(4, rows, p=(0.4, 0.35, 0.22, 0.03))
    for level in range(max(form.levels, 1)):
        labels = fine >> level if form.clusters else cases.make_labels(form.labels, rows, rng)
        if form.ignored == "all":
            labels[:] = IGNORE_INDEX
        elif form.ignored == "some":  # other rows in every level
            labels[rng.random(rows) < 0.3] = IGNORE_INDEX
        levels.append(torch.from_numpy(labels))
    return torch.stack(levels, 1) if form.levels else levels[0]


def _cluster(tensors: dict[str, Tensor], rng: np.random.Generator) -> None:
    """Classes 0 and 1 close together, 2 far from both, and 3 everywhere."""
    logits = tensors["logits"]
    centre = torch.from_numpy(rng.standard_normal(logits.shape[1])).to(logits.dtype)
    for prefix in ("", "ref_"):
        if prefix + "logits" in tensors:
            logits, labels = tensors[prefix + "logits"], tensors[prefix + "labels"]
            labels = labels if labels.dim() == 1 else labels[:, 0]
            logits[labels != 3] = centre + 0.02 * logits[labels != 3]
            logits[labels == 2, 1] += 4.0


def _mask(tensors: dict[str, Tensor]) -> None:
    """Rows of one label lack the same classes, so that no similar pair is infinitely far apart."""
    for prefix in ("", "ref_"):
        if prefix + "logits" in tensors:
            logits, labels = tensors[prefix + "logits"], tensors[prefix + "labels"]
            labels = labels if labels.dim() == 1 else labels[:, 0]
            logits[labels == 1, 0] = -torch.inf
            logits[labels == 2, 3] = -torch.inf


MATRIX = ("int8", "bool", "float32", "float64", "float16")
DTYPES = (torch.float64, torch.float32, torch.float16, torch.bfloat16)

# One at a time, then the edges.
SINGLE = (
    Form(levels=1),
    Form(levels=2),
    Form(levels=2, ignored="some", weighted="level"),
    Form(levels=5, labels="lopsided", ignored="some", weighted="level"),
    Form(ref_rows=47),
    Form(ref_rows=20, ignored="some"),
    Form(ref_rows=65, weighted="ref"),
    *(Form(similarity=dtype) for dtype in MATRIX),
    *(Form(similarity=dtype, symmetric=False) for dtype in MATRIX),
    Form(weighted="kind"),
    Form(weighted="balance", labels="lopsided"),
    Form(weighted="sample"),
    Form(masked=True),
    Form(masked=True, ref_rows=20),
)
EDGES = (
    *(Form(rows=rows, levels=2) for rows in (0, 1, 2)),
    *(Form(rows=rows, similarity="int8") for rows in (0, 1, 2)),
    *(
        Form(rows=rows, ref_rows=ref_rows)
        for rows, ref_rows in ((0, 0), (0, 9), (9, 0), (1, 9), (9, 1), (1, 1))
    ),
    Form(levels=2, ignored="all"),
    Form(ref_rows=9, ignored="all"),
    Form(similarity="int8", ignored="all"),
    Form(labels="one", weighted="balance"),
    Form(labels="different", weighted="balance"),
    Form(rows=1, weighted="balance sample"),
    Form(columns=1, levels=2, near=0.5),
    Form(columns=1, ref_rows=9, near=0.5),
    Form(columns=2, ref_rows=9, near=0.2),
    Form(rows=5, columns=300, ref_rows=7),
    Form(rows=257, columns=3, levels=2, dtype=torch.float32, near=0.7),
    Form(rows=130, columns=33, ref_rows=70, dtype=torch.float32),
    Form(rows=129, columns=34, similarity="int8", symmetric=False, dtype=torch.float32),
)


def _combination(seed: int) -> Form:
    rng = np.random.default_rng(seed)

    def pick(choices: Any) -> Any:
        return choices[rng.integers(len(choices))]

    kind = pick(("labels", "labels", "ref", "ref", "matrix"))
    weighted = [name for name in ("kind", "sample", "balance") if rng.random() < 0.5]
    levels = 0 if kind == "matrix" else pick((0, 1, 2, 3))
    if levels and rng.random() < 0.5:
        weighted.append("level")
    if kind == "ref" and rng.random() < 0.5:
        weighted.append("ref")
    return Form(
        rows=pick((17, 31, 65)),
        columns=pick((3, 10, 34)),
        dtype=pick(DTYPES),
        layout=pick(cases.LAYOUTS),
        labels=pick(("few", "lopsided", "two", "pairs")),
        ignored=pick(("none", "some")),
        levels=levels,
        ref_rows=pick((19, 64)) if kind == "ref" else -1,
        similarity=pick(MATRIX) if kind == "matrix" else "",
        symmetric=bool(rng.random() < 0.5),
        weighted=" ".join(weighted),
    )


# Large enough for tiles that are certain as a whole; odd on purpose.
CERTAIN = (
    Form(rows=700, clusters=True),
    Form(rows=700, clusters=True, levels=2, weighted="level kind"),
    Form(rows=701, clusters=True, levels=2, ignored="some", dtype=torch.float32),
    Form(rows=900, clusters=True, weighted="sample", dtype=torch.float32),
    Form(rows=600, clusters=True, ref_rows=801, dtype=torch.float32),
    Form(rows=700, clusters=True, ref_rows=610, levels=2, weighted="sample ref"),
    Form(rows=700, clusters=True, masked=True),
)

COMBINED = tuple(_combination(seed) for seed in range(48))
GRID = tuple(dict.fromkeys((*SINGLE, *EDGES, *CERTAIN, *COMBINED)))
