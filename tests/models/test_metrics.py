"""Scores of a clustering, against hand-worked cases, scikit-learn and exhaustive search."""

import itertools
import math

import numpy as np
import pytest
from sklearn.metrics import (
    accuracy_score,
    adjusted_mutual_info_score,
    confusion_matrix,
    normalized_mutual_info_score,
)

from models import metrics


@pytest.fixture(params=range(3))
def random_case(request):
    """Clusters that follow the labels three times of four, under a permutation of their names."""
    rng = np.random.default_rng(request.param)
    labels = rng.integers(0, 5, 200)
    noise = rng.integers(0, 2, 200)  # makes two clusters large
    clusters = rng.permutation(5)[np.where(rng.random(200) < 0.75, labels, noise)]
    return clusters, labels


def test_hand_worked_clustering():
    # Cluster 0 holds the classes {1, 1, 0}, cluster 1 {0}, cluster 2 {2, 2}.
    clusters = np.array([0, 0, 0, 1, 2, 2])
    labels = np.array([1, 1, 0, 0, 2, 2])
    train_clusters, train_labels = np.array([0, 1, 2]), np.array([0, 1, 2])
    scores = metrics.clustering(clusters, labels, train_clusters, train_labels, 3, 3)
    assert scores.accuracy.correct == 5  # 0 -> 1, 1 -> 0, 2 -> 2
    assert scores.train_fitted_accuracy.correct == 3  # 0 -> 0, 1 -> 1, 2 -> 2
    assert scores.purity == pytest.approx(5 / 6)
    assert scores.clusters_in_use == 3
    assert scores.confusion == [[1, 1, 0], [0, 2, 0], [0, 0, 2]]


def test_contingency_is_scikit_learns(random_case):
    clusters, labels = random_case
    expected = confusion_matrix(labels, clusters, labels=range(5)).T
    np.testing.assert_array_equal(metrics.contingency(clusters, labels, 5, 5), expected)


def test_assignment_is_the_best_of_all_permutations(random_case):
    clusters, labels = random_case
    best = max(
        accuracy_score(labels, np.array(classes)[clusters])
        for classes in itertools.permutations(range(5))
    )
    classes = metrics.assign(metrics.contingency(clusters, labels, 5, 5))
    assert sorted(classes) == list(range(5))
    assert metrics.assignment_accuracy(classes, clusters, labels).value == pytest.approx(best)


def test_more_clusters_than_classes():
    counts = np.array([[3, 0], [0, 1], [2, 4]])
    np.testing.assert_array_equal(metrics.assign(counts), [0, -1, 1])
    clusters, labels = np.array([0, 1, 2]), np.array([0, 1, 1])
    assert metrics.assignment_accuracy(metrics.assign(counts), clusters, labels).correct == 2
    scores = metrics.clustering(clusters, labels, clusters, labels, 3, 2)
    assert np.shape(scores.confusion) == (2, 3)
    assert np.sum(scores.confusion) == 3


def test_nmi_is_the_definition_with_the_geometric_mean(random_case):
    clusters, labels = random_case
    joint = metrics.contingency(clusters, labels, 5, 5) / len(labels)
    p, q = joint.sum(1), joint.sum(0)
    information = sum(
        joint[i, j] * math.log(joint[i, j] / (p[i] * q[j]))
        for i in range(5)
        for j in range(5)
        if joint[i, j]
    )
    entropies = [-sum(x * math.log(x) for x in side if x) for side in (p, q)]
    expected = information / math.sqrt(math.prod(entropies))
    assert metrics.nmi(clusters, labels) == pytest.approx(expected)
    # The case tells the geometric mean from the arithmetic one.
    arithmetic = metrics.nmi(clusters, labels, "arithmetic")
    assert arithmetic == pytest.approx(2 * information / sum(entropies))
    assert arithmetic == pytest.approx(normalized_mutual_info_score(labels, clusters))
    assert abs(expected - arithmetic) > 1e-6
    scores = metrics.clustering(clusters, labels, clusters, labels, 5, 5)
    assert (scores.nmi, scores.nmi_arithmetic) == pytest.approx((expected, arithmetic))


def test_chance_is_that_of_random_clusters(random_case):
    clusters, labels = random_case
    rng = np.random.default_rng(5)
    random = []
    for _ in range(200):
        shuffled = rng.permutation(clusters)
        counts = metrics.contingency(shuffled, labels, 5, 5)
        classes = metrics.assign(counts)
        random.append(accuracy_score(labels, classes[shuffled]))
    chance = metrics.chance_accuracy(clusters, labels, 5, 5, shuffles=200)
    assert chance == pytest.approx(np.mean(random), abs=0.01)
    assert chance > 0.22  # not 1 / 5: the assignment is fitted
    scores = metrics.clustering(clusters, labels, clusters, labels, 5, 5)
    assert scores.chance_accuracy == pytest.approx(chance, abs=0.02)
    expected = adjusted_mutual_info_score(labels, clusters, average_method="geometric")
    assert scores.ami == pytest.approx(expected)
    random_scores = metrics.clustering(shuffled, labels, clusters, labels, 5, 5)
    assert abs(random_scores.ami) < 0.05 < scores.ami


def test_collapsed_clustering():
    labels = np.arange(20) % 4
    clusters = np.zeros(20, dtype=np.int64)
    scores = metrics.clustering(clusters, labels, clusters, labels, 4, 4)
    assert scores.accuracy.value == scores.purity == 0.25
    assert scores.nmi == 0
    assert scores.clusters_in_use == 1


def test_perfect_clustering_under_other_names():
    labels = np.arange(30) % 3
    clusters = (labels + 1) % 3
    scores = metrics.clustering(clusters, labels, clusters, labels, 3, 3)
    assert scores.accuracy.value == scores.purity == 1
    assert scores.nmi == pytest.approx(1)
    np.testing.assert_array_equal(scores.confusion, 10 * np.eye(3))


@pytest.mark.parametrize(("correct", "n"), [(84, 157), (0, 10), (10, 10)])
def test_wilson_interval_is_the_formula(correct, n):
    z, p = 1.959963984540054, correct / n
    centre = (p + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    accuracy = metrics.Accuracy.of(correct, n)
    assert accuracy.value == p
    assert accuracy.low == pytest.approx(centre - half, abs=1e-9)
    assert accuracy.high == pytest.approx(centre + half, abs=1e-9)


def test_classification():
    scores = metrics.classification(np.array([0, 1, 1, 2]), np.array([0, 1, 2, 2]), 3)
    assert (scores.accuracy.correct, scores.accuracy.n) == (3, 4)
    assert scores.confusion == [[1, 0, 0], [0, 1, 0], [0, 1, 1]]
