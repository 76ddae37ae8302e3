"""Draws images of the Pathfinder task."""

import math

import numpy as np
from numpy.typing import NDArray

from luna_fairseq.data.lra.pathfinder_layout import Layout, layout
from luna_fairseq.data.lra.pathfinder_options import Options, published


def generate(size: int, seed: int, index: int, *, options: Options | None = None) -> tuple[NDArray[np.uint8], int]:
    """One image, which depends on nothing but the arguments.

    Args:
        size: side of the image.
        seed: number of the series of images.
        index: number of the image in its series; odd ones have the label 1, even ones 0.
        options: how the image looks; ``published(size)`` by default.

    Returns:
        The image, [size, size], with white as 255, and its label.

    Raises:
        ValueError: if the options cannot work.
    """
    options = options or published(size)
    found = layout(size, seed, index, options=options)
    return draw(found, size, options), found.label


def draw(found: Layout, size: int, options: Options) -> NDArray[np.uint8]:
    """The image of a layout.

    Args:
        found: where everything lies.
        size: side of the image.
        options: how the image looks.

    Returns:
        The image, [size, size], with white as 255.
    """
    dashes = np.concatenate(found.paths)
    tails, heads = np.concatenate([dashes[:, 0], found.dots]), np.concatenate([dashes[:, 1], found.dots])
    dotted = (np.arange(len(tails)) >= len(dashes))[:, None, None]
    radius = np.where(dotted, options.dot_radius, options.dash_thickness / 2)
    brightness = np.where(dotted, 1, options.contrast)

    # Every dash, and every dot as one of no length, has a square patch of pixels, as large as the largest needs it.
    side = math.ceil(max(options.dash_length + options.dash_thickness, 2 * options.dot_radius)) + 3
    corners = np.floor((tails + heads) / 2 - side / 2).astype(int)
    columns, rows = (corners[:, axis, None] + np.arange(side) for axis in range(2))
    columns, rows = columns[:, None, :], rows[:, :, None]
    x, y = columns + 0.5 - tails[:, 0, None, None], rows + 0.5 - tails[:, 1, None, None]
    across, down = (heads - tails).T[:, :, None, None]
    along = np.clip((x * across + y * down) / np.maximum(across**2 + down**2, 1e-9), 0, 1)
    distance = np.hypot(x - along * across, y - along * down)
    # How much of a pixel is covered, as if one of its sides faced the line.
    covered = np.clip(radius + 0.5 - distance, 0, np.minimum(1, 2 * radius))

    image = np.zeros((size + 2 * side, size + 2 * side))
    np.maximum.at(image, (rows + side, columns + side), covered * brightness)
    return np.round(255 * np.minimum(1, image[side:-side, side:-side])).astype(np.uint8)
