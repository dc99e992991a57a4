"""What may be passed, what is refused and how, and that nothing passed is written to."""

from __future__ import annotations

import copy
import inspect
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch

import pairloss
from pairloss import PairKLHingeLoss, pair_kl_hinge_loss
from pairloss.reference import pair_kl_hinge_loss as reference_loss
from tests import cases, operator, truth
from tests.tolerances import assert_close

pytestmark = pytest.mark.usefixtures("one_thread")

implementations = pytest.mark.parametrize("impl", ["fused", "reference"])
INT64 = torch.iinfo(torch.int64)
BATCH = cases.Case(17, 10, ignored="some")


def some_logits(rows: int, columns: int = 6) -> torch.Tensor:
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(rows))


def check(
    logits: torch.Tensor, labels: torch.Tensor, device: torch.device, impl: str, ids: np.ndarray
) -> None:
    """``ids``: the labels, as numpy has them."""
    expected = truth.evaluate(logits.numpy(), ids, 1.0)
    assert expected.similar.any()
    assert expected.active.any()
    loss = pair_kl_hinge_loss(logits.to(device), labels.to(device), margin=1.0, impl=impl)
    assert_close(loss, expected.loss("mean"), 1e-6)


# ---- Labels ------------------------------------------------------------------------------------


@implementations
@pytest.mark.parametrize(
    "dtype",
    [
        torch.int64,
        torch.int32,
        torch.int16,
        torch.int8,
        torch.uint8,
        torch.uint16,
        torch.uint32,
        torch.uint64,
        torch.bool,
    ],
)
def test_integer_dtypes(dtype: torch.dtype, impl: str, device: torch.device) -> None:
    ids = np.arange(12) % 2 if dtype == torch.bool else np.arange(12) * 5 % 7
    labels = torch.from_numpy(ids).to(dtype)
    check(some_logits(12), labels, device, impl, ids)


@implementations
@pytest.mark.parametrize(
    "ids",
    [
        [-5, -5, -1, 0, -1, 7],
        [INT64.min, INT64.max, 0, INT64.min, INT64.max, 0],
        [INT64.min, INT64.min + 1, INT64.min, INT64.max - 1, INT64.max, INT64.max],
        [-1, 2**40, -1, -(2**40), 2**40, 0],
        [2**31, 2**31 - 1, -(2**31), 2**31, 2**32, 0],  # as int32, the first and third were equal
        [2**53, 2**53 + 1, 2**53, 2**53 + 1, 5, 5],  # as floats, the first two were equal
    ],
    ids=["negative", "ends of int64", "next to them", "far apart", "beyond int32", "beyond double"],
)
def test_label_values(ids: list[int], impl: str, device: torch.device) -> None:
    labels = torch.tensor(ids)
    check(some_logits(len(ids)), labels, device, impl, np.array(ids))


@implementations
@pytest.mark.parametrize("ignore_index", [-100, 0, 255, INT64.min, INT64.max])
def test_ignore_index(ignore_index: int, impl: str, device: torch.device) -> None:
    labels = torch.tensor([1, 1, 2, ignore_index, 2, -100 if ignore_index else 3, ignore_index])
    logits = some_logits(7).requires_grad_()
    expected = truth.evaluate(logits.detach().numpy(), labels.numpy(), 1.0, ignore_index)
    loss = pair_kl_hinge_loss(
        logits.to(device),
        labels.to(device),
        margin=1.0,
        ignore_index=ignore_index,
        impl=impl,
    )
    assert_close(loss, expected.loss("mean"), 1e-6)
    loss.backward()
    assert (logits.grad[labels == ignore_index] == 0).all()
    assert (logits.grad[labels != ignore_index] != 0).all()


