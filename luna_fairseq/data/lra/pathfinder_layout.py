"""Where everything lies in an image of the Pathfinder task: are two dots the ends of one dashed path or of two.

The task is that of Linsley et al. 2018, "Learning long-range spatial dependencies with horizontal gated recurrent
units"; the settings are those with which the Long Range Arena (Tay et al. 2021) made its images of 32, 64, 128 and
256 pixels. The algorithm is another one than theirs: paths are placed without regard to the label, and so that one
dot has two possible places at about the same distance from the other, of which the label only picks one.
"""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from luna_fairseq.data.lra.pathfinder_options import Options, check, published

# How often an image is begun anew, with the next sub-seed, before its options count as impossible.
MOST_ATTEMPTS = 200
# How many dashes are tried in one attempt, for every one that is needed, before the attempt is given up.
TARGET_EFFORT, DISTRACTOR_EFFORT = 6, 12
# So many turns are considered at once for a dash that follows another, and so many places for a distractor.
TURNS = 36
# From a dead end, up to so many of the last dashes of both long paths are taken back.
MOST_TAKEN_BACK = 6
# The square of a distance, and not infinity, which a product of matrices need not survive.
FAR = 1e12
# How much the distance between the dots may depend on the label, as a part of the side of the image.
DISTANCE_TOLERANCE = 1 / 16


@dataclass(frozen=True)
class Layout:
    """Where everything lies; a place is (x, y) in pixels from the upper left corner of the image.

    Args:
        paths: the two long paths, and after them the distractors; each is [dashes, both ends, place].
        dots: the centres of the two dots, [2, place].
        label: 1 if the dots are the ends of one path, 0 if they are ends of two.
        gap: the least distance between the middle lines of two dashes that are not neighbours on a path.
    """

    paths: tuple[NDArray[np.float64], ...]
    dots: NDArray[np.float64]
    label: int
    gap: float


def layout(size: int, seed: int, index: int, *, options: Options | None = None) -> Layout:
    """The layout of one image, which depends on nothing but the arguments.

    Args:
        size: side of the image.
        seed: number of the series of images.
        index: number of the image in its series; odd ones have the label 1, even ones 0.
        options: how the image looks; ``published(size)`` by default.

    Raises:
        ValueError: if the options cannot work.
    """
    options = options or published(size)
    check(size, seed, index, options)
    for attempt in range(MOST_ATTEMPTS):
        found = _Attempt(size, options, np.random.default_rng((size, seed, index, attempt))).layout(index % 2)
        if found is not None:
            return found
    raise ValueError(
        f"no room was found in {size} pixels for paths with contour_length {options.contour_length}, "
        f"distractor_dashes {options.distractor_dashes}, continuity {options.continuity} and seed_distance "
        f"{options.seed_distance}: lower one of them"
    )


# Here a place is a complex number, counted from the centre of the image, and a turn is a product.
Complex = NDArray[np.complex128]


def _lift(places: NDArray[np.complexfloating[Any, Any]]) -> NDArray[np.float64]:
    """Places as columns (1, x, y, x^2 + y^2), in which the square of a distance from a given place is linear."""
    flat = places.ravel()
    return np.array([np.ones(len(flat)), flat.real, flat.imag, flat.real**2 + flat.imag**2])


def _motion(turn: complex, shift: complex) -> NDArray[np.float64]:
    """The matrix that turns lifted places about the centre, and then shifts them."""
    x, y, cosine, sine = shift.real, shift.imag, turn.real, turn.imag
    return np.array(
        [
            [1, 0, 0, 0],
            [x, cosine, -sine, 0],
            [y, sine, cosine, 0],
            [x * x + y * y, 2 * (x * cosine + y * sine), 2 * (y * cosine - x * sine), 1],
        ]
    )


