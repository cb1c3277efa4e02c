"""What runs as `Versions/Base75689/SC2_x64`: the game's websocket protocol, one client, one map, in
game loops.
"""

import argparse
import contextlib
import json
import os
import socket
import sys
import threading
import time
from pathlib import Path

from websockets.exceptions import ConnectionClosed
from websockets.sync.server import serve

sys.path[:0] = [
    str(Path(__file__).resolve().parents[3] / "src"),
    str(Path(__file__).resolve().parents[1]),
]

from s2clientprotocol import common_pb2 as common  # noqa: E402
from s2clientprotocol import sc2api_pb2 as sc  # noqa: E402


class Refused(Exception):
    """The request does not fit the state of the game."""


class Cut(Exception):
    """The connection ends here."""


class Session:
    """The game as seen by its client.

    Faults are files in `SC2PATH/faults`; the first game that removes one acts on it.
    """

    def __init__(self, folder):
        self.faults = folder / "faults"
        self.status = sc.launched
        self.world = None
        self.created = None
        self.setup = {}
        self.steps = 0
        self.over = False

    def answer(self, data):
        """One request's response, both serialised."""
        request = sc.Request.FromString(data)
        kind = request.WhichOneof("request")
        response = sc.Response(id=request.id)
        if kind == "quit":
            os._exit(0)
        handle = getattr(self, f"on_{kind}", None)
        try:
            if handle is None:
                raise Refused(f"not known to the stand-in: {kind}")
            result = handle(getattr(request, kind))
            getattr(response, kind).CopyFrom(result)
        except Refused as error:
            response.error.append(str(error))
        response.status = self.status
        return response.SerializeToString()

    def need(self, *states):
        if self.status not in states:
            raise Refused(f"not possible in state {sc.Status.Name(self.status)}")

    def takes(self, fault):
        try:
            (self.faults / fault).unlink()
        except FileNotFoundError:
            return False
        return True

    def on_ping(self, request):
        return sc.ResponsePing(game_version="4.10.0.75689", data_build=75689, base_build=75689)

    def on_create_game(self, request):
        self.need(sc.launched, sc.ended)
        from sc2_stand_in import map_file

        name = Path(request.local_map.map_path).stem
        if not request.local_map.map_path.startswith("SMAC_Maps/"):
            return sc.ResponseCreateGame(error=sc.ResponseCreateGame.InvalidMapPath)
        if request.local_map.map_data != map_file(name):
            details = f"damaged: {request.local_map.map_data[:20]!r}"
            return sc.ResponseCreateGame(
                error=sc.ResponseCreateGame.InvalidMapData, error_details=details
            )
        if [setup.type for setup in request.player_setup] != [sc.Participant, sc.Computer]:
            return sc.ResponseCreateGame(error=sc.ResponseCreateGame.InvalidPlayerSetup)
        enemy = request.player_setup[1]
        self.setup = {
            "difficulty": sc.Difficulty.Name(enemy.difficulty),
            "enemies": common.Race.Name(enemy.race),
        }
        self.created = (name, request.random_seed)
        self.status = sc.init_game
        return sc.ResponseCreateGame()

    def on_join_game(self, request):
        self.need(sc.init_game)
        if not request.options.raw:
            raise Refused("the stand-in has nothing but the raw interface")
        self.setup["agents"] = common.Race.Name(request.race)
        self.world = load_world()(*self.created)
        self.status = sc.in_game
        return sc.ResponseJoinGame(player_id=1)

    def on_game_info(self, request):
        self.need(sc.in_game)
        answer = sc.ResponseGameInfo(map_name=self.created[0], start_raw=self.world.start_raw())
        answer.player_info.add(player_id=1, type=sc.Participant)
        answer.player_info.add(player_id=2, type=sc.Computer)
        return answer

    def on_data(self, request):
        self.need(sc.in_game)
        return self.world.data()

    def on_observation(self, request):
        self.need(sc.in_game, sc.ended)
        answer = sc.ResponseObservation()
        answer.observation.game_loop = self.world.loop
        answer.observation.player_common.player_id = 1
        answer.observation.raw_data.units.extend(self.world.units())
        # a critter of nobody's, as real maps have them
        answer.observation.raw_data.units.add(
            tag=1, unit_type=1964, owner=16, health=10.0, health_max=10.0
        )
        if self.over:
            answer.player_result.add(player_id=1, result=sc.Victory)
        return answer

    def on_action(self, request):
        self.need(sc.in_game)
        results = [self.world.act(action.action_raw.unit_command) for action in request.actions]
        return sc.ResponseAction(result=results)

    def on_step(self, request):
        self.need(sc.in_game)
        if self.takes("crash"):
            os.write(1, b"Segmentation fault\n")
            os._exit(139)
        if self.takes("cut"):
            raise Cut
        if self.takes("hang"):
            time.sleep(3600)
        if self.takes("error"):
            raise Refused("something is wrong with the stand-in")
        self.over = self.over or self.takes("end")
        self.world.step(request.count)
        self.steps += 1
        return sc.ResponseStep(simulation_loop=self.world.loop)

    def on_debug(self, request):
        self.need(sc.in_game)
        for command in request.debug:
            self.world.kill(set(command.kill_unit.tag))
        return sc.ResponseDebug()

    def on_save_replay(self, request):
        self.need(sc.in_game, sc.ended)
        figures = {
            "map": self.created[0],
            "seed": self.created[1],
            "loops": self.world.loop,
            "steps": self.steps,
        }
        figures |= {**self.setup, "libraries": os.environ["LD_LIBRARY_PATH"]}
        return sc.ResponseSaveReplay(data=json.dumps(figures).encode())

    def on_leave_game(self, request):
        self.need(sc.in_game, sc.ended)
        self.status, self.world = sc.launched, None
        return sc.ResponseLeaveGame()


def load_world():
    """Takes a second: not before the client can connect."""
    from sc2_stand_in.world import World

    return World


def refuses(folder):
    """Counts down the launches that are to be refused."""
    path = folder / "faults" / "refuse"
    left = int(path.read_text()) if path.exists() else 0
    if left:
        path.write_text(str(left - 1))
    return left > 0


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("-listen", required=True)
    parser.add_argument("-port", type=int, required=True)
    parser.add_argument("-dataDir", type=Path, required=True)
    parser.add_argument("-tempDir", type=Path, required=True)
    parser.add_argument("-dataVersion")
    options = parser.parse_args()
    os.write(1, b"Version: B75689 (stand-in)\n")
    if refuses(options.dataDir):
        sys.exit("told to refuse")
    assert options.tempDir.is_dir()
    (options.dataDir / "running" / str(os.getpid())).touch()
    session = Session(options.dataDir)

    def talk(connection):
        with contextlib.suppress(ConnectionClosed):
            while True:
                message = connection.recv(
                    decode=False
                )  # the client calls its bytes text, which the game does not mind
                if session.takes("garbage"):
                    connection.send(b"\xff\xff\xff")
                    continue
                try:
                    answer = session.answer(message)
                except Cut:
                    connection.socket.shutdown(socket.SHUT_RDWR)
                    return
                connection.send(answer)

    with serve(
        talk, options.listen, options.port, max_size=None, ping_interval=None, compression=None
    ) as server:
        threading.Thread(target=load_world, daemon=True).start()
        server.serve_forever()


if __name__ == "__main__":
    main()