@implementations
def test_ignore_index_of_small_labels(impl: str, device: torch.device) -> None:
    """255, in uint8, as segmentation data has it; -100 does not fit and ignores nothing."""
    labels = torch.tensor([1, 255, 1, 2, 255], dtype=torch.uint8, device=device)
    logits = some_logits(5).to(device)
    for ignore_index in (255, -100):
        loss = pair_kl_hinge_loss(logits, labels, ignore_index=ignore_index, impl=impl)
        expected = truth.evaluate(
            logits.cpu().numpy(), labels.cpu().numpy().astype(np.int64), 2.0, ignore_index
        )
        assert_close(loss, expected.loss("mean"), 1e-6)


def test_labels_of_any_stride(device: torch.device) -> None:
    labels = torch.arange(34, device=device)[::2] % 3
    strided = torch.stack([labels, labels + 1], 1)[:, 0]
    assert not strided.is_contiguous()
    logits = some_logits(17).to(device)
    expected = pair_kl_hinge_loss(logits, labels)
    assert torch.equal(pair_kl_hinge_loss(logits, strided), expected)
    one = labels[:1].expand(17)
    assert torch.equal(
        pair_kl_hinge_loss(logits, one), pair_kl_hinge_loss(logits, one.contiguous())
    )


# ---- Nothing is written to ---------------------------------------------------------------------


@pytest.mark.parametrize("reduction", ["mean", "none"])
@pytest.mark.parametrize("layout", sorted(set(cases.LAYOUTS)))
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_inputs_are_not_written_to(
    dtype: torch.dtype, layout: str, reduction: str, device: torch.device
) -> None:
    batch = cases.make(cases.Case(17, 10, dtype=dtype, layout=layout, ignored="some"))
    logits, labels = batch.to(device)

    def memory() -> list[tuple[bytes, int]]:
        tensors = (logits.detach(), labels, upstream)
        return [(bytes(x.cpu().untyped_storage()), x._version) for x in tensors]

    loss = pair_kl_hinge_loss(logits, labels, reduction=reduction)
    upstream = torch.randn_like(loss)
    before = memory()
    loss = pair_kl_hinge_loss(logits, labels, reduction=reduction)
    loss.backward(upstream)
    assert memory() == before


@implementations
@pytest.mark.filterwarnings("ignore:The given NumPy array is not writable")
def test_read_only_memory(impl: str, tmp_path: Path) -> None:
    """Logits and labels mapped from files that may not be written: a write would be a crash."""
    logits, labels = some_logits(40), torch.arange(40) % 4
    views = []
    for name, array in (("logits", logits.numpy()), ("labels", labels.numpy())):
        array.tofile(tmp_path / name)
        mapped = np.memmap(tmp_path / name, array.dtype, "r", shape=array.shape)
        views.append(torch.from_numpy(mapped))
    loss = pair_kl_hinge_loss(views[0].requires_grad_(), views[1], impl=impl)
    loss.backward()
    assert_close(loss, truth.evaluate(logits.numpy(), labels.numpy(), 2.0).loss("mean"), 1e-6)


# ---- What is refused ---------------------------------------------------------------------------

