"""Batches of episodes and the replay buffer, under PyMARL's names but stored compactly.

Integers are kept in the smallest type that holds them, one-hot actions are derived when somebody
asks for them, and `buffer_dtype: float16` halves the observations and states of the replay buffer.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from components.steps import Steps
from components.transitions import OBSERVED, Transitions
from utils.errors import UserError

PRIORITY_FLOOR = 1e-6  # added to priorities, so that every episode can be drawn
Index = int | slice | Sequence[int] | np.ndarray | Tensor


def _smallest_int(high: int) -> torch.dtype:
    """The smallest integer type that holds 0..high-1."""
    for dtype in (torch.uint8, torch.int16, torch.int32):
        if high - 1 <= torch.iinfo(dtype).max:
            return dtype
    return torch.int64


class _Field:
    """One entry of a scheme: shape, storage type and the type that readers get."""

    def __init__(
        self, key: str, spec: Mapping[str, Any], groups: Mapping[str, int], high: int | None
    ) -> None:
        if "vshape" not in spec:
            raise ValueError(f"scheme entry '{key}' has no vshape")
        vshape = spec["vshape"]
        vshape = (vshape,) if isinstance(vshape, int) else tuple(vshape)
        group = spec.get("group")
        if group is not None and group not in groups:
            raise ValueError(f"scheme entry '{key}' names group '{group}', known: {sorted(groups)}")
        self.shape = vshape if group is None else (groups[group], *vshape)
        self.episode_const = spec.get("episode_const", False)
        self.read_dtype = spec.get("dtype", torch.float32)
        high = spec.get("high", high)
        self.dtype = (
            _smallest_int(high)
            if high is not None and self.read_dtype == torch.int64
            else self.read_dtype
        )


class EpisodeBatch:
    """Episodes side by side, padded to the same number of steps.

    Args:
        scheme: name -> `{"vshape": int | tuple, "group": name, "dtype": torch.dtype,
            "episode_const": bool, "high": int}`; `high` bounds an integer entry (values 0..high-1)
            so that it can be stored in fewer bytes.
        groups: name -> number of members, e.g. `{"agents": 5}`.
        batch_size: B.
        max_seq_length: T, the last observation included.
        preprocess: name -> (new name, [transforms]): entries derived on use, e.g. `actions_onehot`.
        device: of the tensors.

    `batch["obs"]` is [B, T, A, O]; `batch["actions"]` int64 [B, T, A, 1]; `batch[bs, ts]` a view of
    some episodes and steps; `batch["obs", "state"]` a batch of these entries alone.
    """

    def __init__(
        self,
        scheme: Mapping[str, Mapping[str, Any]],
        groups: Mapping[str, int],
        batch_size: int,
        max_seq_length: int,
        data: SimpleNamespace | None = None,
        preprocess: Mapping[str, tuple[str, Sequence[Any]]] | None = None,
        device: torch.device | str = "cpu",
    ) -> None:
        self.scheme = dict(scheme)
        self.groups = dict(groups)
        self.batch_size = batch_size
        self.max_seq_length = max_seq_length
        self.preprocess = {} if preprocess is None else dict(preprocess)
        self.device = device
        self._derived_from = {new: key for key, (new, _) in self.preprocess.items()}
        for key, (new, transforms) in self.preprocess.items():
            vshape, dtype = self.scheme[key]["vshape"], self.scheme[key].get("dtype", torch.float32)
            for transform in transforms:
                vshape, dtype = transform.infer_output_info(vshape, dtype)
            entry = {"vshape": vshape, "dtype": dtype}
            if "group" in self.scheme[key]:
                entry["group"] = self.scheme[key]["group"]
            self.scheme.setdefault(new, entry)
        self.scheme.setdefault("filled", {"vshape": (1,), "dtype": torch.uint8})
        self._fields = {
            key: _Field(key, spec, self.groups, self._one_hot_size(key))
            for key, spec in self.scheme.items()
            if key not in self._derived_from
        }
        self._derived: dict[str, Tensor] = {}
        self._steps: Steps | None = None
        self._lengths: Tensor | None = None  # `lengths()`, where they are known
        if data is not None:
            self.data = data
        else:
            self.data = SimpleNamespace(transition_data={}, episode_data={})
            self._allocate()

    def _one_hot_size(self, key: str) -> int | None:
        """Number of categories of an integer entry that is turned into a one-hot one, else None."""
        for transform in self.preprocess.get(key, ("", ()))[1]:
            if hasattr(transform, "out_dim"):
                return transform.out_dim
        return None

    def _storage_dtype(self, key: str) -> torch.dtype:
        return self._fields[key].dtype

    def _shape(self, key: str) -> tuple[int, ...]:
        field = self._fields[key]
        lead = (self.batch_size,) if field.episode_const else (self.batch_size, self.max_seq_length)
        return (*lead, *field.shape)

    def _allocate(self) -> None:
        for key, field in self._fields.items():
            store = self.data.episode_data if field.episode_const else self.data.transition_data
            store[key] = torch.zeros(
                self._shape(key), dtype=self._storage_dtype(key), device=self.device
            )

    def nbytes(self) -> int:
        """Size of the stored entries in bytes."""
        return sum(
            int(np.prod(self._shape(key)))
            * torch.empty(0, dtype=self._storage_dtype(key)).element_size()
            for key in self._fields
        )

    def to(self, device: torch.device | str) -> EpisodeBatch:
        """Moves all entries, in place as in PyMARL."""
        # Counted here, so that nobody has to wait for a device to tell.
        self._lengths = self.lengths()
        for store in (self.data.transition_data, self.data.episode_data):
            for key, value in store.items():
                store[key] = value.to(device, non_blocking=True)
        self._derived.clear()
        self._steps = None
        self.device = device
        return self

    def _store(self, key: str) -> dict[str, Tensor]:
        return (
            self.data.episode_data if self._fields[key].episode_const else self.data.transition_data
        )

    def stored(self, key: str) -> Tensor:
        """The entry as it is stored (compact type), to be written to in place; call `changed(key)`
        afterwards.
        """
        return self._store(key)[key]

    def changed(self, *keys: str) -> None:
        """Forgets what was derived from entries that were written to through `stored`."""
        for key in keys:
            self._derived.pop(key, None)
            if key in self.preprocess:
                self._derived.pop(self.preprocess[key][0], None)
            if key == "filled":
                self._steps = self._lengths = None

    def update(
        self,
        data: Mapping[str, Any],
        bs: Index = slice(None),
        ts: Index = slice(None),
        mark_filled: bool = True,
    ) -> None:
        """Writes entries of some episodes and steps.

        Args:
            data: name -> values with as many elements as the addressed part.
            bs: episodes.
            ts: time steps; ignored for entries that are constant over an episode.
            mark_filled: whether these steps count as filled from now on.

        Raises:
            KeyError: a name that the scheme does not have.
            ValueError: values whose shape does not fit.
        """
        where = self._parse_slices((bs, ts))
        if mark_filled:
            self.data.transition_data["filled"][where] = 1
            self.changed("filled")
        for key, value in data.items():
            if key not in self._fields:
                raise KeyError(f"'{key}' is not in the scheme, known: {sorted(self._fields)}")
            field = self._fields[key]
            target = self._store(key)[key]
            at = where[0] if field.episode_const else where
            part = target[at]
            if not isinstance(value, Tensor):
                value = torch.as_tensor(np.asarray(value))
            if value.numel() != part.numel():
                raise ValueError(
                    f"'{key}' has shape {tuple(value.shape)}, which does not fit "
                    f"{tuple(part.shape)}"
                )
            value = value.to(device=target.device, dtype=target.dtype).reshape(part.shape)
            target[at] = value
            self.changed(key)

    def __getitem__(self, item: Any) -> Any:
        if isinstance(item, str):
            return self._read(item)
        if isinstance(item, tuple) and all(isinstance(key, str) for key in item):
            return self._select(item)
        bs, ts = self._parse_slices(item)
        data = SimpleNamespace(
            transition_data={k: _index(v, bs, ts) for k, v in self.data.transition_data.items()},
            episode_data={k: v[bs] for k, v in self.data.episode_data.items()},
        )
        n_episodes = _length(bs, self.batch_size)
        n_steps = _length(ts, self.max_seq_length)
        part = EpisodeBatch(
            self.scheme, self.groups, n_episodes, n_steps, data, self.preprocess, self.device
        )
        if self._lengths is not None and n_steps == self.max_seq_length:
            part._lengths = self._lengths[bs]
        return part

    def _read(self, key: str) -> Tensor:
        if key in self._derived:
            return self._derived[key]
        if key in self._derived_from:
            source = self._derived_from[key]
            value = self._read(source)
            for transform in self.preprocess[source][1]:
                value = transform.transform(value)
            self._derived[key] = value
            return value
        if key not in self._fields:
            raise KeyError(f"'{key}' is not in the batch, known: {sorted(self.scheme)}")
        value = self._store(key)[key]
        wanted = self._fields[key].read_dtype
        if value.dtype != wanted:
            value = self._derived[key] = value.to(wanted)
        return value

    def _select(self, keys: tuple[str, ...]) -> EpisodeBatch:
        stored = {self._derived_from.get(key, key) for key in keys} | {"filled"}
        preprocess = {key: value for key, value in self.preprocess.items() if key in stored}
        scheme = {k: v for k, v in self.scheme.items() if k in stored}
        data = SimpleNamespace(
            transition_data={k: v for k, v in self.data.transition_data.items() if k in stored},
            episode_data={k: v for k, v in self.data.episode_data.items() if k in stored},
        )
        return EpisodeBatch(
            scheme, self.groups, self.batch_size, self.max_seq_length, data, preprocess, self.device
        )

    @staticmethod
    def _parse_slices(items: Any) -> tuple[Any, Any]:
        if not isinstance(items, tuple):
            items = (items, slice(None))
        if len(items) != 2:
            raise IndexError(f"a batch is indexed by episodes and steps, got {len(items)} indices")
        episodes, steps = (
            slice(i, i + 1 or None) if isinstance(i, int | np.integer) else i for i in items
        )
        return episodes, steps

    def max_t_filled(self) -> Tensor:
        """The largest number of filled steps of an episode, int64 scalar tensor."""
        return self.data.transition_data["filled"].sum(dim=(1, 2)).max()

    def lengths(self) -> Tensor:
        """int64 [B] on the CPU: the filled steps of every episode."""
        if self._lengths is not None:
            return self._lengths
        return self.data.transition_data["filled"].sum(dim=(1, 2)).cpu()

    def steps(self) -> Steps:
        """The filled steps as rows (computed once per batch)."""
        if self._steps is None:
            self._steps = Steps(self.lengths(), self.max_seq_length, self.device)
        return self._steps

    def __repr__(self) -> str:
        return (
            f"EpisodeBatch(batch_size={self.batch_size}, max_seq_length={self.max_seq_length}, "
            f"keys={sorted(self.scheme)}, groups={sorted(self.groups)})"
        )


def _index(value: Tensor, bs: Any, ts: Any) -> Tensor:
    """value[bs, ts] where two lists select the product of both, not pairs."""
    if isinstance(bs, slice) or isinstance(ts, slice):
        return value[bs, ts]
    return value[bs][:, ts]


def _length(index: Any, size: int) -> int:
    if isinstance(index, slice):
        return len(range(*index.indices(size)))
    mask = torch.as_tensor(index)
    return int(mask.sum()) if mask.dtype == torch.bool else len(mask)


class ReplayBuffer(EpisodeBatch):
    """A ring of whole episodes.

    Args:
        buffer_size: capacity in episodes.
        seed: of the sampling.
        dtype: torch.float16 stores observations and states in half the bytes; `sample` returns
            float32 again.
        log: where the size is announced before the memory is taken.

    Raises:
        UserError: the buffer would not fit in the memory that is free now.
    """

    HALF = ("obs", "state")

    def __init__(
        self,
        scheme: Mapping[str, Mapping[str, Any]],
        groups: Mapping[str, int],
        buffer_size: int,
        max_seq_length: int,
        preprocess: Mapping[str, tuple[str, Sequence[Any]]] | None = None,
        device: torch.device | str = "cpu",
        seed: int = 0,
        dtype: torch.dtype = torch.float32,
        log: Any = None,
    ) -> None:
        self._float_dtype = dtype
        self._log = log
        self.buffer_size = buffer_size
        self.buffer_index = 0
        self.episodes_in_buffer = 0
        self.rng = np.random.default_rng(seed)
        super().__init__(
            scheme, groups, buffer_size, max_seq_length, preprocess=preprocess, device=device
        )
        self.episode_lengths = np.zeros(buffer_size, dtype=np.int64)
        # float64 [episodes, 2, A]: the sums of an episode's rewards and of their squares
        self._reward_sums = torch.zeros(
            buffer_size, 2, *self._fields["reward"].shape, dtype=torch.float64, device=device
        )

    def _storage_dtype(self, key: str) -> torch.dtype:
        dtype = super()._storage_dtype(key)
        return self._float_dtype if key in self.HALF and dtype == torch.float32 else dtype

    def _allocate(self) -> None:
        size, free = self.nbytes(), _free_memory(self.device)
        text = (
            f"replay buffer: {self.buffer_size} episodes x {self.max_seq_length} steps = "
            f"{size / 2**20:,.1f} MiB"
        )
        if self._log is not None:
            self._log.info(
                "%s (%s free)", text, "unknown" if free is None else f"{free / 2**20:,.0f} MiB"
            )
        if free is not None and size > free:
            raise UserError(
                f"{text}, but only {free / 2**20:,.0f} MiB are free on {self.device}: lower "
                "buffer_size, "
                "or set buffer_dtype=float16"
            )
        super()._allocate()

    def insert_episode_batch(self, ep_batch: EpisodeBatch) -> None:
        """Copies the episodes of a batch into the ring, over the oldest ones."""
        n = ep_batch.batch_size
        if n > self.buffer_size:
            raise ValueError(f"{n} episodes do not fit into a buffer of {self.buffer_size}")
        steps = ep_batch.max_seq_length
        if steps > self.max_seq_length:
            raise ValueError(
                f"episodes of {steps} steps do not fit into a buffer for {self.max_seq_length}"
            )
        first = min(n, self.buffer_size - self.buffer_index)
        for source, start, count in ((0, self.buffer_index, first), (first, 0, n - first)):
            if count == 0:
                continue
            for key, field in self._fields.items():
                target = self._store(key)[key][start : start + count]
                value = ep_batch.stored(key)[source : source + count]
                if field.episode_const:
                    target.copy_(value)
                else:
                    target[:, :steps].copy_(value)
                    target[:, steps:] = 0
        self.changed(*self._fields)
        slots = (self.buffer_index + np.arange(n)) % self.buffer_size
        self.episode_lengths[slots] = ep_batch.lengths().numpy()
        self._sum_rewards(slots)
        self.buffer_index = (self.buffer_index + n) % self.buffer_size
        self.episodes_in_buffer = min(self.episodes_in_buffer + n, self.buffer_size)

    def can_sample(self, batch_size: int) -> bool:
        """Whether at least `batch_size` episodes are stored."""
        return self.episodes_in_buffer >= batch_size

    def sample(self, batch_size: int) -> EpisodeBatch:
        """Different episodes, uniformly drawn, cut to the longest of them.

        Raises:
            ValueError: fewer episodes are stored.
        """
        if not self.can_sample(batch_size):
            raise ValueError(f"cannot sample {batch_size} of {self.episodes_in_buffer} episodes")
        return self._take(self.rng.choice(self.episodes_in_buffer, batch_size, replace=False))

    uni_sample = sample

    def sample_latest(self, batch_size: int) -> EpisodeBatch:
        """The `batch_size` episodes inserted last, oldest first."""
        if not self.can_sample(batch_size):
            raise ValueError(f"cannot sample {batch_size} of {self.episodes_in_buffer} episodes")
        return self._take(
            (self.buffer_index - batch_size + np.arange(batch_size)) % self.buffer_size
        )

    def sample_beside_latest(self, batch_size: int, latest: int) -> EpisodeBatch:
        """The `latest` episodes inserted last, oldest first, and behind them `batch_size` different
        ones, uniformly drawn from all.

        Raises:
            ValueError: fewer episodes are stored.
        """
        most = max(batch_size, latest)
        if not self.can_sample(most):
            raise ValueError(f"cannot sample {most} of {self.episodes_in_buffer} episodes")
        newest = (self.buffer_index - latest + np.arange(latest)) % self.buffer_size
        drawn = self.rng.choice(self.episodes_in_buffer, batch_size, replace=False)
        return self._take(np.concatenate([newest, drawn]))

    def _take(self, episodes: np.ndarray) -> EpisodeBatch:
        longest = max(int(self.episode_lengths[episodes].max()), 1)
        index = torch.from_numpy(episodes).to(self.device)
        data = SimpleNamespace(transition_data={}, episode_data={})
        for key, field in self._fields.items():
            value = self._store(key)[key]
            if field.episode_const:
                data.episode_data[key] = value.index_select(0, index)
            else:
                value = value[:, :longest].index_select(0, index)
                data.transition_data[key] = value.float() if key in self.HALF else value
        taken = EpisodeBatch(
            self.scheme, self.groups, len(episodes), longest, data, self.preprocess, self.device
        )
        taken._lengths = torch.from_numpy(self.episode_lengths[episodes])
        return taken

    def n_transitions(self) -> int:
        """Stored transitions (filled steps that have a successor)."""
        return int(np.maximum(self.episode_lengths[: self.episodes_in_buffer] - 1, 0).sum())

    def sample_transitions(self, n: int, history: int = 0, recent: int = 0) -> Transitions:
        """Single transitions, uniformly drawn with replacement from all stored ones.

        Args:
            history: so many earlier steps come with each (`past_obs`, `past_actions`,
                `past_filled`).
            recent: so many of the newest transitions (fewer where there are not so many) come along
                as `.recent`.

        Raises:
            ValueError: nothing is stored.
        """
        counts = np.maximum(self.episode_lengths[: self.episodes_in_buffer] - 1, 0)
        if counts.sum() == 0:
            raise ValueError("cannot sample transitions from an empty buffer")
        drawn = self._transitions(
            np.arange(len(counts)), counts, self.rng.integers(counts.sum(), size=n), history
        )
        if recent:
            # From the oldest episode to the newest.
            order = (self.buffer_index - len(counts) + np.arange(len(counts))) % self.buffer_size
            total = counts.sum()
            newest = np.arange(max(total - recent, 0), total)
            drawn.recent = self._transitions(order, counts[order], newest, history)
        return drawn

    def _transitions(
        self, order: np.ndarray, counts: np.ndarray, which: np.ndarray, history: int
    ) -> Transitions:
        """Transitions number `which`, where those of the episodes `order` (`counts` each) are
        numbered through.
        """
        ends = np.cumsum(counts)
        at = np.searchsorted(ends, which, side="right")
        episodes, times = order[at], which - (ends - counts)[at]
        flat = torch.from_numpy(episodes * self.max_seq_length + times).to(self.device)
        out = {}
        for key, field in self._fields.items():
            value = self._store(key)[key]
            if field.episode_const:
                out[key] = value.index_select(0, torch.from_numpy(episodes).to(self.device)).to(
                    field.read_dtype
                )
                continue
            rows = value.flatten(0, 1)
            out[key] = rows.index_select(0, flat).to(field.read_dtype)
            if key in OBSERVED:
                out[f"next_{key}"] = rows.index_select(0, flat + 1).to(field.read_dtype)
        if history:
            back = np.arange(history, 0, -1)
            began = torch.from_numpy(times[:, None] >= back).to(self.device)
            earlier = torch.where(began, flat[:, None] - torch.from_numpy(back).to(self.device), 0)
            for key in ("obs", "actions"):
                past = self._store(key)[key].flatten(0, 1)[earlier].to(self._fields[key].read_dtype)
                out[f"past_{key}"] = past.masked_fill_(~began.view(*began.shape, 1, 1), 0)
            out["past_filled"] = began.float()
        out["terminated"] = out["terminated"].float()
        for key in out.keys() & {"actions", "past_actions"}:
            if out[key].dtype == torch.int64:
                out[key] = out[key].squeeze(-1)
        return Transitions(out, *self.reward_moments())

    def reward_moments(self) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation of the rewards of all stored transitions, [A] each ([1] with
        a common reward).
        """
        sums = self._reward_sums[: self.episodes_in_buffer].sum(0) / max(self.n_transitions(), 1)
        mean, square = sums
        return mean.float(), (square - mean.square()).clamp(min=0).sqrt().float()

    def _sum_rewards(self, slots: np.ndarray) -> None:
        """Notes the sums of these episodes' rewards and of their squares."""
        rewards = self._store("reward")["reward"][torch.from_numpy(slots)].double()
        ends = torch.from_numpy(self.episode_lengths[slots] - 1).to(rewards.device)
        past = torch.arange(rewards.shape[1], device=rewards.device) >= ends[:, None]
        rewards.masked_fill_(past.unsqueeze(-1), 0.0)
        self._reward_sums[slots] = torch.stack([rewards.sum(1), rewards.square().sum(1)], dim=1)

    def state_dict(self) -> dict[str, Any]:
        """The stored episodes, cut to the longest, the position and the sampling's random state."""
        n = self.episodes_in_buffer
        longest = int(self.episode_lengths[:n].max()) if n else 0
        return {
            "transition_data": {
                k: v[:n, :longest].clone() for k, v in self.data.transition_data.items()
            },
            "episode_data": {k: v[:n].clone() for k, v in self.data.episode_data.items()},
            "lengths": torch.from_numpy(self.episode_lengths[:n].copy()),
            "buffer_index": self.buffer_index,
            "rng": self.rng.bit_generator.state,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Inverse of `state_dict`, for a buffer of the same scheme and size."""
        n = len(state["lengths"])
        if n > self.buffer_size:
            raise UserError(f"the checkpoint holds {n} episodes, buffer_size is {self.buffer_size}")
        for key, value in state["transition_data"].items():
            target = self.data.transition_data[key]
            target.zero_()
            target[:n, : value.shape[1]] = value.to(target.device)
        for key, value in state["episode_data"].items():
            self.data.episode_data[key][:n] = value.to(self.device)
        self.changed(*self._fields)
        self.episode_lengths[:] = 0
        self.episode_lengths[:n] = state["lengths"].numpy()
        self._sum_rewards(np.arange(n))
        self.episodes_in_buffer = n
        self.buffer_index = state["buffer_index"]
        self.rng.bit_generator.state = state["rng"]

    def __repr__(self) -> str:
        fill = f"{self.episodes_in_buffer}/{self.buffer_size}"
        return f"ReplayBuffer({fill} episodes, keys={sorted(self.scheme)})"


class PrioritizedReplayBuffer(ReplayBuffer):
    """A ring of whole episodes of which those with large errors are drawn more often.

    Proportional prioritisation (Schaul et al. 2016, section 3.3): episode i is drawn with
    probability P_i = p_i^alpha / sum_k p_k^alpha and counts with weight (N P_i)^-beta, divided by
    the largest weight that a stored episode can have. New episodes get the largest p so far. The
    draws are stratified: one from each of as many equal shares of the sum.

    PyMARL2 leaves the last stored episode out of the sum that it draws from; here it takes part.

    Args:
        scheme, groups, buffer_size, max_seq_length: as for `ReplayBuffer`.
        alpha: exponent of the priorities.
        beta: of the weights at step 0; it grows to 1 at `t_max`.
        t_max: length of training [steps].
        preprocess, device, seed, dtype, log: as for `ReplayBuffer`.
        by_return: priorities are the episodes' returns, scaled to 0..1 by the lowest and highest
            that were drawn so far (PyMARL2's `return_priority`).

    Attributes:
        priorities: float64 [buffer_size], p^alpha; 0 where nothing is stored.
        max_priority: the largest p so far.
    """

    def __init__(
        self,
        scheme: Mapping[str, Mapping[str, Any]],
        groups: Mapping[str, int],
        buffer_size: int,
        max_seq_length: int,
        alpha: float,
        beta: float,
        t_max: int,
        preprocess: Mapping[str, tuple[str, Sequence[Any]]] | None = None,
        device: torch.device | str = "cpu",
        seed: int = 0,
        dtype: torch.dtype = torch.float32,
        log: Any = None,
        by_return: bool = False,
    ) -> None:
        super().__init__(
            scheme, groups, buffer_size, max_seq_length, preprocess, device, seed, dtype, log
        )
        self.alpha, self.beta, self.t_max, self.by_return = alpha, beta, t_max, by_return
        self.priorities = np.zeros(buffer_size)
        self.max_priority = 1.0
        self._returns = (np.inf, -np.inf)  # the lowest and the highest that were drawn

    def insert_episode_batch(self, ep_batch: EpisodeBatch) -> None:
        """See `ReplayBuffer`; the new episodes get the largest priority so far."""
        slots = (self.buffer_index + np.arange(ep_batch.batch_size)) % self.buffer_size
        super().insert_episode_batch(ep_batch)
        self.priorities[slots] = self.max_priority**self.alpha

    def sample(  # type: ignore[override] # PyMARL2's form
        self, batch_size: int, t: int
    ) -> tuple[EpisodeBatch, np.ndarray, np.ndarray]:
        """Episodes drawn by their priorities, cut to the longest of them.

        Args:
            batch_size: B.
            t: environment steps so far.

        Returns:
            The episodes, where they are stored (int64 [B]; one may be drawn more than once), and
            their importance weights (float64 [B], at most 1).

        Raises:
            ValueError: fewer episodes are stored.
        """
        if not self.can_sample(batch_size):
            raise ValueError(f"cannot sample {batch_size} of {self.episodes_in_buffer} episodes")
        stored = self.priorities[: self.episodes_in_buffer]
        sums = np.cumsum(stored)
        at = (np.arange(batch_size) + self.rng.random(batch_size)) / batch_size * sums[-1]
        episodes = np.minimum(np.searchsorted(sums, at, side="right"), len(stored) - 1)
        beta = self.beta + (1.0 - self.beta) * min(t / self.t_max, 1.0)
        weights = (stored[episodes] / stored.min()) ** -beta
        return self._take(episodes), episodes, weights

    def update_priorities(self, idxes: np.ndarray, priorities: Sequence[float]) -> None:
        """Sets the priorities of drawn episodes.

        Args:
            idxes: int64 [B], where they are stored.
            priorities: [B], greater than 0: absolute errors; with `by_return` not read.

        Raises:
            ValueError: a priority is not greater than 0 and finite.
        """
        new = self._scaled_returns(idxes) if self.by_return else np.asarray(priorities, dtype=float)
        if not (np.isfinite(new) & (new > 0)).all():
            raise ValueError(f"priorities must be greater than 0 and finite, got {new.tolist()}")
        self.priorities[idxes] = new**self.alpha
        self.max_priority = max(self.max_priority, float(new.max()))

    def _scaled_returns(self, idxes: np.ndarray) -> np.ndarray:
        sums = self._reward_sums[torch.from_numpy(idxes), 0]
        returns = sums.flatten(1).mean(1).cpu().numpy()
        low, high = self._returns
        low, high = self._returns = min(low, returns.min()), max(high, returns.max())
        return (returns - low) / (high - low + 1e-5) + PRIORITY_FLOOR

    def state_dict(self) -> dict[str, Any]:
        """See `ReplayBuffer`; with the priorities."""
        return super().state_dict() | {
            "priorities": torch.from_numpy(self.priorities[: self.episodes_in_buffer].copy()),
            "max_priority": self.max_priority,
            "returns": tuple(map(float, self._returns)),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Inverse of `state_dict`."""
        if "priorities" not in state:
            raise UserError("the checkpoint's replay buffer has no priorities: set use_per=False")
        super().load_state_dict(state)
        self.priorities[:] = 0.0
        self.priorities[: self.episodes_in_buffer] = state["priorities"].numpy()
        self.max_priority = state["max_priority"]
        self._returns = tuple(state["returns"])


def _free_memory(device: torch.device | str) -> int | None:
    """Bytes that can be allocated on a device now; None where that cannot be told."""
    if torch.device(device).type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    try:
        with open("/proc/meminfo") as file:
            for line in file:
                if line.startswith("MemAvailable:"):
                    return int(line.split()[1]) * 1024
    except OSError:
        pass
    return None
