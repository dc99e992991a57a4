"""Shapes and sizes of the networks, the variants, and ImageNet's weights."""

import pytest
import torch
import torchvision
from torch import nn

from models.networks import (
    VARIANTS,
    Head,
    WeightsError,
    alexnet,
    lenet,
    load_imagenet,
    taps,
)
from models.networks.variants import COARSE, FINE, has_branch


def weight_shapes(model):
    layers = (m for m in model.modules() if isinstance(m, (nn.Conv2d, nn.Linear)))
    return [tuple(layer.weight.shape) for layer in layers]


@pytest.mark.parametrize(
    ("in_shape", "features"),
    [((1, 16, 16), 50), ((1, 28, 28), 800), ((3, 32, 32), 1250), ((3, 32, 24), 750)],
)
def test_lenet_takes_any_image_of_16_pixels_or_more(in_shape, features):
    model = lenet(in_shape, 10)
    assert model.head.fc1.in_features == features
    assert model(torch.randn(2, *in_shape))["fc3"].shape == (2, 10)


def test_lenet_has_the_papers_sizes():
    model = lenet((3, 32, 32), 10)
    convolutions, linear = [(20, 3, 5, 5), (50, 20, 5, 5)], [(500, 1250), (500, 500), (10, 500)]
    assert weight_shapes(model) == convolutions + linear
    norms = [m for m in model.modules() if isinstance(m, (nn.BatchNorm1d, nn.BatchNorm2d))]
    assert [m.num_features for m in norms] == [20, 50, 500, 500]
    plain = lenet((3, 32, 32), 10, batch_norm=False)
    assert not [m for m in plain.modules() if isinstance(m, (nn.BatchNorm1d, nn.BatchNorm2d))]


@pytest.mark.parametrize(("size", "features"), [(63, 256), (64, 256), (128, 2304), (224, 9216)])
def test_alexnet_sees_6_x_6_places_or_as_many_as_there_are(size, features):
    with torch.device("meta"):  # shapes alone
        model = alexnet((3, size, size), 34)
        assert model.head.fc1.in_features == features
        assert model(torch.empty(2, 3, size, size))["fc3"].shape == (2, 34)


def test_double_doubles_every_layer_but_the_ends():
    with torch.device("meta"):
        single, double = (alexnet((3, 224, 224), 34, width=width) for width in (1, 2))
    for one, two in zip(weight_shapes(single), weight_shapes(double), strict=True):
        expected = (one[0] if one[0] == 34 else 2 * one[0], one[1] if one[1] == 3 else 2 * one[1])
        assert two[:2] == expected
        assert two[2:] == one[2:]


@pytest.mark.parametrize(("network", "size"), [(lenet, 15), (alexnet, 62)])
def test_too_small_an_image_is_refused(network, size):
    with pytest.raises(ValueError, match=rf"at least \d+ x \d+ pixels, got {size} x {size}"):
        network((3, size, size), 10)


def test_the_layers_are_what_their_names_say():
    torch.manual_seed(0)
    head = Head(6, (5, 4, 3), branch=True)
    x = torch.randn(7, 6)
    outputs = head(x)

    def linear(layer, inputs):
        return inputs @ layer.weight.T + layer.bias

    expected = {"fc1": linear(head.fc1, x), "skip": linear(head.skip, x)}
    expected["act1"] = (expected["fc1"] + expected["skip"]).clamp(min=0)
    expected["act_skip"] = expected["skip"].clamp(min=0)
    expected["fc2"] = linear(head.fc2, expected["act1"])
    expected["act2"] = expected["fc2"].clamp(min=0)
    expected["fc3"] = linear(head.fc3, expected["act2"])
    torch.testing.assert_close(outputs, expected)
    assert outputs["fc1"].min() < 0 < outputs["fc1"].max()  # before its ReLU


def test_without_a_branch_there_is_no_skip():
    head = Head(6, (5, 4, 3))
    outputs = head(torch.randn(7, 6))
    assert set(outputs) == {"fc1", "act1", "fc2", "act2", "fc3"}
    torch.testing.assert_close(outputs["act1"], outputs["fc1"].relu())


