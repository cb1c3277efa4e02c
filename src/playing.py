"""`python src/main.py play RUN`: a trained policy, step by step, with what it sees and thinks."""

from __future__ import annotations

import io
import json
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch

from analysis.dashboard import check_packages
from analysis.dashboard.options import add_address_options
from analysis.episode import Array, Episode
from assembly import scheme_of
from components.episode_buffer import EpisodeBatch
from components.inner import Explained
from envs.vector_env import VectorEnv
from policies import CARD, Policy, build, find_policy
from runners.collector import Collector
from utils.errors import UserError
from utils.films import check_format, write_film
from utils.logging import Logger, get_logger
from utils.parsing import Parser
from utils.seeding import derive_seed, isolated_global_rng

FILM_FRAME_MS = 200
LAST_FRAME_MS = 1500


def main(argv: Sequence[str]) -> int:
    """Plays a policy in the browser, or films it.

    Returns:
        0.

    Raises:
        UserError: wrong arguments, no policy there, a port that is taken.
        MissingPackage: the page needs Dash, an MP4 film the encoder.
        RunFailure: the environment broke.
    """
    parser = Parser(
        "play",
        description="Plays a trained policy step by step on a local page, or films it.",
    )
    parser.add_argument(
        "run", type=Path, metavar="RUN", help="the folder of a run or of one of its checkpoints"
    )
    parser.add_argument(
        "--step", type=int, default=0, help="of a run's checkpoints the nearest (default: newest)"
    )
    parser.add_argument("--seed", type=int, help="of the episodes (default: the run's)")
    parser.add_argument(
        "--exploring", action="store_true", help="act as in training instead of greedily"
    )
    parser.add_argument(
        "--film",
        type=Path,
        metavar="FILE",
        help="write the first episode to FILE.gif or FILE.mp4 instead of showing it",
    )
    add_address_options(parser)
    args = parser.parse_args(argv)
    if args.step < 0 or not 0 <= (args.seed or 0) < 2**32:
        raise UserError("play: --step is at least 0, --seed from 0 to 4294967295")
    policy = find_policy(args.run, args.step)
    if args.film is not None:
        check_format(args.film.suffix.removeprefix("."))
        with Player(policy, args.seed, args.exploring) as player:
            player.film(args.film)
        get_logger().info("film of an episode: %s", args.film)
        return 0
    check_packages("the player")
    from analysis.dashboard.player import make_app
    from analysis.dashboard.server import Address

    with Address.of(args) as place, Player(policy, args.seed, args.exploring) as player:
        app = make_app(player.record)
        place.serve(app.server, f"{policy.title}; the player is")
    return 0