Z, Y = torch.zeros(4, 3), torch.zeros(4, dtype=torch.int64)
SIMILARITY = torch.ones(4, 4, dtype=torch.int8)
BAD = {
    "logits: a list": (TypeError, ([[1.0]], Y), {}, "logits: expected a Tensor, got list"),
    "logits: an array": (TypeError, (Z.numpy(), Y), {}, "logits: expected a Tensor, got ndarray"),
    "labels: a list": (TypeError, (Z, [0] * 4), {}, "labels: expected a Tensor, got list"),
    "logits: int64": (TypeError, (Z.long(), Y), {}, "logits: expected float64, .*, got int64"),
    "logits: complex": (TypeError, (Z.cfloat(), Y), {}, "logits: expected .*, got complex64"),
    "logits: float8": (
        TypeError,
        (Z.to(torch.float8_e4m3fn), Y),
        {},
        "logits: expected .*, got float8_e4m3fn",
    ),
    "labels: float": (TypeError, (Z, Y.float()), {}, "labels: expected an integer.*got float32"),
    "logits: 1-d": (ValueError, (Z[0], Y), {}, r"logits: expected shape \(N, K\), got \(3,\)"),
    "logits: 3-d": (ValueError, (Z[None], Y), {}, r"logits: expected .*, got \(1, 4, 3\)"),
    "logits: 0-d": (ValueError, (Z[0, 0], Y), {}, r"logits: expected .*, got \(\)"),
    "no columns": (ValueError, (Z[:, :0], Y), {}, r"logits: expected at least one.*got \(4, 0\)"),
    "labels: short": (ValueError, (Z, Y[:3]), {}, r"labels: expected shape \(4,\).*got \(3,\)"),
    "labels: 3-d": (ValueError, (Z, Y[:, None, None]), {}, r"labels: .*, got \(4, 1, 1\)"),
    "labels: no level": (ValueError, (Z, Y[:, None][:, :0]), {}, "labels: expected at least one"),
    "labels: 0-d": (ValueError, (Z[:1], Y[0]), {}, r"labels: expected shape \(1,\).*got \(\)"),
    "labels: device": (
        ValueError,
        (Z, Y.to("meta")),
        {},
        "labels: expected the device of logits, cpu, got meta",
    ),
    "ref_logits: alone": (ValueError, (Z, Y, Z), {}, "ref_labels: .* beside ref_logits, got None"),
    "ref_labels: alone": (ValueError, (Z, Y, None, Y), {}, "ref_logits: .* beside ref_labels"),
    "ref_logits: columns": (
        ValueError,
        (Z, Y, Z[:, :2], Y),
        {},
        r"ref_logits: expected shape \(M, 3\) .* got \(4, 2\)",
    ),
    "ref_logits: dtype": (TypeError, (Z, Y, Z.double(), Y), {}, "ref_logits: expected the dtype"),
    "ref_logits: device": (
        ValueError,
        (Z, Y, Z.to("meta"), Y),
        {},
        "ref_logits: expected the device of logits, cpu, got meta",
    ),
    "ref_labels: short": (ValueError, (Z, Y, Z, Y[:3]), {}, r"ref_labels: .* \(4,\).*got \(3,\)"),
    "ref_labels: levels": (ValueError, (Z, Y, Z, Y[:, None]), {}, "ref_labels: .* as many levels"),
    "sample_weights: a list": (
        TypeError,
        (Z, Y),
        {"sample_weights": [1.0] * 4},
        "sample_weights: expected a Tensor, got list",
    ),
    "sample_weights: int64": (
        TypeError,
        (Z, Y),
        {"sample_weights": Y},
        "sample_weights: expected a float dtype, got int64",
    ),
    "sample_weights: short": (
        ValueError,
        (Z, Y),
        {"sample_weights": Z[:2, 0]},
        r"sample_weights: expected shape \(4,\), got \(2,\)",
    ),
    "sample_weights: gradient": (
        ValueError,
        (Z, Y),
        {"sample_weights": torch.ones(4, requires_grad=True)},
        "sample_weights: expected no gradient",
    ),
    "ref_sample_weights: alone": (
        ValueError,
        (Z, Y),
        {"ref_sample_weights": Z[:, 0]},
        "ref_sample_weights: expected None without ref_logits",
    ),
    "level_weights: too many": (
        ValueError,
        (Z, Y),
        {"level_weights": [0.5, 0.5]},
        "level_weights: expected one for each of 1 levels, got 2 values",
    ),
    "level_weights: negative": (
        ValueError,
        (Z, Y),
        {"level_weights": [-1.0]},
        "level_weights: expected a finite value >= 0, got -1.0",
    ),
    "similar_weight": (ValueError, (Z, Y), {"similar_weight": -1.0}, "similar_weight: .* -1.0"),
    "dissimilar_weight": (
        TypeError,
        (Z, Y),
        {"dissimilar_weight": None},
        "dissimilar_weight: expected a float, got NoneType",
    ),
    "balance": (ValueError, (Z, Y), {"balance": "classes"}, 'balance: .* "pairs", got .classes'),
    "margin: negative": (ValueError, (Z, Y), {"margin": -0.5}, "margin: expected .*, got -0.5"),
    "margin: NaN": (ValueError, (Z, Y), {"margin": float("nan")}, "margin: expected .*, got nan"),
    "margin: inf": (ValueError, (Z, Y), {"margin": float("inf")}, "margin: expected .*, got inf"),
    "margin: a string": (TypeError, (Z, Y), {"margin": "2"}, "margin: expected .*, got str"),
    "margin: None": (TypeError, (Z, Y), {"margin": None}, "margin: expected .*, got NoneType"),
    "margin: a Tensor": (TypeError, (Z, Y), {"margin": Z[0, 0]}, "margin: expected .* Tensor"),
    "margin: a bool": (TypeError, (Z, Y), {"margin": True}, "margin: expected .*, got bool"),
    "margin: a list": (TypeError, (Z, Y), {"margin": [2.0]}, "margin: expected .*, got list"),
    "gradient: a list": (
        ValueError,
        (Z, Y),
        {"gradient": ["both"]},
        r"gradient: expected .*, got \['both'\]",
    ),
    "gradient": (
        ValueError,
        (Z, Y),
        {"gradient": "first"},
        'gradient: expected one of "both", "second", got \'first\'',
    ),
    "reduction": (
        ValueError,
        (Z, Y),
        {"reduction": "avg"},
        'reduction: expected one of "none", "mean", "sum", got \'avg\'',
    ),
    "reduction: None": (ValueError, (Z, Y), {"reduction": None}, "reduction: .*, got None"),
    "precision": (
        ValueError,
        (Z, Y),
        {"precision": "float32"},
        'precision: expected one of "fp32", "tf32x3", "bf16x3", "tf32", got \'float32\'',
    ),
    "precision: None": (ValueError, (Z, Y), {"precision": None}, "precision: .*, got None"),
    "impl": (
        ValueError,
        (Z, Y),
        {"impl": "fast"},
        'impl: expected one of "auto", "fused", "reference", got \'fast\'',
    ),
    "ignore_index: a float": (TypeError, (Z, Y), {"ignore_index": 1.0}, "ignore_index: .* float"),
    "ignore_index: None": (TypeError, (Z, Y), {"ignore_index": None}, "ignore_index: .* NoneType"),
    "ignore_index: 2**63": (
        ValueError,
        (Z, Y),
        {"ignore_index": 2**63},
        "ignore_index: expected .*, got 9223372036854775808",
    ),
}


