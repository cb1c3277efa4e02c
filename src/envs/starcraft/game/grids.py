"""The pictures in which the game tells where one can walk and how high the ground is."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from s2clientprotocol.common_pb2 import ImageData
    from s2clientprotocol.raw_pb2 import StartRaw

# What 8-bit pathing grids (games before 4.8) write where one cannot walk; bit-packed ones write 0.
_BLOCKED = 255


def pathing_grid(start: StartRaw) -> np.ndarray:
    """Where ground units can walk, bool [width, height] as [x, y].

    Raises:
        ValueError: a picture in neither of the game's two formats.
    """
    picture = start.pathing_grid
    if _is_old(picture):
        return _upright(_bytes(picture)) != _BLOCKED
    rows = np.frombuffer(picture.data, dtype=np.uint8)
    if picture.bits_per_pixel != 1 or rows.size * 8 != picture.size.x * picture.size.y:
        raise ValueError(
            f"pathing grid with {picture.bits_per_pixel} bits per cell and {rows.size} bytes"
        )
    bits = np.unpackbits(rows).reshape(
        picture.size.y, picture.size.x
    )  # the first cell is a byte's highest bit
    return np.ascontiguousarray(bits.T.astype(np.bool_))


def terrain_height(start: StartRaw) -> np.ndarray:
    """Height of the ground, float64 [width, height] as [x, y], 0 to 1.

    Raises:
        ValueError: not one byte per cell.
    """
    rows = _bytes(start.terrain_height)
    return (_upright(rows) if _is_old(start.pathing_grid) else np.ascontiguousarray(rows.T)) / 255


def _is_old(pathing: ImageData) -> bool:
    """Whether pictures begin with the northern row; in games with bit-packed grids it is the
    southern one.
    """
    return pathing.bits_per_pixel == 8


def _bytes(picture: ImageData) -> np.ndarray:
    rows = np.frombuffer(picture.data, dtype=np.uint8)
    if picture.bits_per_pixel != 8 or rows.size != picture.size.x * picture.size.y:
        raise ValueError(
            f"picture with {picture.bits_per_pixel} bits per cell and {rows.size} bytes"
        )
    return rows.reshape(picture.size.y, picture.size.x)


def _upright(rows: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(rows[::-1].T)
