"""One running game: launched through pysc2, spoken to over its websocket, gone when this process is
gone.
"""

from __future__ import annotations

import fcntl
import math
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import websocket
from absl import flags
from google.protobuf.message import DecodeError
from pysc2 import run_configs
from pysc2.lib import protocol, remote_controller, sc_process
from pysc2.maps import lib as map_lib
from pysc2.run_configs import platforms
from s2clientprotocol import common_pb2, debug_pb2, raw_pb2, sc2api_pb2

from utils.errors import UserError

INSTEAD = "bash install_sc2.sh installs it, --env-config=sc2sim needs no game"
MAP_FOLDER = "SMAC_Maps"
AGENTS, ENEMIES = 1, 2  # the players

MOVE, ATTACK, STOP, HEAL = 16, 23, 4, 386  # ability ids
DIFFICULTIES = {
    "1": sc2api_pb2.VeryEasy,
    "2": sc2api_pb2.Easy,
    "3": sc2api_pb2.Medium,
    "4": sc2api_pb2.MediumHard,
    "5": sc2api_pb2.Hard,
    "6": sc2api_pb2.Harder,
    "7": sc2api_pb2.VeryHard,
    "8": sc2api_pb2.CheatVision,
    "9": sc2api_pb2.CheatMoney,
    "A": sc2api_pb2.CheatInsane,
}
RACES = {"T": common_pb2.Terran, "P": common_pb2.Protoss, "Z": common_pb2.Zerg}

# Loops that the map's script gets to notice that both sides are empty.
_KILL_LOOPS = 2
# Whatever goes wrong with a game in the middle of things.
_TROUBLE = (
    protocol.ConnectionError,
    protocol.ProtocolError,
    remote_controller.ConnectError,
    remote_controller.RequestError,
    sc_process.SC2LaunchError,
    websocket.WebSocketException,
    DecodeError,
    OSError,
)
# Becomes the game itself: the kernel kills it with the process (more precisely: the thread) that
# launched it.
_LEASH = """\
import ctypes, os, signal, sys
PR_SET_PDEATHSIG = 1
ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C in a terminal is not meant for the game
if os.getppid() != int(sys.argv[1]):
    sys.exit("the process that wanted this game is gone")
os.environ["LD_LIBRARY_PATH"] = sys.argv[2]
os.execv(sys.argv[3], sys.argv[3:])
"""


class GameBroken(Exception):
    """The game crashed, hung, hung up, or answered with an error; it is of no more use."""


@contextmanager
def _trouble(doing: str) -> Iterator[None]:
    try:
        yield
    except _TROUBLE as error:
        raise GameBroken(
            f"{doing}: {' '.join(str(error).split()) or type(error).__name__}"
        ) from error


class LeashedProcess(sc_process.StarcraftProcess):
    """pysc2's process, tied to the life of this one; what the game prints is kept for the error
    message.
    """

    _output: Any = None

    def __init__(self, *args: Any, environment: dict[str, str], **kwargs: Any) -> None:
        self._environment = environment
        try:
            super().__init__(*args, **kwargs)
        except (
            remote_controller.ConnectError,
            protocol.ConnectionError,
            protocol.ProtocolError,
        ) as error:
            raise remote_controller.ConnectError(f"{error} {self.last_words()}") from None

    def _launch(self, run_config: Any, args: list[str], **kwargs: Any) -> subprocess.Popen:
        self._output = tempfile.TemporaryFile()  # noqa: SIM115 - lives as long as the game
        # The game brings libraries of its own, which are not for the interpreter that holds the
        # leash.
        libraries = run_config.env["LD_LIBRARY_PATH"]
        return subprocess.Popen(
            [sys.executable, "-I", "-S", "-c", _LEASH, str(os.getpid()), libraries, *args],
            cwd=run_config.cwd,
            env=self._environment,
            stdin=subprocess.DEVNULL,
            stdout=self._output,
            stderr=subprocess.STDOUT,
        )

    def last_words(self) -> str:
        """What the game printed last, as a remark behind an error message."""
        lines: list[str] = []
        if self._output is not None:
            self._output.seek(0)
            lines = [
                line.strip() for line in self._output.read().decode(errors="replace").split("\n")
            ]
        return f"(it printed last: {next(filter(None, reversed(lines)), 'nothing')})"

    def close(self) -> None:
        """Ends the game, gently if it listens; may be called twice."""
        if self.controller:
            with suppress(*_TROUBLE):
                # not twice: after this one the controller is closed, whatever happens
                self.controller.quit()
        super().close()