class _Attempt:
    """One try to place everything.

    Dashes are numbered as they are placed: those of the two long paths in turn, then distractor by distractor.

    Args:
        size: side of the image.
        options: how the image looks.
        rng: where chance comes from.
    """

    def __init__(self, size: int, options: Options, rng: np.random.Generator) -> None:
        self.size, self.options, self.rng = size, options, rng
        self.margin = float(options.margins[rng.integers(len(options.margins))])
        self.gap = 2 * self.margin + options.clearance
        self.pitch = options.dash_length + 2 * self.margin
        self.half = size / 2 - options.padding - self.margin
        # A dash stands for itself by points on it, and they keep as much more distance as they can hide between them.
        intervals = math.ceil(2 * options.dash_length / self.gap)
        self.along = np.linspace(0, options.dash_length, intervals + 1) + 0j
        hidden = (options.dash_length / intervals / 2) ** 2
        least = self.gap**2 + hidden
        dot = options.dot_radius + options.dash_thickness / 2 + self.margin
        self.more_for_dots = max(0.0, dot**2 + hidden - least)
        # What turns a lifted place into the square of the distance from it, less the least that it must be.
        self.apart = np.array([[-least, 0, 0, 1], [0, -2, 0, 0], [0, 0, -2, 0], [1, 0, 0, 0]])
        self.dash = _lift(self.along)
        # The dashes that can follow one that goes to the right and ends at the centre, and how unlikely they are.
        angles = np.pi * ((np.arange(TURNS) + 0.5) / TURNS - 0.5)
        self.turns = np.exp(1j * angles / options.continuity)
        self.unlikely = 1 / np.cos(angles) ** 2
        self.following = _lift(self.margin + self.turns * (self.margin + self.along[:, None]))
        # A circle that is as tight as a path can curve.
        self.radius = self.pitch / abs(self.turns[-1] - 1)
        self.long = 2 * options.contour_length
        count = self.long + options.distractors * options.distractor_length
        self.tails, self.heads = [0j] * count, [0j] * count
        # Rows that must not be negative, times every lifted place that comes: four borders, and the points of dashes.
        self.limits = np.empty((4 + count * len(self.along), 4))
        self.rows = [slice(start, start + len(self.along)) for start in range(4, len(self.limits), len(self.along))]
        self.limits[:4] = [[self.half, *way, 0] for way in ((1, 0), (-1, 0), (0, 1), (0, -1))]

    def layout(self, label: int) -> Layout | None:
        """Place everything; none if there is no room.

        Args:
            label: which dots the layout gets; nothing else depends on it.
        """
        if not self.place_targets() or not self.place_distractors():
            return None
        choices, equal = self.dots(np.array(self.heads[self.long - 1 : self.long]))
        if not equal.any():  # by the last digit of a number
            return None
        first, other, same = self.rng.choice(choices[equal[:, 0], :, 0])
        dashes = np.stack([self.tails, self.heads], 1)
        paths = [dashes[: self.long : 2], dashes[1 : self.long : 2]]
        paths += [*dashes[self.long :].reshape(-1, self.options.distractor_length, 2)]
        return Layout(
            paths=tuple(self.coordinates(path) for path in paths),
            dots=self.coordinates(np.array([first, same if label else other])),
            label=label,
            gap=self.gap,
        )

    def coordinates(self, places: Complex) -> NDArray[np.float64]:
        """Complex numbers as (x, y) from the upper left corner."""
        return np.stack([places.real, places.imag], -1) + self.size / 2

    def place(self, dash: int, tail: complex, way: complex) -> None:
        """Place a dash from ``tail`` on; ``way`` is its direction."""
        self.tails[dash], self.heads[dash] = tail, tail + self.options.dash_length * way
        rows = self.rows[dash]
        self.limits[rows] = (self.apart @ _motion(way, tail) @ self.dash).T
        if dash < 2:
            self.limits[rows.start, 0] -= self.more_for_dots
        elif self.long - 2 <= dash < self.long:
            self.limits[rows.stop - 1, 0] -= self.more_for_dots

    def fit(self, limits: NDArray[np.float64], lifted: NDArray[np.float64]) -> NDArray[np.bool_]:
        """Which dashes keep within limits; ``lifted`` has their first points, then their second ones and so on."""
        least = np.minimum.reduce(limits @ lifted)
        return np.minimum.reduce(least.reshape(len(self.along), -1)) >= 0

    def follow(self, dash: int) -> bool:
        """Place a dash that is not the first one of its path, at random; tells whether there is room for it."""
        before = dash - 2 if dash < self.long else dash - 1
        head = self.heads[before]
        heading = (head - self.tails[before]) / self.options.dash_length
        limits = self.limits[: self.rows[dash].start] @ _motion(heading, head)
        limits[self.rows[before]] = [FAR, 0, 0, 0]
        fits = self.fit(limits, self.following)
        if self.long - 2 <= dash < self.long:
            tips = self.following[:, -TURNS:]
            fits &= (limits[4:] @ tips).min(0) >= self.more_for_dots
            if dash == self.long - 1:
                fits &= self.dots(head + heading * (tips[1] + 1j * tips[2]))[1].any(0)
        # The least of these numbers chooses by the square of the cosine of the turn times the continuity, among those
        # that fit, however few they are.
        order = np.where(fits, self.rng.standard_exponential(TURNS) * self.unlikely, np.inf)
        while order[chosen := int(order.argmin())] < np.inf:
            way = heading * complex(self.turns[chosen])
            tail = head + self.margin * (heading + way)
            if dash >= self.long or self.can_curve(dash, tail + self.options.dash_length * way, way):
                self.place(dash, tail, way)
                return True
            order[chosen] = np.inf
        return False

    def can_curve(self, dash: int, head: complex, way: complex) -> bool:
        """Whether a long path, of which a dash ends at ``head``, has room to go on and to curve before the border."""
        ahead = (self.long - 1 - dash) // 2 * self.pitch
        right = math.copysign(head.real, head.real * way.real) + min(ahead, self.radius) * (1 - abs(way.imag))
        down = math.copysign(head.imag, head.imag * way.imag) + min(ahead, self.radius) * (1 - abs(way.real))
        return max(right, down) <= self.half

    def place_targets(self) -> bool:
        """Place the two long paths, dash by dash in turn; tells whether there was room."""
        reach = self.size / 2 - 2 * self.options.seed_distance
        middle = complex(*self.rng.uniform(-reach, reach, 2))
        apart, *ways = np.exp(2j * np.pi * self.rng.random(3))
        for dash, way in enumerate(ways):
            tail = middle + (dash - 0.5) * self.options.seed_distance * apart
            if not self.fit(self.limits[: self.rows[dash].start], _lift(tail + way * self.along[:, None])).all():
                return False
            self.place(dash, complex(tail), complex(way))
        dash = 2
        for _ in range(TARGET_EFFORT * self.long):
            if not self.follow(dash):
                dash = max(2 + dash % 2, dash - 2 * int(self.rng.integers(1, MOST_TAKEN_BACK + 1)))
            elif dash == self.long - 1:
                return True
            else:
                dash += 1
        return False

    def dots(self, tips: Complex) -> tuple[Complex, NDArray[np.bool_]]:
        """Where the dots can be if the second long path ends at one of some tips.

        One dot is at the beginning of a path and the other at the end of one, whatever the label is.

        Args:
            tips: the tips.

        Returns:
            Four choices, [4, 3, tips], each of a place for one dot and two for the other: at an end of the other
            path, and of the same one; and which of the choices have these at equal distances, [4, tips].
        """
        begin, other_begin, end, other_end = np.broadcast_arrays(*self.tails[:2], self.heads[self.long - 2], tips)
        choices = np.array(
            [
                [begin, other_end, end],
                [end, other_begin, begin],
                [other_begin, end, other_end],
                [other_end, begin, other_begin],
            ]
        )
        distances = abs(choices[:, 1:] - choices[:, :1])
        equal = abs(distances[:, 0] - distances[:, 1]) <= DISTANCE_TOLERANCE * self.size
        return choices, equal & (distances.min(1) >= self.options.seed_distance)

    def place_distractors(self) -> bool:
        """Place the distractors; tells whether there was room."""
        dash, length = self.long, self.options.distractor_length
        for _ in range(DISTRACTOR_EFFORT * (len(self.tails) - self.long)):
            if dash == len(self.tails):
                break
            begun = (dash - self.long) % length
            if begun:
                dash += 1 if self.follow(dash) else -begun
                continue
            x, y = self.rng.uniform(-self.half, self.half, (2, TURNS))
            tails, ways = x + 1j * y, np.exp(2j * np.pi * self.rng.random(TURNS))
            lifted = _lift(tails + ways * self.along[:, None])
            fits = self.fit(self.limits[: self.rows[dash].start], lifted)
            if fits.any():
                self.place(dash, complex(tails[fits][0]), complex(ways[fits][0]))
                dash += 1
        return dash == len(self.tails)
