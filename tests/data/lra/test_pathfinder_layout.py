"""Drawn images of Pathfinder: the label is right, nothing else tells it, and the image shows what the layout says."""

import dataclasses
from typing import Any, Dict, List, Tuple

import numpy as np
import pytest
from numpy.typing import NDArray

from luna_fairseq.data.lra import pathfinder_layout
from luna_fairseq.data.lra.pathfinder_image import draw, generate
from luna_fairseq.data.lra.pathfinder_layout import Layout, layout
from luna_fairseq.data.lra.pathfinder_options import published

SIZES = (32, 128)
SEED = 3
Layouts = Dict[int, List[Layout]]


@pytest.fixture(scope="module")
def layouts() -> Layouts:
    return {size: [layout(size, SEED, index) for index in range(6)] for size in SIZES}


def ends(path: NDArray[np.float64]) -> NDArray[np.float64]:
    return path[[0, -1], [0, 1]]


@pytest.mark.parametrize("size", SIZES)
def test_same_arguments_same_image(size: int) -> None:
    image, label = generate(size, SEED, 4)
    again, same = generate(size, SEED, 4, options=published(size))
    assert image.shape == (size, size) and image.dtype == np.uint8
    assert (image == again).all() and label == same
    others = [generate(size, SEED, 6), generate(size, SEED + 1, 4)]
    others.append(generate(size, SEED, 4, options=published(size, distractor_dashes=8)))
    for other, _ in others:
        assert (image != other).any()


def test_labels_alternate() -> None:
    assert [generate(32, SEED, index)[1] for index in range(6)] == [0, 1, 0, 1, 0, 1]


@pytest.mark.parametrize("size", SIZES)
def test_dots_are_ends_of_one_path_or_of_two(layouts: Layouts, size: int) -> None:
    for index, found in enumerate(layouts[size]):
        owners = []
        for dot in found.dots:
            near = [np.linalg.norm(ends(path) - dot, axis=1).min() for path in found.paths]
            assert min(near) < 1e-6
            owners.append(int(np.argmin(near)))
        assert set(owners) <= {0, 1}, "a distractor has a dot"
        assert found.label == index % 2 == int(owners[0] == owners[1])
        assert np.linalg.norm(found.dots[0] - found.dots[1]) >= published(size).seed_distance


@pytest.mark.parametrize("size", SIZES)
def test_paths_are_as_published(layouts: Layouts, size: int) -> None:
    options = published(size)
    counts = {32: [14, 14] + 5 * [4], 128: [14, 14] + 8 * [4]}[size]
    for found in layouts[size]:
        assert [len(path) for path in found.paths] == counts
        for path in found.paths:
            dashes = path[:, 1] - path[:, 0]
            np.testing.assert_allclose(np.linalg.norm(dashes, axis=1), options.dash_length)
            gaps = np.linalg.norm(path[1:, 0] - path[:-1, 1], axis=1)
            cosines = (dashes[1:] * dashes[:-1]).sum(1) / options.dash_length**2
            assert cosines.min() > np.cos(np.pi / 2 / options.continuity)
            # Two margins meet at the angle of the turn.
            margins = gaps / np.sqrt(2 + 2 * cosines)
            assert any(np.allclose(margins, margin) for margin in options.margins)


@pytest.mark.parametrize("size", SIZES)
def test_dashes_keep_their_distance(layouts: Layouts, size: int) -> None:
    options = published(size)
    border = options.padding + min(options.margins) - 1e-6
    for found in layouts[size]:
        assert found.gap >= 2 * min(options.margins)
        dashes = np.concatenate(found.paths)
        assert border <= dashes.min() and dashes.max() <= size - border
        # Many points on every dash, as complex numbers.
        points = (dashes[:, :1] + np.linspace(0, 1, 11)[:, None] * (dashes[:, 1:] - dashes[:, :1])) @ [1, 1j]
        apart = abs(points[:, None, :, None] - points[None, :, None, :]).min((2, 3))
        path, number = np.array([(p, n) for p, dashes in enumerate(found.paths) for n in range(len(dashes))]).T
        strangers = (path[:, None] != path) | (abs(number[:, None] - number) > 1)
        assert apart[strangers].min() >= found.gap - 1e-6
        # A dot touches no dash but its own.
        for dot in found.dots @ [1, 1j]:
            own, other = np.sort(abs(points - dot).min(1))[:2]
            assert own < 1e-6
            assert other >= options.dot_radius + options.dash_thickness / 2 + min(options.margins) - 1e-6


@pytest.mark.parametrize("size", SIZES)
def test_image_shows_the_layout_and_nothing_else(layouts: Layouts, size: int) -> None:
    options = published(size)
    centres = np.stack(np.meshgrid(np.arange(size), np.arange(size)), -1) + 0.5
    for found in layouts[size][:3]:
        image = draw(found, size, options)
        far = np.full((size, size), np.inf)
        for dash in np.concatenate(found.paths):
            part = np.clip((centres - dash[0]) @ (dash[1] - dash[0]) / options.dash_length**2, 0, 1)[..., None]
            from_dash = np.linalg.norm(centres - dash[0] - part * (dash[1] - dash[0]), axis=-1)
            far = np.minimum(far, from_dash - options.dash_thickness / 2)
            assert image[from_dash < 0.5].max() > 90, "a dash is missing"
        for dot in found.dots:
            from_dot = np.linalg.norm(centres - dot, axis=-1) - options.dot_radius
            assert (image[from_dot <= -0.5] == 255).all(), "a dot is missing"
            far = np.minimum(far, from_dot)
        assert (image[far >= 0.5] == 0).all()
        # Only dots are white, so that they can be told from dashes.
        dots = [np.linalg.norm(centres - dot, axis=-1) < options.dot_radius + 0.5 for dot in found.dots]
        assert image[~(dots[0] | dots[1])].max() <= 255 * 0.9 + 1


