"""Pictures of a battle: who stands where, in what health, and who goes for whom."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from envs.particle.drawing import PALETTE, Colour
from envs.starcraft.facts import UNIT_NAMES, MapInfo, UnitType, unit_type

WIDTH = 640  # pixels
HEADER = 24  # pixels, for the line of text
FOOTER = 24  # pixels, for the legend
MARGIN = 2  # cells around the units of a film
FLATTEST = 0.4  # least height of a film's ground, in parts of its width
LEGEND = "blue disc: agent    orange square: enemy    line: attack    bar: health    cross: dead"
OVERSAMPLING = 2
LEAST_RADIUS = 0.42  # cells; smaller bodies are drawn as large as this
SIDES: tuple[Colour, Colour] = (PALETTE[0], PALETTE[5])  # of the agents and of the enemies
PALE: tuple[Colour, Colour] = ((176, 204, 226), (240, 204, 178))  # what is dead
AIMS: tuple[Colour, Colour] = ((90, 160, 210), (232, 150, 90))  # lines to targets
HEALS: Colour = (0, 158, 115)
TEXT: Colour = (40, 40, 40)
WALL: Colour = (112, 112, 116)
LOW, HIGH = np.array([222, 220, 208]), np.array([252, 251, 246])  # ground, by height
EMPTY: Colour = (70, 70, 70)
BARS: dict[str, Colour] = {
    "health": (50, 170, 70),
    "shield": (86, 160, 240),
    "energy": (180, 110, 200),
}
LETTERS = {
    "Baneling": "B", "Colossus": "C", "Hydralisk": "H", "Marauder": "D", "Marine": "M",
    "Medivac": "+",
    "Overseer": "O", "Reaper": "r", "Roach": "R", "SpineCrawler": "Y", "Stalker": "S",
    "Ultralisk": "U",
    "Zealot": "Z", "Zergling": "z",
}  # fmt: skip


@dataclass(frozen=True)
class Scene:
    """One moment of one battle; arrays of N units, the agents first.

    `target`: int64, the unit that each attacks or heals, -1: none. `text`: the line above the
    picture.
    """

    type: np.ndarray
    x: np.ndarray
    y: np.ndarray
    health: np.ndarray
    shield: np.ndarray
    energy: np.ndarray
    health_max: np.ndarray
    shield_max: np.ndarray
    target: np.ndarray
    text: str

    @property
    def alive(self) -> np.ndarray:
        """bool [N]."""
        return self.health > 0


@dataclass(frozen=True)
class View:
    """The part of a map that is shown: the cells from `x0` to before `x1`, and `y0` to before
    `y1`.
    """

    x0: int
    x1: int
    y0: int
    y1: int

    @classmethod
    def of_map(cls, info: MapInfo) -> View:
        """All ground that somebody can walk on, and a row of walls around it."""
        open_x, open_y = (np.flatnonzero(info.pathing.any(axis=axis)) for axis in (1, 0))
        return cls(
            max(open_x[0] - 1, 0), min(open_x[-1] + 2, info.map_size[0]),
            max(open_y[0] - 1, 0), min(open_y[-1] + 2, info.map_size[1]),
        )  # fmt: skip

    @classmethod
    def around(cls, x: np.ndarray, y: np.ndarray, info: MapInfo) -> View:
        """The ground around places [any number] with `MARGIN`, within `of_map`, and not flatter
        than `FLATTEST`.
        """
        most = cls.of_map(info)
        x0, x1 = max(int(x.min()) - MARGIN, most.x0), min(int(x.max()) + 1 + MARGIN, most.x1)
        y0, y1 = max(int(y.min()) - MARGIN, most.y0), min(int(y.max()) + 1 + MARGIN, most.y1)
        missing = max(int(np.ceil(FLATTEST * (x1 - x0))) - (y1 - y0), 0)
        y0 = max(y0 - missing // 2, most.y0)
        y1 = min(y1 + missing - missing // 2, most.y1)
        # A high and narrow part gets ground beside it, so that the picture is no higher than wide.
        missing = max(y1 - y0 - (x1 - x0), 0)
        x0 = max(x0 - missing // 2, most.x0)
        return cls(x0, min(x1 + missing - missing // 2, most.x1), y0, y1)


class Painter:
    """Draws scenes on one map: agents as blue discs, enemies as orange squares, with a letter for
    the type.

    Above each unit are its bars: energy, shield, health.

    Args:
        view: the part of the map that is shown; None: all that somebody can walk on.
    """

    def __init__(self, info: MapInfo, view: View | None = None) -> None:
        self.n_agents = info.n_agents
        view = view or View.of_map(info)
        self._x0, x1, y0, self._y1 = view.x0, view.x1, view.y0, view.y1
        self._scale = WIDTH * OVERSAMPLING / (x1 - self._x0)
        size = (WIDTH * OVERSAMPLING, round((self._y1 - y0) * self._scale))
        self._top = HEADER * OVERSAMPLING
        ground = (LOW + (HIGH - LOW) * info.height[:, :, None]).astype(np.uint8)
        ground[~info.pathing] = WALL
        cells = np.ascontiguousarray(ground[self._x0 : x1, y0 : self._y1].transpose(1, 0, 2)[::-1])
        field = Image.fromarray(cells).resize(size, Image.Resampling.NEAREST)
        bottom = -(-(size[1] + self._top) // OVERSAMPLING) * OVERSAMPLING
        height = bottom + FOOTER * OVERSAMPLING
        self._background = Image.new("RGB", (size[0], height), (255, 255, 255))
        self._background.paste(field, (0, self._top))
        self._font = ImageFont.load_default(14 * OVERSAMPLING)
        ImageDraw.Draw(self._background).text(
            (6 * OVERSAMPLING, (bottom + height) / 2), LEGEND, TEXT, self._font, anchor="lm"
        )
        self._letters = [
            ImageFont.load_default(max(9 * OVERSAMPLING, self._pixels(u) * 1.2)) for u in _types()
        ]

    def picture(self, scene: Scene) -> np.ndarray:
        """uint8 [H, W, 3]."""
        image = self._background.copy()
        pen = ImageDraw.Draw(image)
        alive = scene.alive
        for i in np.flatnonzero(~alive).tolist():
            self._grave(pen, scene, i)
        for i in np.flatnonzero(alive & (scene.target >= 0)).tolist():
            self._aim(pen, scene, i)
        # flyers are above the others
        flying = np.array([unit_type(UNIT_NAMES[kind]).flying for kind in scene.type])
        for i in (*np.flatnonzero(alive & ~flying), *np.flatnonzero(alive & flying)):
            self._unit(pen, scene, i)
        for i in np.flatnonzero(alive).tolist():
            self._bars(pen, scene, i)
        pen.text(
            (6 * OVERSAMPLING, self._top / 2), scene.text, fill=TEXT, font=self._font, anchor="lm"
        )
        return np.array(image.reduce(OVERSAMPLING))

    def _at(self, scene: Scene, i: int) -> tuple[float, float]:
        x = (float(scene.x[i]) - self._x0) * self._scale
        return x, self._top + (self._y1 - float(scene.y[i])) * self._scale

    def _pixels(self, unit: UnitType) -> float:
        return max(unit.radius, LEAST_RADIUS) * self._scale

    def _side(self, i: int) -> int:
        return int(i >= self.n_agents)

    def _grave(self, pen: ImageDraw.ImageDraw, scene: Scene, i: int) -> None:
        (x, y), r = self._at(scene, i), LEAST_RADIUS * self._scale * 0.6
        for end in (1, -1):
            pen.line(
                (x - r, y - end * r, x + r, y + end * r),
                fill=PALE[self._side(i)],
                width=2 * OVERSAMPLING,
            )

    def _aim(self, pen: ImageDraw.ImageDraw, scene: Scene, i: int) -> None:
        j = int(scene.target[i])
        (x0, y0), (x1, y1) = self._at(scene, i), self._at(scene, j)
        heals = self._side(i) == self._side(j)
        # attackers of one unit end at different points of it, so that lines both ways are told
        # apart
        shift = 0.0 if heals else (1.5 if self._side(i) else -1.5) * OVERSAMPLING
        colour = HEALS if heals else AIMS[self._side(i)]
        pen.line((x0, y0 + shift, x1, y1 + shift), fill=colour, width=round(1.5 * OVERSAMPLING))

    def _unit(self, pen: ImageDraw.ImageDraw, scene: Scene, i: int) -> None:
        kind = int(scene.type[i])
        unit, side = unit_type(UNIT_NAMES[kind]), self._side(i)
        (x, y), r = self._at(scene, i), self._pixels(unit)
        shape = pen.rectangle if side else pen.ellipse
        half = r * 0.88 if side else r  # a square looks larger than a disc
        line = (255, 255, 255) if unit.flying else TEXT
        shape(
            (x - half, y - half, x + half, y + half),
            fill=SIDES[side],
            outline=line,
            width=OVERSAMPLING,
        )
        letter = LETTERS[unit.name]
        pen.text((x, y), letter, fill=(255, 255, 255), font=self._letters[kind], anchor="mm")

    def _bars(self, pen: ImageDraw.ImageDraw, scene: Scene, i: int) -> None:
        unit = unit_type(UNIT_NAMES[int(scene.type[i])])
        (x, y), r = self._at(scene, i), self._pixels(unit)
        height = 2.5 * OVERSAMPLING
        top = y - r - 1.5 * OVERSAMPLING
        full = (
            ("health", scene.health_max[i]),
            ("shield", scene.shield_max[i]),
            ("energy", unit.energy_max),
        )
        for name, most in full:
            if most <= 0:
                continue
            part = min(float(getattr(scene, name)[i]) / float(most), 1.0)
            pen.rectangle((x - r, top - height, x + r, top), fill=EMPTY)
            if part > 0:
                pen.rectangle((x - r, top - height, x - r + 2 * r * part, top), fill=BARS[name])
            top -= height + 0.5 * OVERSAMPLING


def _types() -> list[UnitType]:
    return [unit_type(name) for name in UNIT_NAMES]
