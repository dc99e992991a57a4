"""How good a clustering or a classification is, counted on a labelled set.

A clustering is judged through its table of counts: row = cluster, column = class.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.optimize import linear_sum_assignment
from scipy.stats import binomtest
from sklearn.metrics import adjusted_mutual_info_score, normalized_mutual_info_score

Ints = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Accuracy:
    """``correct`` of ``n``, with the 95 % interval of Wilson."""

    correct: int
    n: int
    value: float
    low: float
    high: float

    @classmethod
    def of(cls, correct: int, n: int) -> Accuracy:
        interval = binomtest(correct, n).proportion_ci(confidence_level=0.95, method="wilson")
        return cls(correct, n, correct / n, float(interval.low), float(interval.high))


@dataclass(frozen=True)
class Classification:
    """Scores of predicted classes.

    Attributes:
        accuracy: share of the images whose class is predicted.
        confusion: images of each class (row) by predicted class (column).
    """

    accuracy: Accuracy
    confusion: list[list[int]]


@dataclass(frozen=True)
class Clustering:
    """Scores of a clustering of a test set.

    Attributes:
        accuracy: under the best one-to-one assignment of clusters to classes *of the test set*, as
            in the paper.
        chance_accuracy: what ``accuracy`` is on average when the same clusters are dealt out to
            the images at random. With few images and many classes it is far from 0: the assignment
            is fitted on the very images that it is judged by.
        train_fitted_accuracy: under the assignment that is best on the training set.
        nmi: mutual information over the geometric mean of the two entropies (Strehl & Ghosh).
        nmi_arithmetic: over their arithmetic mean, which is never the larger.
        ami: mutual information adjusted for chance: 0 on average for random clusters.
        purity: share of the images that belong to the largest class of their cluster.
        clusters_in_use: clusters with at least one image.
        confusion: images of each class (row) in the cluster assigned to each class (column).
    """

    accuracy: Accuracy
    chance_accuracy: float
    train_fitted_accuracy: Accuracy
    nmi: float
    nmi_arithmetic: float
    ami: float
    purity: float
    clusters_in_use: int
    confusion: list[list[int]]


def contingency(clusters: Ints, labels: Ints, num_clusters: int, num_classes: int) -> Ints:
    """Counts (num_clusters, num_classes) of the images of each class in each cluster."""
    flat = np.bincount(clusters * num_classes + labels, minlength=num_clusters * num_classes)
    return flat.reshape(num_clusters, num_classes).astype(np.int64)


def assign(counts: Ints) -> Ints:
    """For each cluster the class it stands for, -1 for none: the Hungarian assignment.

    One-to-one, and the number of rightly labelled images is the largest possible.
    """
    classes = np.full(len(counts), -1, dtype=np.int64)
    rows, columns = linear_sum_assignment(counts, maximize=True)
    classes[rows] = columns
    return classes


def assignment_accuracy(classes: Ints, clusters: Ints, labels: Ints) -> Accuracy:
    """Accuracy of a clustering when cluster c stands for the class ``classes[c]``."""
    return Accuracy.of(int((classes[clusters] == labels).sum()), len(labels))


def chance_accuracy(
    clusters: Ints, labels: Ints, num_clusters: int, num_classes: int, shuffles: int = 20
) -> float:
    """Mean accuracy of ``clusters`` shuffled over the images, under the best assignment each."""
    rng = np.random.default_rng(0)
    found = []
    for _ in range(shuffles):
        shuffled = rng.permutation(clusters)
        classes = assign(contingency(shuffled, labels, num_clusters, num_classes))
        found.append(float((classes[shuffled] == labels).mean()))
    return float(np.mean(found))


def clusters_in_use(counts: Ints) -> int:
    """Clusters with at least one image."""
    return int(counts.any(axis=1).sum())


def purity(counts: Ints) -> float:
    """Share of the images that belong to the largest class of their cluster."""
    return float(counts.max(axis=1).sum() / counts.sum())


def nmi(clusters: Ints, labels: Ints, average: str = "geometric") -> float:
    """I(clusters; labels) / sqrt(H(clusters) H(labels)); 0 when all images are in one cluster.

    Args:
        average: of the two entropies; "arithmetic" divides by (H(clusters) + H(labels)) / 2.
    """
    return float(normalized_mutual_info_score(labels, clusters, average_method=average))


def accuracy(predictions: Ints, labels: Ints) -> Accuracy:
    """Accuracy of predicted classes."""
    return Accuracy.of(int((predictions == labels).sum()), len(labels))


def classification(predictions: Ints, labels: Ints, num_classes: int) -> Classification:
    """All scores of predicted classes."""
    counts = contingency(predictions, labels, num_classes, num_classes)
    return Classification(accuracy(predictions, labels), counts.T.tolist())


def clustering(
    clusters: Ints,
    labels: Ints,
    train_clusters: Ints,
    train_labels: Ints,
    num_clusters: int,
    num_classes: int,
) -> Clustering:
    """All scores of the clustering of a test set; the training set only fits an assignment."""
    counts = contingency(clusters, labels, num_clusters, num_classes)
    train_counts = contingency(train_clusters, train_labels, num_clusters, num_classes)
    classes = assign(counts)
    return Clustering(
        accuracy=assignment_accuracy(classes, clusters, labels),
        chance_accuracy=chance_accuracy(clusters, labels, num_clusters, num_classes),
        train_fitted_accuracy=assignment_accuracy(assign(train_counts), clusters, labels),
        nmi=nmi(clusters, labels),
        nmi_arithmetic=nmi(clusters, labels, "arithmetic"),
        ami=float(adjusted_mutual_info_score(labels, clusters, average_method="geometric")),
        purity=purity(counts),
        clusters_in_use=clusters_in_use(counts),
        confusion=_by_class(counts, classes).tolist(),
    )


def _by_class(counts: Ints, classes: Ints) -> Ints:
    """Class (row) x assigned class (column); clusters that stand for no class follow at the end."""
    order = [int(c) for c in np.argsort(classes) if classes[c] >= 0]
    order += [c for c in range(len(counts)) if classes[c] < 0]
    return counts[order].T
