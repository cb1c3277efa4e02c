"""VMAS (Bettini et al. 2022): two-dimensional worlds of bodies on PyTorch, natively batched."""

from __future__ import annotations

import math
import warnings
import zlib
from collections.abc import Iterator, Mapping, MutableMapping, MutableSequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image, ImageDraw

from envs.packages import load_package
from envs.particle.drawing import OVERSAMPLING, WHITE
from envs.ranges import SIZE, SWITCH
from envs.vector_env import EnvSpec, VectorEnv
from utils.errors import ConfigError
from utils.ranges import check_ranges
from utils.registry import nearest

if TYPE_CHECKING:
    import torch

INSTALL = "pip install -r requirements-vmas.txt"
PICTURE = 400  # pixels along a side
MARGIN = 0.2  # of the world's units around everything that is drawn

Slot = tuple[Any, Any]  # a mapping or a list, and a key of it


class Vmas(VectorEnv):
    """B worlds of a scenario of VMAS, stepped as one batch of tensors; observations, rewards and
    ends are its own.

    The state is the observations of all agents, one after the other: VMAS has no state. Rewards are
    individual. An episode ends when the scenario is done, or is cut at `time_limit`.

    Actions are numbers from -1 to 1, scaled to what the agents can do (forces, mostly; then numbers
    from 0 to 1 for words, where agents speak), or with `continuous_actions: False` one of VMAS'
    discrete ones, of which 0 does nothing.

    Every episode's course depends on a seed that is drawn from the environment's own stream and on
    the actions. A scenario that draws noise in its steps draws it for the whole batch: then it also
    depends on the seeds of the environments beside it. How many environments are computed at once
    may change the rounding of the last bits, as PyTorch adds in another order.

    `info`: the scenario's own figures of the last step that are one number for each environment,
    the mean over the agents that have them.

    Args:
        n_envs: B.
        seed: environment b's stream depends on `seed` and b only.
        map_name: one of VMAS' scenarios, e.g. "balance".
        continuous_actions: whether actions are continuous.
        time_limit: the longest episode.
        kwargs: keywords of the scenario, e.g. {"n_agents": 3}.
        device: where PyTorch computes the worlds: "cpu" or "cuda", "cuda:0", ...

    Raises:
        ConfigError: an unknown scenario or device, keywords that it does not take, observations
            that are no arrays.
        MissingPackage: vmas is not there.
    """

    ranges = {"continuous_actions": SWITCH, "time_limit": SIZE}

    def __init__(
        self,
        n_envs: int,
        seed: int,
        map_name: str = "balance",
        continuous_actions: bool = True,
        time_limit: int = 100,
        kwargs: Mapping[str, Any] | None = None,
        device: str = "cpu",
    ) -> None:
        check_ranges(locals(), self.ranges, "env_args.")
        self._env = make_worlds(map_name, n_envs, continuous_actions, dict(kwargs or {}), device)
        observed = self._env.get_from_scenario(True, False, False, False)[0]
        if not all(hasattr(obs, "shape") for obs in observed):
            raise ConfigError(
                f"vmas: the observations of {map_name} are dicts; choose kwargs with which they "
                "are arrays"
            )
        obs_sizes = tuple(math.prod(obs.shape[1:]) for obs in observed)
        spaces = [self._env.get_agent_action_space(agent) for agent in self._env.agents]
        action_sizes = tuple(
            int(space.shape[0] if continuous_actions else space.n) for space in spaces
        )
        self._bounds = [
            tuple(self._tensor(bound) for bound in ((s.high + s.low) / 2, (s.high - s.low) / 2))
            for s in (spaces if continuous_actions else ())
        ]
        spec = EnvSpec(
            n_agents=len(observed),
            n_actions=max(action_sizes),
            obs_size=max(obs_sizes),
            state_size=sum(obs_sizes),
            episode_limit=time_limit,
            obs_sizes=obs_sizes,
            action_sizes=action_sizes,
            individual_rewards=True,
            continuous_actions=continuous_actions,
        )
        self._keys = np.zeros(n_envs, dtype=np.uint32)  # what the running episodes began with
        self._steps = np.zeros(n_envs, dtype=np.int64)
        super().__init__(n_envs, spec, seed)
        self._possible = (np.arange(spec.n_actions) < np.array(action_sizes)[:, None]).astype(
            np.uint8
        )

    def _reset(self, mask: np.ndarray) -> None:
        chosen = np.flatnonzero(mask).tolist()
        with self._others_unchanged(self._running), self._own_randomness():
            for b in chosen:
                self._keys[b] = self.rngs[b].integers(2**32, dtype=np.uint32)
                self._steps[b] = 0
                self._env.seed(int(self._keys[b]))
                self._env.reset_at(b, return_observations=False)
            self._seed_batch()
            observed = self._env.get_from_scenario(True, False, False, False)[0]
        self._observe(observed, mask)
        self.avail_actions[mask] = self._possible
        for values in self.info.values():
            values[mask] = np.nan

    def _step(self, actions: np.ndarray, mask: np.ndarray) -> None:
        if not mask.any():
            return
        given = self._tensor(actions)  # on the CPU the same memory
        if self.continuous_actions:
            sizes = self.action_sizes
            chosen = [
                given[:, agent, :size] * half + middle
                for agent, (size, (middle, half)) in enumerate(
                    zip(sizes, self._bounds, strict=True)
                )
            ]
        else:
            chosen = [given[:, agent, None] for agent in range(self.n_agents)]
        self._steps[mask] += 1
        with self._others_unchanged(self._running & ~mask), self._own_randomness():
            self._seed_batch()
            observed, rewards, terminated, _, infos = self._env.step(chosen)
        self._observe(observed, mask)
        for agent, reward in enumerate(rewards):
            np.copyto(self.reward[:, agent], _array(reward).reshape(-1), where=mask)
        np.copyto(self.terminated, _array(terminated).reshape(-1), where=mask)
        self.truncated[mask] = (self._steps >= self.episode_limit)[mask] & ~self.terminated[mask]
        self._write_info(infos, mask)

    def _observe(self, observed: list[torch.Tensor], mask: np.ndarray) -> None:
        begin = 0
        for agent, (obs, size) in enumerate(zip(observed, self.obs_sizes, strict=True)):
            # on the CPU a view of VMAS' own tensor: what follows is the one copy, into the arrays
            # that stay the same
            values = _array(obs).reshape(self.n_envs, size)
            np.copyto(self.obs[:, agent, :size], values, where=mask[:, None])
            np.copyto(self.state[:, begin : begin + size], values, where=mask[:, None])
            begin += size

    def _write_info(self, infos: list[Mapping[str, Any]], mask: np.ndarray) -> None:
        figures: dict[str, list[np.ndarray]] = {}
        for info in infos:
            for name, values in info.items():
                if hasattr(values, "shape") and values.numel() == self.n_envs:
                    figures.setdefault(name, []).append(_array(values).reshape(-1))
        for name, rows in figures.items():
            array = self.info.setdefault(name, np.full(self.n_envs, np.nan))
            array[mask] = np.array(rows, dtype=np.float64).mean(axis=0)[mask]

    # what one batch of tensors shares

    def _seed_batch(self) -> None:
        """What scenarios draw for the whole batch in a step follows from the episodes' seeds and
        their steps: there is no further random state.
        """
        self._env.seed(zlib.crc32(self._keys.tobytes() + self._steps.tobytes()))

    @contextmanager
    def _own_randomness(self) -> Iterator[None]:
        """VMAS puts back the generators of the CPU that it uses, but not those of a GPU."""
        import torch

        device = self._env.device
        devices = [device] if device.type == "cuda" else []
        with torch.random.fork_rng(devices, enabled=bool(devices)):
            yield

    @contextmanager
    def _others_unchanged(self, frozen: np.ndarray) -> Iterator[None]:
        """Everything that VMAS holds of the environments in `frozen` (bool [B]) is afterwards what
        it was: VMAS steps all or none.
        """
        if not frozen.any():
            yield
            return
        import torch

        rows = self._tensor(np.flatnonzero(frozen))
        kept = [
            (holder, key, holder[key][rows].clone())
            for holder, key in find_slots(self._env, self.n_envs)
        ]
        yield
        mended: dict[int, tuple[Any, Any]] = {}  # one tensor under two names stays one
        for holder, key, before in kept:
            now = holder[key]
            if not isinstance(now, torch.Tensor) or now.shape[:1] != (self.n_envs,):
                continue
            if id(now) not in mended:
                fresh = now.clone()
                fresh[rows] = before.to(fresh.dtype)
                mended[id(now)] = (now, fresh)
            holder[key] = mended[id(now)][1]

    def _tensor(self, array: np.ndarray) -> torch.Tensor:
        import torch

        return torch.from_numpy(array).to(self._env.device)

    def render(self, index: int = 0) -> np.ndarray:
        """World `index` from above, uint8 [H, W, 3]. VMAS' own pictures need a screen.

        Raises:
            ValueError: no episode has begun there.
        """
        if not (self._running | self.terminated | self.truncated)[index]:
            raise ValueError(
                f"environment {index} has not begun an episode: there is nothing to draw"
            )
        return draw(self._env.world, index)

    def close(self) -> None:
        """May be called twice; VMAS holds nothing but memory."""


