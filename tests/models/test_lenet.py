"""LeNet's shapes and sizes."""

import pytest
import torch
from torch import nn

from models.lenet import LeNet


def weight_shapes(model):
    layers = (m for m in model.modules() if isinstance(m, (nn.Conv2d, nn.Linear)))
    return [tuple(layer.weight.shape) for layer in layers]


@pytest.mark.parametrize(
    ("in_shape", "features"),
    [((1, 16, 16), 50), ((1, 28, 28), 800), ((3, 32, 32), 1250), ((3, 32, 24), 750)],
)
def test_shapes(in_shape, features):
    model = LeNet(in_shape, 10)
    assert model.features(torch.randn(2, *in_shape)).shape == (2, features)
    assert model(torch.randn(2, *in_shape)).shape == (2, 10)
    assert model.fc1.in_features == features


def test_sizes_are_the_papers_by_default():
    model = LeNet((3, 32, 32), 10)
    assert weight_shapes(model) == [
        (20, 3, 5, 5),
        (50, 20, 5, 5),
        (500, 1250),
        (500, 500),
        (10, 500),
    ]
    norms = [m for m in model.modules() if isinstance(m, (nn.BatchNorm1d, nn.BatchNorm2d))]
    assert [m.num_features for m in norms] == [20, 50, 500, 500]


def test_sizes_are_arguments():
    model = LeNet((3, 32, 32), 34, conv_sizes=(40, 100), fc_sizes=(64, 32), batch_norm=False)
    assert weight_shapes(model) == [(40, 3, 5, 5), (100, 40, 5, 5), (64, 2500), (32, 64), (34, 32)]
    assert not [m for m in model.modules() if isinstance(m, (nn.BatchNorm1d, nn.BatchNorm2d))]


def test_the_output_is_linear():
    outputs = LeNet((1, 16, 16), 10)(torch.randn(64, 1, 16, 16))
    assert outputs.min() < 0 < outputs.max()


def test_too_small_an_input_is_refused():
    with pytest.raises(ValueError, match="at least 16 x 16 pixels, got 8 x 8"):
        LeNet((1, 8, 8), 10)