@implementations
@pytest.mark.parametrize("case", BAD)
def test_bad_argument(case: str, impl: str) -> None:
    error, positional, keywords, message = BAD[case]
    with pytest.raises(error, match=message):
        pair_kl_hinge_loss(*positional, **{"impl": impl, **keywords})


@pytest.mark.parametrize("case", BAD)
def test_bad_argument_of_the_public_reference(case: str) -> None:
    error, positional, keywords, message = BAD[case]
    if "impl" not in keywords:
        with pytest.raises(error, match=message):
            reference_loss(*positional, **keywords)


OF_THE_MODULE = inspect.signature(PairKLHingeLoss).parameters.keys() - {"level_weights"}


@pytest.mark.parametrize("case", [case for case in BAD if BAD[case][2].keys() & OF_THE_MODULE])
def test_bad_option_of_the_module(case: str) -> None:
    """At once, not at the first batch."""
    error, _, keywords, message = BAD[case]
    with pytest.raises(error, match=message):
        PairKLHingeLoss(**keywords)


def test_an_option_like_one_that_was_right() -> None:
    """Options that have been checked are not checked again: True == 1, but is no margin."""
    pair_kl_hinge_loss(Z, Y, margin=1)
    with pytest.raises(TypeError, match="margin: expected a float, got bool"):
        pair_kl_hinge_loss(Z, Y, margin=True)