@pytest.mark.parametrize("size", SIZES)
def test_the_label_only_moves_one_dot(size: int) -> None:
    """Whatever else depended on the label would give it away."""
    compared = 0
    for number in range(8):
        pair: List[Any] = [
            pathfinder_layout._Attempt(size, published(size), np.random.default_rng(number)).layout(label)
            for label in (0, 1)
        ]
        if pair[0] is None or pair[1] is None:
            assert pair[0] is pair[1]
            continue
        compared += 1
        for path, other in zip(pair[0].paths, pair[1].paths, strict=True):
            assert (path == other).all()
        assert (pair[0].dots[0] == pair[1].dots[0]).all()
        assert (pair[0].dots[1] != pair[1].dots[1]).any()
        apart = [np.linalg.norm(found.dots[0] - found.dots[1]) for found in pair]
        assert abs(apart[0] - apart[1]) <= size * pathfinder_layout.DISTANCE_TOLERANCE
    assert compared >= 3


def test_statistics_of_the_image_do_not_tell_the_label() -> None:
    values: Tuple[List[List[float]], List[List[float]]] = ([], [])
    for index in range(100):
        found = layout(48, SEED, index, options=published(48, contour_length=6))
        image = draw(found, 48, published(48))
        apart = float(np.linalg.norm(found.dots[0] - found.dots[1]))
        values[found.label].append([float(image.mean()), float((image > 250).sum()), apart])
    zero, one = (np.array(label) for label in values)
    assert len(zero) == len(one)
    error = np.sqrt(zero.var(0) / len(zero) + one.var(0) / len(one))
    assert (abs(zero.mean(0) - one.mean(0)) < 3.5 * error).all()


@pytest.mark.parametrize(("size", "length"), [(32, 6), (48, 9), (256, 14)])
def test_other_sizes_and_levels(size: int, length: int) -> None:
    options = published(size, contour_length=length)
    found = layout(size, SEED, 1, options=options)
    dashes = {32: 20, 48: 20, 256: 30}[size]
    assert [len(path) for path in found.paths] == 2 * [length] + dashes // (length // 3) * [length // 3]
    assert draw(found, size, options).shape == (size, size)


def test_dots_are_not_close() -> None:
    """Short and curved paths, whose ends often are."""
    options = published(32, contour_length=5, continuity=0.75, seed_distance=8)
    for index in range(20):
        dots = layout(32, SEED, index, options=options).dots
        assert np.linalg.norm(dots[0] - dots[1]) >= 8


def test_without_distractors() -> None:
    assert len(layout(32, SEED, 0, options=published(32, distractor_dashes=0)).paths) == 2


def test_published_options() -> None:
    assert published(128).margins == (2, 3)
    assert published(100) == published(64)
    assert published(32, continuity=1.8) == dataclasses.replace(published(32), continuity=1.8)


@pytest.mark.parametrize(
    ("size", "changes", "message"),
    [
        (32, {"contour_length": 60}, "from contour_length 60 .* too many for 32 pixels"),
        (32, {"distractor_dashes": 200}, "distractor_dashes 200, are too many for 32 pixels"),
        (32, {"contour_length": 2}, "contour_length 2 does not work: choose at least 3"),
        (32, {"continuity": 0.5}, "continuity 0.5 does not work: choose at least 0.75"),
        (32, {"margins": ()}, "margin 0 does not work: choose more than 0"),
        (32, {"dash_length": float("nan")}, "dash_length nan does not work"),
        (32, {"dot_radius": 4}, "dot_radius of 4 and margins of 1 are too large for 32 pixels"),
        (32, {"seed_distance": 9}, r"seed_distance 9 does not work in 32 pixels: choose from 5.0 to 8.0"),
        (32, {"padding": 16}, "too many for 32 pixels with a padding of 16"),
        (128, {"contour_length": 3, "dash_length": 2}, "contour_length 3 is 18 pixels long"),
    ],
)
def test_options_that_cannot_work(size: int, changes: Dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        generate(size, SEED, 0, options=published(size, **changes))


def test_arguments_that_cannot_work() -> None:
    for size, seed, index, message in (
        (31, 0, 0, "size 31 is too small: choose at least 32"),
        (32, -1, 0, "seed -1 does not work"),
        (32, 0, -1, "index -1 does not work"),
    ):
        with pytest.raises(ValueError, match=message):
            generate(size, seed, index)
    with pytest.raises(ValueError, match="size 31 does not work"):
        generate(31, 0, 0, options=published(32))


def test_gives_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """What only trying can tell to be too much ends, too."""
    monkeypatch.setattr(pathfinder_layout, "MOST_ATTEMPTS", 3)
    with pytest.raises(
        ValueError, match=r"no room was found in 32 pixels .*distractor_dashes 60.*: lower one of them"
    ):
        generate(32, SEED, 0, options=published(32, distractor_dashes=60))
