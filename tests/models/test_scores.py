"""A network's scores on the right split, in evaluation mode."""

import pytest
import torch
from torch import nn

from models.data import ImageData, Level, MemorySplit
from models.scores import epoch_scores, final_scores, predict


class Lookup(nn.Module):
    """An image of one pixel holds the number of its largest output."""

    def forward(self, images):
        assert not self.training
        return {"fc3": nn.functional.one_hot(images.flatten().long(), 3).float()}


def split(clusters, labels):
    return MemorySplit(torch.tensor(clusters).view(-1, 1, 1, 1), torch.tensor(labels)[:, None])


@pytest.fixture
def data():
    # In the training set cluster 0 is class 0; in the test set it is class 1.
    train = split([0, 1, 2, 2], [0, 1, 2, 2])
    test = split([0, 1, 2, 2, 2], [1, 0, 2, 2, 0])
    return ImageData("", (Level("class", ("a", "b", "c")),), train, test)


def final(data, clusters=True):
    return final_scores(Lookup(), data, predict(Lookup(), data.test), clusters=clusters)


def test_predict_keeps_the_order(data):
    outputs = predict(Lookup(), data.test, batch_size=2)
    assert outputs.argmax(1).tolist() == [0, 1, 2, 2, 2]


def test_only_one_assignment_is_fitted_on_the_training_set(data):
    scores = final(data)
    assert scores.accuracy.correct == 4
    assert scores.train_fitted_accuracy.correct == 2
    assert scores.accuracy.n == scores.train_fitted_accuracy.n == 5
    assert scores.confusion == [[1, 0, 1], [0, 1, 0], [0, 0, 2]]


def test_curves_show_the_same_as_the_final_scores(data):
    record = epoch_scores(Lookup(), data, clusters=True)
    expected = {"accuracy": 4 / 5, "nmi": pytest.approx(final(data).nmi), "clusters_in_use": 3}
    assert record == expected
    assert epoch_scores(Lookup(), data, clusters=False) == {"accuracy": 2 / 5}


def test_a_classification_is_scored_by_its_classes(data):
    scores = final(data, clusters=False)
    assert (scores.accuracy.correct, scores.accuracy.n) == (2, 5)
    assert scores.confusion == [[0, 1, 1], [1, 0, 0], [0, 0, 2]]
