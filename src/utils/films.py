"""Films: animated GIFs, and MP4 files where imageio-ffmpeg is installed."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from utils.errors import MissingPackage, UserError

if TYPE_CHECKING:
    import numpy as np

FORMATS = ("gif", "mp4")
GIF_COLOURS = 256


def check_format(name: str) -> None:
    """Makes sure that films of this format can be written, before there is anything to film.

    Args:
        name: the end of a file's name, without the dot.

    Raises:
        UserError: there are no such films.
        MissingPackage: imageio-ffmpeg is not installed.
    """
    if name not in FORMATS:
        raise UserError(f"a film is a .gif or .mp4 file, not '.{name}'")
    if name == "mp4":
        _encoder()


def write_film(
    frames: Sequence[np.ndarray],
    path: Path,
    frame_ms: int,
    last_ms: int | None = None,
    colours: int = GIF_COLOURS,
) -> None:
    """Writes a film; the end of the path says of which kind.

    Args:
        frames: one or more pictures of one size, uint8 [H, W, 3].
        path: FILM.gif or FILM.mp4.
        frame_ms: how long a frame is shown [ms].
        last_ms: how long the last one is; None: as the others.
        colours: of a GIF.

    Raises:
        UserError, MissingPackage: see `check_format`.
    """
    check_format(path.suffix.removeprefix("."))
    last_ms = frame_ms if last_ms is None else last_ms
    if path.suffix == ".gif":
        _write_gif(frames, path, frame_ms, last_ms, colours)
    else:
        _write_mp4(frames, path, frame_ms, last_ms)


def _write_gif(
    frames: Sequence[np.ndarray], path: Path, frame_ms: int, last_ms: int, colours: int
) -> None:
    from PIL import Image

    pictures = [Image.fromarray(frame) for frame in frames]
    if colours < GIF_COLOURS:
        pictures = [picture.quantize(colours) for picture in pictures]
    times = [frame_ms] * (len(pictures) - 1) + [last_ms]
    pictures[0].save(path, save_all=True, append_images=pictures[1:], duration=times, loop=0)


def _write_mp4(frames: Sequence[np.ndarray], path: Path, frame_ms: int, last_ms: int) -> None:
    import numpy as np

    height, width = frames[0].shape[:2]
    # H.264 with colours at half the resolution, which is what players know, needs even sides.
    margin = ((0, height % 2), (0, width % 2), (0, 0))
    shown = [np.ascontiguousarray(np.pad(frame, margin, mode="edge")) for frame in frames]
    shown += [shown[-1]] * max(0, round(last_ms / frame_ms) - 1)
    writer = _encoder().write_frames(
        path,
        (shown[0].shape[1], shown[0].shape[0]),
        fps=1000 / frame_ms,
        codec="libx264",
        quality=7,
        macro_block_size=2,
        ffmpeg_log_level="error",
    )
    writer.send(None)
    for frame in shown:
        writer.send(frame)
    writer.close()


def _encoder() -> Any:
    try:
        import imageio_ffmpeg
    except ModuleNotFoundError as error:
        raise MissingPackage(
            "MP4 films need the package imageio-ffmpeg, which has the encoder in it: "
            "pip install -r requirements-film.txt"
        ) from error
    return imageio_ffmpeg