def test_options_are_keywords() -> None:
    with pytest.raises(TypeError):
        pair_kl_hinge_loss(Z, Y, 2.0)


@pytest.mark.cuda
def test_labels_on_another_device() -> None:
    with pytest.raises(ValueError, match="labels: expected the device of logits, cuda:0, got cpu"):
        pair_kl_hinge_loss(Z.cuda(), Y)


def test_device_without_kernels() -> None:
    """impl="auto" means the reference there; "fused" says that there are none."""
    with pytest.raises(RuntimeError, match="'mps'"):
        pairloss._library.require("mps")


# ---- The operator, called past the checks of Python ----------------------------------------


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"logits": Z[0]}, "logits"),
        ({"logits": Z[None]}, "logits"),
        ({"logits": Z[:, :0]}, "logits"),
        ({"logits": Z.long()}, "logits"),
        ({"logits": Z[:3]}, "labels"),
        ({"labels": Y.int()}, "labels: expected int64"),
        ({"labels": Y[:, None, None]}, "labels"),
        ({"labels": Y[:, None][:, :0]}, "labels"),
        ({"labels": None}, "expected either labels or similarity"),
        ({"similarity": SIMILARITY}, "expected either labels or similarity"),
        ({"labels": None, "similarity": SIMILARITY.long()}, "similarity: expected int8"),
        ({"labels": None, "similarity": SIMILARITY[:3]}, "similarity: expected shape"),
        ({"ref_logits": Z}, "expected ref_logits and ref_labels"),
        ({"ref_logits": Z[:, :2], "ref_labels": Y}, "ref_logits: expected shape"),
        ({"ref_logits": Z.double(), "ref_labels": Y}, "ref_logits: expected shape"),
        ({"ref_logits": Z, "ref_labels": Y[:2]}, "ref_labels: expected shape"),
        ({"ref_logits": Z, "ref_labels": Y[:, None].expand(4, 2)}, "ref_labels: expected 1"),
        ({"sample_weights": Z[:, 0].double()}, "sample_weights"),
        ({"sample_weights": Z[:2, 0]}, "sample_weights"),
        ({"ref_sample_weights": Z[:, 0]}, "ref_sample_weights"),
        ({"level_weights": torch.ones(2, dtype=torch.float64)}, "level_weights"),
        ({"level_weights": torch.ones(1)}, "level_weights"),
        ({"margin": -1.0}, "margin"),
        ({"margin": float("nan")}, "margin"),
        ({"gradient": 2}, "gradient"),
        ({"gradient": -1}, "gradient"),
        ({"reduction": 3}, "reduction"),
        ({"reduction": -1}, "reduction"),
        ({"precision": 4}, "precision: expected 0"),
        ({"precision": -1}, "precision: expected 0"),
    ],
)
def test_operator_refuses(wrong: dict[str, object], message: str, device: torch.device) -> None:
    def to_device(name: str, x: object) -> object:
        return x.to(device) if isinstance(x, torch.Tensor) and name != "level_weights" else x

    given = {"logits": Z, "labels": Y, **wrong}
    arguments = operator.arguments(**{name: to_device(name, x) for name, x in given.items()})
    with pytest.raises(RuntimeError, match=f"pairloss::pair_kl_hinge: {message}"):
        torch.ops.pairloss.pair_kl_hinge(*arguments)
    if "reduction" in wrong:
        return
    rows = torch.zeros(4, device=device)
    with pytest.raises(RuntimeError, match=f"pairloss::pair_kl_hinge: {message}"):
        torch.ops.pairloss.pair_kl_hinge_backward(rows, *arguments)


@pytest.mark.parametrize("shape", [(), (3,), (4, 1), (4, 3)])
def test_backward_operator_refuses_the_upstream(
    shape: tuple[int, ...], device: torch.device
) -> None:
    arguments = operator.arguments(Z.to(device), Y.to(device))
    with pytest.raises(RuntimeError, match="grad_output: expected shape"):
        torch.ops.pairloss.pair_kl_hinge_backward(torch.zeros(shape, device=device), *arguments)


