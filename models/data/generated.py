"""Images drawn by a program, for trying things out without a data set; no result on them says
anything about real images.

A coarse class is a shape, a fine class a shape with a pattern on it. Patterns are shared between
shapes, so a fine class takes both. Place, size, rotation, colours, contrast and background are
drawn at random for each image: the mean colour says nothing about the class.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import interpolate

from models.data.hierarchy import Hierarchy, hierarchy
from models.data.image_data import DataOptions, ImageData, MemorySplit
from models.data.transforms import NORMALISATION, normalise

CHUNK = 64  # images drawn together
MAX_TURN = 0.35  # radians; more would make shapes look like one another

# How dark a pattern is at (u, v), by the distance r from the centre, where the outline is at about
# r = 1; f is the number of periods from the centre to the outline.
Pattern = Callable[[Tensor, Tensor, Tensor, float], Tensor]
PATTERNS: dict[str, Pattern] = {
    "plain": lambda u, v, r, f: torch.zeros_like(u),
    "bars": lambda u, v, r, f: _wave(f * v),
    "stripes": lambda u, v, r, f: _wave(f * u),
    "rising": lambda u, v, r, f: _wave(f * (u + v) / math.sqrt(2)),
    "falling": lambda u, v, r, f: _wave(f * (u - v) / math.sqrt(2)),
    "rings": lambda u, v, r, f: _wave(f * r),
    "dots": lambda u, v, r, f: (_wave(f * u) * _wave(f * v)).sqrt(),
    "hem": lambda u, v, r, f: torch.sigmoid(20 * (r - 0.65)),
    "eye": lambda u, v, r, f: torch.sigmoid(20 * (0.35 - r)),
    "cap": lambda u, v, r, f: torch.sigmoid(20 * (-v - 0.1)),
}


@dataclass(frozen=True)
class Plan:
    """``fine_per_coarse``: how many fine classes each coarse class has; ``clutter``, from 0 to 1:
    how much of all that hides the classes."""

    title: str
    fine_per_coarse: tuple[int, ...]
    train_images: int
    test_images: int
    size: int
    periods: float
    clutter: float


# The numbers of classes and images of the paper's Birdsnap34.
BIRDS = Plan(
    title="Generated birds",
    fine_per_coarse=(7, 1, 5, 2, 1, 1, 1, 1, 1, 1, 1, 1, 2, 3, 1, 3, 1, 1),
    train_images=2982,
    test_images=158,
    size=64,
    periods=2.5,
    clutter=1,
)
# Similar : dissimilar pairs = 1 : 119, in images that LeNet takes.
MANY = Plan(
    title="Generated, many classes",
    fine_per_coarse=(10,) * 12,
    train_images=9600,
    test_images=2400,
    size=28,
    periods=1.5,
    clutter=0.3,
)


def load_birds(data_root: object, download: bool, options: DataOptions) -> ImageData:
    """34 fine and 18 coarse classes, 2982 and 158 images, 3 x 64 x 64 or ``options.image_size``."""
    return generate(BIRDS, options)


def load_many(data_root: object, download: bool, options: DataOptions) -> ImageData:
    """120 fine and 12 coarse classes, 9600 and 2400 images, 3 x 28 x 28."""
    return generate(MANY, options)


def generate(plan: Plan, options: DataOptions) -> ImageData:
    """The images of ``plan``, drawn from ``options.split_seed``."""
    size = options.image_size or plan.size
    coarse = torch.arange(len(plan.fine_per_coarse))
    shape_of = coarse.repeat_interleave(torch.tensor(plan.fine_per_coarse))
    pattern_of = torch.cat(
        [(torch.arange(n) + i) % len(PATTERNS) for i, n in enumerate(plan.fine_per_coarse)]
    )
    classes = _names(shape_of, pattern_of)
    outlines = _outlines(len(coarse))
    generator = torch.Generator().manual_seed(options.split_seed)

    def draw(count: int) -> MemorySplit:
        fine = torch.arange(count) % len(shape_of)
        parts = [
            _draw(outlines[shape_of[rows]], pattern_of[rows], plan, size, generator)
            for rows in fine.split(CHUNK)
        ]
        return MemorySplit(torch.cat(parts), classes.labels(fine), normalise)

    train, test = draw(plan.train_images), draw(plan.test_images)
    return ImageData(
        title=plan.title,
        levels=classes.levels,
        train=train,
        test=test,
        notes={
            "source": f"generated, for testing only (seed {options.split_seed})",
            "split": f"{len(train)} training and {len(test)} test images",
            "normalisation": NORMALISATION,
        },
    )


def _names(shape_of: Tensor, pattern_of: Tensor) -> Hierarchy:
    patterns = list(PATTERNS)
    return hierarchy(
        ("shape and pattern", "shape"),
        {
            f"shape {shape + 1}, {patterns[pattern]}": [f"shape {shape + 1}"]
            for shape, pattern in zip(shape_of.tolist(), pattern_of.tolist(), strict=True)
        },
    )


def _outlines(count: int) -> Tensor:
    """Shapes (count, 6, 2), unlike one another: the outline's distance from the centre at angle t
    is 1 + sum_k (a_k cos k t + b_k sin k t), for k = 1 ... 6."""
    generator = torch.Generator().manual_seed(0)  # the classes are always the same
    candidates = torch.randn(40 * count, 6, 2, generator=generator)
    candidates *= 0.45 / candidates.flatten(1).norm(dim=1).view(-1, 1, 1)
    angles = torch.arange(128) * (2 * math.pi / 128)
    curves = _radius(candidates[:, :, :, None], angles)
    candidates, curves = (t[curves.amin(1) > 0.3] for t in (candidates, curves))
    # The farthest from all chosen so far is next; shapes turned by up to 2 MAX_TURN count as one.
    steps = round(2 * MAX_TURN * 128 / (2 * math.pi))
    turned = torch.stack([curves.roll(step, 1) for step in range(-steps, steps + 1)])
    chosen = [0]
    nearest = torch.full((len(curves),), math.inf)
    while len(chosen) < count:
        distance = (turned - curves[chosen[-1]]).square().mean(2).amin(0)
        nearest = torch.minimum(nearest, distance)
        chosen.append(int(nearest.argmax()))
    return candidates[chosen]


def _radius(outlines: Tensor, angles: Tensor) -> Tensor:
    """``outlines`` (..., 6, 2, and the axes of ``angles``): distance from the centre by angle."""
    total = torch.ones(())
    for k in range(6):
        waves = (k + 1) * angles
        total = total + outlines[:, k, 0] * waves.cos() + outlines[:, k, 1] * waves.sin()
    return total


def _draw(
    outlines: Tensor, patterns: Tensor, plan: Plan, size: int, generator: torch.Generator
) -> Tensor:
    """Images (b, 3, size, size) uint8 of these shapes (b, 6, 2) with these patterns (b,)."""
    b, clutter = len(outlines), plan.clutter

    def uniform(low: float, high: float, *shape: int) -> Tensor:
        return low + (high - low) * torch.rand(b, *shape, generator=generator)

    axis = torch.linspace(-1, 1, size)
    y, x = axis.view(1, size, 1), axis.view(1, 1, size)
    scale, turn = uniform(0.35, 0.65, 1, 1), uniform(-MAX_TURN, MAX_TURN, 1, 1)
    x, y = (x - uniform(-0.25, 0.25, 1, 1)) / scale, (y - uniform(-0.25, 0.25, 1, 1)) / scale
    u, v = x * turn.cos() + y * turn.sin(), y * turn.cos() - x * turn.sin()
    outlines = outlines + 0.03 * clutter * torch.randn(outlines.shape, generator=generator)
    radius = _radius(outlines[:, :, :, None, None], torch.atan2(v, u))
    r = torch.hypot(u, v) / radius
    inside = torch.sigmoid((1 - r) * radius * scale * size)[:, None]  # an edge of about two pixels

    pattern = _paint(patterns, u, v, r, plan.periods)
    elsewhere = torch.randint(len(PATTERNS), (b,), generator=generator)
    shift = uniform(-1, 1, 1, 1)
    around = _paint(elsewhere, v + shift, u - shift, r + shift.abs(), plan.periods)

    plumage = uniform(0.1, 0.9, 3, 1, 1)
    away = torch.where(plumage.mean(1, keepdim=True) > 0.5, 0.0, 1.0)  # where contrast has room
    marks = plumage + uniform(0.5 - 0.35 * clutter, 0.7, 1, 1, 1) * (away - plumage)
    body = plumage + pattern[:, None] * (marks - plumage)

    clouds = interpolate(uniform(0, 1, 1, 5, 5), size=(size, size), mode="bicubic")
    clouds = clouds + uniform(0, 0.6 * clutter, 1, 1, 1) * around[:, None]
    sky, ground = uniform(0, 1, 3, 1, 1), uniform(0, 1, 3, 1, 1)
    background = sky + clouds * (ground - sky)

    image = background + inside * (body - background)
    image = image + (0.04 + 0.06 * clutter) * torch.randn(image.shape, generator=generator)
    return (255 * image.clamp(0, 1)).round().to(torch.uint8)


def _paint(patterns: Tensor, u: Tensor, v: Tensor, r: Tensor, periods: float) -> Tensor:
    """Each image's own pattern (b,) at its points, (b, H, W)."""
    painted = torch.empty_like(u)
    for i, pattern in enumerate(PATTERNS.values()):
        mine = patterns == i
        painted[mine] = pattern(u[mine], v[mine], r[mine], periods)
    return painted


def _wave(periods: Tensor) -> Tensor:
    return 0.5 + 0.5 * torch.cos(2 * math.pi * periods)