def make_worlds(
    name: str, n_envs: int, continuous: bool, kwargs: dict[str, Any], device: str
) -> Any:
    """A batch of VMAS' worlds, its `Environment`.

    Raises:
        ConfigError, MissingPackage: see `Vmas`.
    """
    vmas = load_package("vmas", "vmas", INSTALL)
    import torch

    known = (*vmas.scenarios, *vmas.mpe_scenarios, *vmas.debug_scenarios)
    if name not in known:
        raise ConfigError(f"vmas: unknown scenario '{name}'; {nearest(str(name), known)}")
    try:
        where = torch.device(device)
        torch.zeros(1, device=where)
    except (RuntimeError, AssertionError, TypeError) as error:
        raise ConfigError(
            f"vmas: PyTorch cannot compute on env_args.device '{device}': {_line(error)}"
        ) from None
    try:
        with warnings.catch_warnings():
            # else it goes on without the keywords that a scenario does not know
            warnings.filterwarnings("error", message="Scenario kwargs")
            return vmas.make_env(
                scenario=name,
                num_envs=n_envs,
                device=where,
                continuous_actions=continuous,
                seed=0,
                terminated_truncated=True,
                clamp_actions=True,  # scaling may pass a bound by a rounding error
                **kwargs,
            )
    except (Warning, TypeError, ValueError, AssertionError) as error:
        raise ConfigError(
            f"vmas: {name} refuses env_args.kwargs {kwargs}: {_line(error)}"
        ) from error