def test_the_branch_leaves_the_other_layers_first_weights_alone():
    heads = []
    for branch in (False, True):
        torch.manual_seed(0)
        heads.append(Head(6, (5, 4, 3), branch=branch).state_dict())
    without, with_branch = heads
    shared = {name: with_branch[name] for name in without}
    torch.testing.assert_close(shared, without, rtol=0, atol=0)


def test_the_branch_and_fc1_see_the_same_dropout():
    torch.manual_seed(0)
    head = Head(200, (5, 4, 3), branch=True, dropout=0.5)
    head.skip.load_state_dict(head.fc1.state_dict())
    outputs = head(torch.randn(7, 200))
    torch.testing.assert_close(outputs["skip"], outputs["fc1"])
    plain = head.fc1(torch.ones(7, 200)) - head.eval()(torch.ones(7, 200))["fc1"]
    assert plain.abs().max() == 0  # none in evaluation


def test_the_variants_are_the_papers():
    layers = {name: [(t.layer, t.level, t.weight) for t in v] for name, v in VARIANTS.items()}
    assert layers == {
        "A": [("fc3", FINE, 1.0)],
        "B": [("fc2", FINE, 0.2), ("fc3", FINE, 0.8)],
        "C": [("fc1", COARSE, 0.4), ("fc2", FINE, 0.2), ("fc3", FINE, 0.4)],
        "D": [("skip", COARSE, 0.4), ("fc2", FINE, 0.2), ("fc3", FINE, 0.4)],
    }
    assert [has_branch(name) for name in "ABCD"] == [False, False, False, True]


def test_taps_with_other_weights_and_after_relu():
    chosen = taps("D", (0.5, 0.25, 0.25), after_relu=True)
    assert [(t.layer, t.weight) for t in chosen] == [
        ("act_skip", 0.5),
        ("act2", 0.25),
        ("fc3", 0.25),
    ]
    with pytest.raises(ValueError, match=r"expected 2 for variant B \(fc2, fc3\), got 1"):
        taps("B", (1.0,))


@pytest.fixture(scope="module")
def torchvision_alexnet():
    torch.manual_seed(0)
    return torchvision.models.alexnet(weights=None).eval()


def test_imagenet_weights_give_torchvisions_activations(torchvision_alexnet, tmp_path):
    path = tmp_path / "alexnet.pth"
    torch.save(torchvision_alexnet.state_dict(), path)
    torch.manual_seed(1)
    model = alexnet((3, 224, 224), 34, branch=True).eval()
    before = {n: w.clone() for n, w in model.state_dict().items()}
    load_imagenet(model, str(path))
    after = model.state_dict()
    for name in ("head.fc3.weight", "head.fc3.bias", "head.skip.weight"):
        torch.testing.assert_close(after[name], before[name], rtol=0, atol=0)

    images = torch.randn(2, 3, 224, 224)
    with torch.no_grad():
        theirs = torchvision_alexnet.avgpool(torchvision_alexnet.features(images)).flatten(1)
        torch.testing.assert_close(model.features(images).flatten(1), theirs)
        # fc6 and fc7 with the skip branch silenced.
        model.head.skip.weight.zero_()
        model.head.skip.bias.zero_()
        fc7 = torchvision_alexnet.classifier[:5](theirs)
        torch.testing.assert_close(model(images)["fc2"], fc7)


def test_imagenet_weights_that_cannot_be_used_say_why(tmp_path):
    model = alexnet((3, 64, 64), 10, width=0.1)
    with pytest.raises(WeightsError, match=r"cannot be read.*\n.*https://.*--imagenet FILE"):
        load_imagenet(model, str(tmp_path / "missing.pth"))
    (tmp_path / "text.pth").write_text("no weights")
    with pytest.raises(WeightsError, match="cannot be read"):
        load_imagenet(model, str(tmp_path / "text.pth"))
    torch.save({"features.0.weight": torch.zeros(64, 3, 11, 11)}, tmp_path / "other.pth")
    with pytest.raises(
        WeightsError, match=r"features\.0\.weight expected \(6, 3, 11, 11\), got \(64,"
    ):
        load_imagenet(model, str(tmp_path / "other.pth"))
