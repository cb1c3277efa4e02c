"""Films: as many pictures, as long, as told; MP4 only where its encoder is installed."""

import sys

import numpy as np
import pytest
from PIL import Image

from utils.errors import MissingPackage, UserError
from utils.films import check_format, write_film

COLOURS = [(200, 30, 30), (30, 200, 30), (30, 30, 200), (200, 200, 30)]


def frames(height=31, width=45):
    return [np.full((height, width, 3), colour, dtype=np.uint8) for colour in COLOURS]


def close(found, colour, tolerance):
    return np.abs(found.reshape(-1, 3).astype(int).mean(0) - colour).max() <= tolerance


@pytest.mark.parametrize("colours", [256, 64])
def test_a_gif_has_every_frame_for_its_time(tmp_path, colours):
    write_film(frames(), tmp_path / "a.gif", 150, 900, colours)
    film = Image.open(tmp_path / "a.gif")
    assert (film.n_frames, film.size, film.info["loop"]) == (4, (45, 31), 0)
    for t, colour in enumerate(COLOURS):
        film.seek(t)
        assert film.info["duration"] == (900 if t == 3 else 150)
        assert close(np.asarray(film.convert("RGB")), colour, 8)


def test_an_mp4_has_every_frame_for_its_time(tmp_path):
    imageio_ffmpeg = pytest.importorskip("imageio_ffmpeg")
    write_film(frames(), tmp_path / "a.mp4", 200, 800)
    reader = imageio_ffmpeg.read_frames(tmp_path / "a.mp4")
    meta = next(reader)
    assert meta["codec"] == "h264"
    assert meta["size"] == (46, 32)  # even sides
    assert meta["fps"] == 5
    shown = [np.frombuffer(frame, dtype=np.uint8) for frame in reader]
    assert len(shown) == 3 + 4  # the last one lasts as long as four
    for picture, colour in zip(shown, [*COLOURS, *[COLOURS[-1]] * 3], strict=True):
        assert close(picture, colour, 12)


def test_what_cannot_be_written_is_said_before(tmp_path, monkeypatch):
    for name in ("avi", "", "GIF"):
        with pytest.raises(UserError, match=r"a film is a \.gif or \.mp4 file"):
            check_format(name)
    monkeypatch.setitem(sys.modules, "imageio_ffmpeg", None)
    check_format("gif")
    with pytest.raises(MissingPackage, match=r"pip install -r requirements-film\.txt"):
        write_film(frames(), tmp_path / "a.mp4", 200)
    assert list(tmp_path.iterdir()) == []