# ---- The module, and the rest of the surface -----------------------------------------------


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"margin": 0.7, "gradient": "second", "reduction": "sum"},
        {"reduction": "none", "ignore_index": 2, "impl": "reference"},
    ],
)
def test_module_equals_function(options: dict[str, object], device: torch.device) -> None:
    logits, labels = cases.make(BATCH).to(device)
    module = PairKLHingeLoss(**options)
    expected = pair_kl_hinge_loss(logits, labels, **options)
    for same in (module, copy.deepcopy(module), pickle.loads(pickle.dumps(module))):
        actual = same(logits, labels)
        assert torch.equal(actual, expected)
        upstream = torch.full_like(actual, 0.3)
        assert torch.equal(
            torch.autograd.grad(actual, logits, upstream)[0],
            torch.autograd.grad(expected, logits, upstream, retain_graph=True)[0],
        )


def test_module_with_stats(device: torch.device) -> None:
    logits, labels = cases.make(BATCH).to(device)
    loss, stats = PairKLHingeLoss(return_stats=True)(logits, labels)
    expected_loss, expected_stats = pair_kl_hinge_loss(logits, labels, return_stats=True)
    assert torch.equal(loss, expected_loss)
    assert stats == expected_stats


def test_module_has_no_state_and_names_its_options() -> None:
    module = PairKLHingeLoss(0.5, gradient="second", reduction="sum", ignore_index=7)
    assert list(module.state_dict()) == list(module.parameters()) == []
    text = repr(module)
    assert text.startswith("PairKLHingeLoss(")
    for part in ("margin=0.5", "gradient='second'", "reduction='sum'", "ignore_index=7"):
        assert part in text


def test_function_module_and_reference_have_the_same_options() -> None:
    def options(function: object) -> dict[str, object]:
        parameters = inspect.signature(function).parameters
        return {name: parameter.default for name, parameter in parameters.items()}

    function, reference = options(pair_kl_hinge_loss), options(reference_loss)
    module, batch = options(PairKLHingeLoss), options(PairKLHingeLoss.forward)
    del batch["self"]
    assert {**module, **batch} == function
    del function["impl"]
    assert reference == function


def test_auto_is_the_fused_loss(device: torch.device) -> None:
    logits, labels = cases.make(BATCH).to(device)
    auto, fused = (pair_kl_hinge_loss(logits, labels, impl=i) for i in ("auto", "fused"))
    assert torch.equal(auto, fused)
    assert type(auto.grad_fn) is type(fused.grad_fn)


def test_stats_keep_no_graph(device: torch.device) -> None:
    """They may be collected over an epoch without keeping every batch's gradient."""
    logits, labels = cases.make(BATCH).to(device)
    for impl in ("fused", "reference"):
        stats = pair_kl_hinge_loss(logits, labels, return_stats=True, impl=impl)[1]
        assert isinstance(stats, pairloss.PairStats)
        assert all(value.grad_fn is None for value in stats)


def test_log_probabilities_as_they_are(device: torch.device) -> None:
    """The softmax leaves them unchanged."""
    logits, labels = cases.make(BATCH).to(device)
    expected = pair_kl_hinge_loss(logits, labels)
    for same in (torch.log_softmax(logits, 1), torch.softmax(logits, 1).log()):
        torch.testing.assert_close(pair_kl_hinge_loss(same, labels), expected)


@implementations
def test_default_device_does_not_matter(device: torch.device, impl: str) -> None:
    logits, labels = cases.make(BATCH).to(device)
    levels = torch.stack([labels, labels % 2], 1)

    def evaluate() -> torch.Tensor:
        return pair_kl_hinge_loss(logits, levels, level_weights=[0.3, 1.0], impl=impl)

    expected = evaluate()
    with torch.device("meta"):
        assert torch.equal(evaluate(), expected)