class LeashedLinux(platforms.Linux):
    """pysc2's Linux configuration, which pysc2 finds and prefers since it knows of it."""

    def __init__(self, version: str | None = None) -> None:
        self._environment = dict(os.environ)  # before pysc2 adds to it
        super().__init__(version)

    def start(self, want_rgb: bool = False, **kwargs: Any) -> LeashedProcess:
        version = f"Base{self.version.build_version:05d}"
        path = os.path.join(self.data_dir, "Versions", version, self._exec_name)
        return LeashedProcess(
            self, exec_path=path, version=self.version, environment=self._environment, **kwargs
        )

    @classmethod
    def priority(cls) -> int | None:
        usual = super().priority()
        return usual and usual + 1


class _Map(map_lib.Map):
    """A map file of SMAC's. pysc2's own list of maps is left alone: the smac package enters the
    same names there.
    """

    directory = MAP_FOLDER
    players = 2

    def __init__(self, name: str) -> None:
        self.filename = name


class Order(NamedTuple):
    """What one unit (by tag) is to do: an ability, at a point or on another unit (by tag)."""

    ability: int
    tag: int
    point: tuple[float, float] | None = None
    target: int | None = None


@dataclass(frozen=True)
class Installation:
    """The game on this machine and one map.

    Args:
        run_config: pysc2's.
        map_path: as the game is told, relative to its folder of maps.
        map_data: the map's file.
    """

    run_config: Any
    map_path: str
    map_data: bytes


def find_game(map_name: str, version: str | None) -> Installation:
    """Looks for the game where pysc2 does (`SC2PATH`, else its default folder) and for the map.

    Args:
        version: e.g. "4.10"; None: the newest that is installed.

    Raises:
        UserError: no game, not this version, or not the map.
    """
    if not flags.FLAGS.is_parsed():
        flags.FLAGS.mark_as_parsed()  # pysc2 keeps its settings in command line flags
    where = os.environ.get("SC2PATH", "~/StarCraftII")
    try:
        config = run_configs.get(version=version)
    except (OSError, sc_process.SC2LaunchError):
        raise UserError(f"StarCraft II is not in {where} (SC2PATH): {INSTEAD}") from None
    except ValueError as error:
        raise UserError(f"game_version is {version!r}: {error}") from None
    binary = Path(
        config.data_dir, "Versions", f"Base{config.version.build_version:05d}", config._exec_name
    )
    if not os.access(binary, os.X_OK):
        raise UserError(f"StarCraft II cannot be run, there is no program {binary}: {INSTEAD}")
    one = _Map(map_name)
    try:
        return Installation(config, one.path, one.data(config))
    except (OSError, ValueError):
        folder = Path(config.data_dir, "Maps", MAP_FOLDER)
        raise UserError(
            f"map {map_name} is not in {folder}: bash install_sc2.sh installs SMAC's maps"
        ) from None


def log_actions() -> None:
    """Prints all orders that are sent to games of this process from now on."""
    flags.FLAGS.sc2_log_actions = True  # type: ignore[assignment]  # absl knows no bool


def wait_turn(interval: float) -> None:
    """Returns when the last game of this user on this machine was started at least `interval`
    seconds ago.
    """
    path = Path(tempfile.gettempdir(), f"starcraft-start-{os.getuid()}.lock")
    with path.open("a+") as file:
        fcntl.flock(file, fcntl.LOCK_EX)  # given back with the file, also when this process dies
        file.seek(0)
        since = time.time() - float(file.read() or 0)
        time.sleep(min(interval, max(0.0, interval - since)))
        file.truncate(0)
        file.write(str(time.time()))


