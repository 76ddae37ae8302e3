"""How images of the Pathfinder task look: the published settings, and which others can work."""

import dataclasses
import math
from dataclasses import dataclass
from typing import Any

SMALLEST_SIZE = 32


@dataclass(frozen=True)
class Options:
    """How images look, with lengths in pixels; the defaults are the published ones at 32 pixels.

    Args:
        contour_length: dashes of each of the two long paths; 6, 9 and 14 are the published levels.
        distractor_dashes: the most dashes of all distractors together; one of them has a third of ``contour_length``.
        dash_length: length of a dash.
        dash_thickness: thickness of a dash.
        margins: half the gap between two dashes of a path; every image has one of them.
        clearance: how much more than that gap is at least between the middle lines of dashes that are not neighbours.
        continuity: how straight paths are; the next dash turns by less than 90 degrees divided by it.
        contrast: brightness of dashes, where dots have 1; those thinner than a pixel lose what they do not cover.
        dot_radius: radius of the dots.
        seed_distance: between the beginnings of the two long paths, and at least between the dots.
        padding: width of the border; the middle of a dash stays away from it by the margin.
    """

    contour_length: int = 14
    distractor_dashes: int = 20
    dash_length: float = 2
    dash_thickness: float = 0.5
    margins: tuple[float, ...] = (1,)
    clearance: float = 0
    continuity: float = 1
    contrast: float = 1.5
    dot_radius: float = 1.5
    seed_distance: float = 7
    padding: float = 1

    @property
    def distractor_length(self) -> int:
        """Dashes of a distractor."""
        return self.contour_length // 3

    @property
    def distractors(self) -> int:
        """Number of distractors."""
        return self.distractor_dashes // self.distractor_length


# What the Long Range Arena changed, and the defaults of the published generator for the rest; but the clearance is
# about what its masks of pixels come to.
PUBLISHED = {
    32: Options(),
    64: Options(14, 22, 5, 1, (1,), 1, 1.8, 0.8, 2.5, 12, 1),
    128: Options(14, 35, 5, 1.5, (2, 3), 1.5, 1.8, 0.9, 3, 20, 1),
    256: Options(14, 30, 5, 2, (3,), 2, 1.8, 1, 5, 27, 22),
}


def published(size: int, **changes: Any) -> Options:
    """The published options of a size, or of the next smaller size that has some.

    Args:
        size: side of the image.
        changes: options that differ from them.

    Returns:
        The options.

    Raises:
        ValueError: if the size is too small.
    """
    if size < SMALLEST_SIZE:
        raise ValueError(f"the size {size} is too small: choose at least {SMALLEST_SIZE}")
    return dataclasses.replace(PUBLISHED[max(known for known in PUBLISHED if known <= size)], **changes)


def check(size: int, seed: int, index: int, options: Options) -> None:
    """Raise ``ValueError`` for a size, a series, a number of an image or options that cannot work."""
    for name, value, least in (
        ("size", size, SMALLEST_SIZE),
        ("seed", seed, 0),
        ("index", index, 0),
        ("contour_length", options.contour_length, 3),
        ("distractor_dashes", options.distractor_dashes, 0),
        ("continuity", options.continuity, 0.75),
        ("padding", options.padding, 0),
        ("clearance", options.clearance, 0),
    ):
        if not least <= value < math.inf:
            raise ValueError(f"the {name} {value} does not work: choose at least {least}")
    lengths = [("margin", margin) for margin in options.margins or (0,)]
    lengths += [
        (name, getattr(options, name)) for name in ("dash_length", "dash_thickness", "contrast", "dot_radius")
    ]
    for name, value in lengths:
        if not 0 < value < math.inf:
            raise ValueError(f"the {name} {value} does not work: choose more than 0")
    margin = max(options.margins)
    least, most = 2 * (options.dot_radius + margin), size / 4
    if least > most:
        raise ValueError(
            f"dots with a dot_radius of {options.dot_radius} and margins of {margin} are too large "
            f"for {size} pixels: lower one of them"
        )
    if not least <= options.seed_distance <= most:
        raise ValueError(
            f"the seed_distance {options.seed_distance} does not work in {size} pixels: choose from {least} to {most}"
        )
    span = options.contour_length * (options.dash_length + 2 * margin) - 2 * margin
    if span <= options.seed_distance:
        raise ValueError(
            f"a path with contour_length {options.contour_length} is {span} pixels long, and its ends are to be "
            f"a seed_distance of {options.seed_distance} apart: raise the one or lower the other"
        )
    dashes = 2 * options.contour_length + options.distractors * options.distractor_length
    needed = dashes * (options.dash_length + 2 * margin) * (2 * margin + options.clearance)
    if needed > (size - 2 * options.padding) ** 2 or options.padding >= size / 2:
        raise ValueError(
            f"{dashes} dashes, from contour_length {options.contour_length} and distractor_dashes "
            f"{options.distractor_dashes}, are too many for {size} pixels with a padding of {options.padding}: "
            "lower one of them"
        )