def find_slots(root: Any, n_envs: int) -> list[Slot]:
    """Where VMAS' objects hold tensors with a row for each environment: in attributes, lists and
    mappings, from `root` on.
    """
    import torch

    found: list[Slot] = []
    seen: set[int] = set()

    def look(value: Any) -> None:
        holder: Any = value
        if hasattr(value, "__dict__") and type(value).__module__.partition(".")[0] in ("", "vmas"):
            holder = vars(value)  # a scenario's module has no name: VMAS loads its file
        elif not isinstance(value, MutableMapping | MutableSequence | tuple):
            return
        if id(value) in seen:
            return
        seen.add(id(value))
        entries = holder.items() if isinstance(holder, Mapping) else enumerate(holder)
        for key, entry in list(entries):
            if not isinstance(entry, torch.Tensor):
                look(entry)
            elif entry.shape[:1] == (n_envs,) and not isinstance(holder, tuple):
                found.append((holder, key))

    look(root)
    return found


def draw(world: Any, index: int) -> np.ndarray:
    """The bodies of world `index` from above, in their own colours, uint8 [H, W, 3]."""
    bodies = [
        (body, *body.state.pos[index].tolist(), float(body.state.rot[index]))
        for body in (*world.landmarks, *world.agents)
    ]
    reach = MARGIN + max(
        max(abs(x), abs(y)) + min(_radius(body.shape), 0.3) for body, x, y, _ in bodies
    )
    side = PICTURE * OVERSAMPLING
    scale = side / (2 * reach)
    image = Image.new("RGB", (side, side), WHITE)
    pen = ImageDraw.Draw(image)
    for body, x, y, angle in bodies:
        shape, colour = body.shape, body.color
        if hasattr(colour, "tolist"):
            colour = (colour[index] if colour.ndim > 1 else colour).tolist()
        ink = tuple(int(255 * share) for share in colour[:3])
        x, y = side / 2 + x * scale, side / 2 - y * scale
        radius = _radius(shape) * scale
        if hasattr(shape, "radius"):
            pen.ellipse((x - radius, y - radius, x + radius, y + radius), fill=ink)
            continue
        along = shape.length / 2 * scale * np.array([math.cos(angle), -math.sin(angle)])
        if not hasattr(shape, "hollow"):  # a line: its width is in pixels
            pen.line((x - along[0], y - along[1], x + along[0], y + along[1]), ink, OVERSAMPLING)
            continue
        across = shape.width / 2 * scale * np.array([math.sin(angle), math.cos(angle)])
        corners = [(x, y) + s * along + t * across for s, t in ((1, 1), (1, -1), (-1, -1), (-1, 1))]
        pen.polygon(
            [tuple(corner) for corner in corners],
            fill=None if shape.hollow else ink,
            outline=ink,
            width=OVERSAMPLING,
        )
    return np.array(image.reduce(OVERSAMPLING))


def _radius(shape: Any) -> float:
    return float(shape.radius if hasattr(shape, "radius") else shape.length / 2)


def _array(tensor: torch.Tensor) -> np.ndarray:
    """The same numbers; on the CPU the same memory."""
    return tensor.detach().cpu().numpy()


def _line(error: BaseException) -> str:
    return " ".join(str(error).split()) or type(error).__name__