class Player:
    """Plays episodes of a policy, one after the other, and notes everything.

    Episode n is the n-th of an evaluation with one environment and the same seed.

    Args:
        policy: see `policies.find_policy`.
        seed: of the episodes; None: the policy's own.
        exploring: act as in training, at the rate of exploration of the policy's step.

    Raises:
        UserError: the policy does not fit its environment.
        RunFailure: the environment cannot be made.
    """

    def __init__(self, policy: Policy, seed: int | None = None, exploring: bool = False) -> None:
        torch.set_num_threads(1)
        self.policy, self.exploring = policy, exploring
        config = policy.config
        self.seed = seed if seed is not None else config["seed"]
        one: dict[str, Any] = {"batch_size_run": 1, "evaluate": True, "render": True}
        one |= {"seed": self.seed, "device": "cpu"}
        self._runner = _Watcher(SimpleNamespace(**{**config, **one}))
        try:
            self.mac, self.learner, missing = build(policy, self._runner.get_env_info())
            args = self.learner.args
            if exploring:
                drawn = getattr(self.mac, "drawn", {})
                self.mac.recorded = {**getattr(self.mac, "recorded", {}), **drawn}
            self._runner.setup(*scheme_of(args, self.mac), self.mac)
        except BaseException:
            self.close()
            raise
        self._notes = [missing] if missing else []
        self._next = 0
        self._episodes: list[Episode] = []

    def record(self, number: int) -> Episode:
        """Episode `number`, from 0; all before it are played first."""
        while len(self._episodes) <= number:
            self._episodes.append(self._play())
        return self._episodes[number]

    def film(self, path: Path) -> None:
        """Writes the first episode as a film.

        Raises:
            UserError: the environment gives no pictures.
        """
        self.watch()
        frames = self._runner.frames
        if not frames:
            raise UserError(f"play: environment '{self.policy.config['env']}' gives no pictures")
        path.parent.mkdir(parents=True, exist_ok=True)
        write_film(frames, path, FILM_FRAME_MS, LAST_FRAME_MS)

    def watch(self) -> tuple[EpisodeBatch, dict[str, float]]:
        """Plays the next episode: a batch of one, and its return, length and info."""
        number, self._next = self._next, self._next + 1
        return self._runner.watch(number, self.policy.step, self.exploring)

    def explain(self, batch: EpisodeBatch) -> Explained:
        """What controller and learner have to say about an episode; see `BasicMAC.explain`."""
        with isolated_global_rng(self.seed):
            shown = self.mac.explain(batch) if hasattr(self.mac, "explain") else {}
            if not self._notes and hasattr(self.learner, "explain"):
                shown = shown | self.learner.explain(batch)
        return shown

    def close(self) -> None:
        """Ends the environment; may be called twice."""
        self._runner.close_env()

    def __enter__(self) -> Player:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def _play(self) -> Episode:
        number = self._next
        batch, figures = self.watch()
        steps = batch.steps()
        n = steps.n_rows
        words = self._runner.env.words()
        actions, reward = batch["actions"][0, : n - 1], batch["reward"][0, : n - 1]
        inner = {
            name: Array(one.values.detach().numpy(), one.axes, one.kind)
            for name, one in self.explain(batch).items()
        }
        return Episode(
            title=self.policy.title,
            facts=self._facts(number, figures),
            notes=self._notes,
            agents=words.agents,
            observations=words.observations,
            actions=words.actions,
            obs=batch["obs"][0, :n].float().numpy(),
            avail=batch["avail_actions"][0, :n].numpy(),
            taken=(actions if actions.is_floating_point() else actions.squeeze(-1)).numpy(),
            rewards=(reward.squeeze(-1) if reward.shape[-1] == 1 else reward).numpy(),
            inner=inner,
            pictures=[_png(frame) for frame in self._runner.frames],
        )

    def _facts(self, number: int, figures: dict[str, float]) -> dict[str, str]:
        facts = {
            "Episode": str(number),
            "Acts": "as in training" if self.exploring else "greedily",
            "Trained for": f"{self.policy.step:,} steps",
            "Seed": str(self.seed),
        }
        card = self.policy.run / CARD
        if card.is_file():
            known = json.loads(card.read_text(encoding="utf-8"))
            won = known.get("test_win_rate")
            figure = f"{known['test_return_mean']:.4g}" if won is None else f"{100 * won:.0f} %"
            what = "Return" if won is None else "Win rate"
            facts[f"{what} in {known['episodes']} episodes"] = figure
        return facts | {
            name.replace("_", " ").capitalize(): f"{value:.4g}" for name, value in figures.items()
        }


class _Watcher(Collector):
    """Collects single episodes in one environment, without logging anything."""

    def __init__(self, args: SimpleNamespace) -> None:
        super().__init__(args, Logger(get_logger()))
        self._reseed = self.env.get_rng_state() is not None

    def _make_env(self, n_envs: int, role: str) -> VectorEnv:
        return super()._make_env(n_envs, "test_env")

    def watch(
        self, number: int, t_env: int, exploring: bool
    ) -> tuple[EpisodeBatch, dict[str, float]]:
        """One episode, with the random numbers that an evaluation at step `t_env` would have."""
        self.t_env = t_env
        self.frames.clear()
        figures = self.train_figures if exploring else self.test_figures
        figures.clear()
        stream = derive_seed(self.args.seed, "evaluation", t_env)
        if number == 0 and self._reseed:
            self.env.seed(stream)
        with isolated_global_rng(derive_seed(stream, "acting", number)):
            batch = self._run(self.env, test_mode=not exploring)
        total = float(np.mean(figures.returns[-1]))  # of agents with rewards of their own the mean
        info = {key: values[-1] for key, values in figures.info.items() if values}
        return batch, {"return": total, "length": figures.lengths[-1], **info}

    def _log(self, env: VectorEnv, test_mode: bool) -> None:
        pass

    def _film(self, env: VectorEnv) -> None:
        try:
            super()._film(env)
        except UserError as error:
            self.filming = False
            get_logger().info("%s", error)


def _png(frame: np.ndarray) -> bytes:
    from PIL import Image

    with io.BytesIO() as file:
        Image.fromarray(frame).save(file, "PNG")
        return file.getvalue()