class Game:
    """A game on one map, with the agents' player connected to it.

    Args:
        installation: see `find_game`.
        races: of agents and enemies, "T", "P" or "Z".
        difficulty: a key of `DIFFICULTIES`.
        seed: the game's random seed.
        timeout: s, for launching and for every answer.
        start_interval: s between the starts of two games on this machine.

    Attributes:
        start: what the game said about the map.

    Raises:
        GameBroken: it does not start.
        UserError: it refuses the map.
    """

    start: raw_pb2.StartRaw

    def __init__(
        self,
        installation: Installation,
        races: Sequence[str],
        difficulty: str,
        seed: int,
        timeout: float,
        start_interval: float,
    ) -> None:
        self._config = installation.run_config
        self._process: Any = None
        self._units: list[raw_pb2.Unit] = []
        wait_turn(start_interval)
        try:
            self._begin(installation, races, difficulty, seed, timeout)
        except GameBroken as error:
            words = self.last_words()
            self.close()
            raise GameBroken(f"{error} {words}") from error
        except BaseException:
            self.close()
            raise

    def _begin(
        self,
        installation: Installation,
        races: Sequence[str],
        difficulty: str,
        seed: int,
        timeout: float,
    ) -> None:
        with _trouble("launching"):
            self._process = self._config.start(want_rgb=False, timeout_seconds=math.ceil(timeout))
        self._controller = self._process.controller
        request = sc2api_pb2.RequestCreateGame(
            local_map=sc2api_pb2.LocalMap(
                map_path=installation.map_path, map_data=installation.map_data
            ),
            realtime=False,
            random_seed=seed,
        )
        request.player_setup.add(type=sc2api_pb2.Participant)
        request.player_setup.add(
            type=sc2api_pb2.Computer, race=RACES[races[1]], difficulty=DIFFICULTIES[difficulty]
        )
        with _trouble("creating a game"):
            try:
                self._controller.create_game(request)
            except remote_controller.RequestError as error:
                raise UserError(
                    f"StarCraft II refuses map {installation.map_path}: {error}"
                ) from None
        join = sc2api_pb2.RequestJoinGame(
            race=RACES[races[0]], options=sc2api_pb2.InterfaceOptions(raw=True, score=False)
        )
        with _trouble("joining the game"):
            self._controller.join_game(join)
            self.start = self._controller.game_info().start_raw

    @property
    def pid(self) -> int:
        """Process id of the game."""
        return self._process.pid

    def observe(self) -> list[raw_pb2.Unit]:
        """All units of both players.

        Raises:
            GameBroken: also when the game says that it is over; a battle's end is the map's affair,
                not the game's.
        """
        with _trouble("observing"):
            answer = self._controller.observe()
        if answer.player_result:
            raise GameBroken("the game is over, though its map never ends it")
        self._units = [
            unit for unit in answer.observation.raw_data.units if unit.owner in (AGENTS, ENEMIES)
        ]
        return self._units

    def act(self, orders: Iterable[Order]) -> None:
        """Gives orders; each replaces what the unit was doing."""
        request = sc2api_pb2.RequestAction()
        for order in orders:
            command = request.actions.add().action_raw.unit_command
            command.ability_id = order.ability
            command.unit_tags.append(order.tag)
            command.queue_command = False
            if order.point is not None:
                command.target_world_space_pos.x, command.target_world_space_pos.y = order.point
            if order.target is not None:
                command.target_unit_tag = order.target
        with _trouble("acting"):
            self._controller.actions(request)

    def step(self, loops: int) -> None:
        """Lets the game go on."""
        with _trouble("stepping"):
            self._controller.step(loops)

    def kill_all(self) -> None:
        """Kills all units of the last observation, and gives the map's script the time to
        notice.
        """
        kill = debug_pb2.DebugKillUnit(tag=[unit.tag for unit in self._units])
        with _trouble("killing all units"):
            self._controller.debug(debug_pb2.DebugCommand(kill_unit=kill))
            self._controller.step(_KILL_LOOPS)

    def save_replay(self, folder: str, prefix: str) -> str:
        """Writes a replay of all that happened since the launch.

        Args:
            folder: absolute, or relative to the game's own folder of replays.

        Returns:
            The file's path.
        """
        with _trouble("saving a replay"):
            data = self._controller.save_replay()
        return self._config.save_replay(data, folder, prefix=prefix)

    def last_words(self) -> str:
        """See `LeashedProcess`; empty where the game runs without a leash."""
        return self._process.last_words() if isinstance(self._process, LeashedProcess) else ""

    def close(self) -> None:
        """Ends the game; may be called twice."""
        process, self._process = self._process, None
        if process is not None:
            process.close()
