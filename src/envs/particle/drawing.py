"""Pictures of the plane, anti-aliased."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont

Colour = tuple[int, int, int]
Point = Sequence[float] | np.ndarray  # x, y

SIZE = 420  # pixels
HALF_WIDTH = 1.4  # of the square shown; bodies start within 1
OVERSAMPLING = 3
LABEL_SIZE = 14  # pixels, at most
# told apart by most colour-blind readers (Okabe and Ito 2008)
PALETTE: tuple[Colour, ...] = (
    (0, 114, 178), (230, 159, 0), (0, 158, 115), (204, 121, 167), (86, 180, 233), (213, 94, 0),
    (240, 228, 66),
)  # fmt: skip
BLACK: Colour = (40, 40, 40)
GREY: Colour = (150, 150, 150)
WHITE: Colour = (255, 255, 255)


class Canvas:
    """A square of the plane around the origin; coordinates and radii in its units, widths of lines
    in pixels.
    """

    def __init__(self) -> None:
        side = SIZE * OVERSAMPLING
        self._scale = side / (2 * HALF_WIDTH)
        self._image = Image.new("RGB", (side, side), WHITE)
        self._pen = ImageDraw.Draw(self._image)
        low, high = self._at((-1, 1)), self._at((1, -1))
        self._pen.rectangle((*low, *high), outline=(225, 225, 225), width=OVERSAMPLING)

    def disc(
        self,
        centre: Point,
        radius: float,
        fill: Colour | None,
        line: Colour = BLACK,
        width: float = 1,
        label: str = "",
    ) -> None:
        """A circle with a word in it; beyond the square shown it is hollow and at the edge."""
        self._shape(self._pen.ellipse, centre, radius, fill, line, width, label)

    def square(
        self,
        centre: Point,
        radius: float,
        fill: Colour | None,
        line: Colour = BLACK,
        width: float = 1,
        label: str = "",
    ) -> None:
        """A square of half width `radius` with a word in it; beyond the square shown it is hollow
        and at the edge.
        """
        self._shape(self._pen.rectangle, centre, radius, fill, line, width, label)

    def cross(self, centre: Point, radius: float, colour: Colour, width: float = 2) -> None:
        """A diagonal cross."""
        x, y = centre
        self.line((x - radius, y - radius), (x + radius, y + radius), colour, width)
        self.line((x - radius, y + radius), (x + radius, y - radius), colour, width)

    def line(self, start: Point, end: Point, colour: Colour, width: float = 1) -> None:
        """A straight line."""
        self._pen.line(
            (*self._at(start), *self._at(end)), fill=colour, width=round(width * OVERSAMPLING)
        )

    def picture(self) -> np.ndarray:
        """uint8 [H, W, 3]."""
        return np.array(self._image.reduce(OVERSAMPLING))

    def _shape(
        self,
        shape: Callable[..., None],
        centre: Point,
        radius: float,
        fill: Colour | None,
        line: Colour,
        width: float,
        label: str,
    ) -> None:
        given = np.asarray(centre, dtype=float)
        if (np.abs(given) > HALF_WIDTH).any():
            line, fill, width = (line if fill in (None, WHITE) else fill), WHITE, 2
            given = np.clip(given, radius - HALF_WIDTH, HALF_WIDTH - radius)
        x, y = self._at(given)
        r = radius * self._scale
        shape(
            (x - r, y - r, x + r, y + r), fill=fill, outline=line, width=round(width * OVERSAMPLING)
        )
        if label:
            font = ImageFont.load_default(min(1.3 * r, LABEL_SIZE * OVERSAMPLING))
            self._pen.text(
                (x, y), label, fill=line if fill in (None, WHITE) else WHITE, font=font, anchor="mm"
            )

    def _at(self, point: Point) -> tuple[float, float]:
        return (float(point[0]) + HALF_WIDTH) * self._scale, (
            HALF_WIDTH - float(point[1])
        ) * self._scale
