"""Pictures of worlds made of cells, anti-aliased."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from envs.particle.drawing import BLACK, OVERSAMPLING, WHITE, Colour

LINE: Colour = (205, 205, 205)
LONGEST_SIDE = 560  # pixels
LARGEST_CELL = 56  # pixels


class GridCanvas:
    """A grid of cells; places are (row, column), lengths and radii in cells.

    Args:
        rows, cols: of the grid.
    """

    def __init__(self, rows: int, cols: int) -> None:
        pixels = min(LARGEST_CELL, LONGEST_SIDE // max(rows, cols))
        self._cell = max(pixels, 4) * OVERSAMPLING
        size = (cols * self._cell + OVERSAMPLING, rows * self._cell + OVERSAMPLING)
        self._image = Image.new("RGB", size, WHITE)
        self._pen = ImageDraw.Draw(self._image)
        for row in range(rows + 1):
            self._pen.line((*self._at(row, 0), *self._at(row, cols)), LINE, OVERSAMPLING)
        for col in range(cols + 1):
            self._pen.line((*self._at(0, col), *self._at(rows, col)), LINE, OVERSAMPLING)

    def square(self, row: float, col: float, half_width: float, fill: Colour) -> None:
        """A filled square in the middle of a cell; half a cell wide it fills the cell."""
        low = self._at(row + 0.5 - half_width, col + 0.5 - half_width)
        high = self._at(row + 0.5 + half_width, col + 0.5 + half_width)
        self._pen.rectangle((*low, *high), fill=fill)

    def disc(self, row: float, col: float, radius: float, fill: Colour) -> None:
        """A filled circle in the middle of a cell."""
        low = self._at(row + 0.5 - radius, col + 0.5 - radius)
        high = self._at(row + 0.5 + radius, col + 0.5 + radius)
        self._pen.ellipse((*low, *high), fill=fill, outline=BLACK, width=OVERSAMPLING)

    def label(self, row: float, col: float, radius: float, text: str) -> None:
        """A white word in the middle of a cell, for a shape of this radius."""
        font = ImageFont.load_default(1.2 * radius * self._cell)
        self._pen.text(self._at(row + 0.5, col + 0.5), text, fill=WHITE, font=font, anchor="mm")

    def line(self, start: Sequence[float], end: Sequence[float], colour: Colour) -> None:
        """A thick line between two points (row, column), the middle of a cell at its halves."""
        self._pen.line((*self._at(*start), *self._at(*end)), colour, max(self._cell // 10, 2))

    def picture(self) -> np.ndarray:
        """uint8 [H, W, 3]."""
        return np.array(self._image.reduce(OVERSAMPLING))

    def _at(self, row: float, col: float) -> tuple[float, float]:
        return col * self._cell + OVERSAMPLING / 2, row * self._cell + OVERSAMPLING / 2
