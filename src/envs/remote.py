"""Environments on the nodes of a Ray cluster: actors, each with a few environments in worker
processes of its own.

An actor is a `SubprocVectorEnv` for its share of the environments, so that a game that hangs or
dies is replaced where it ran. A call costs one message to each actor and one back, with the arrays
of all its environments. What is added here is the loss of an actor or of its node: all its
environments are then replaced at once, wherever the cluster has room.
"""

from __future__ import annotations

import contextlib
import logging
import mmap
import os
import pickle
import socket
import time
import weakref
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from multiprocessing import spawn
from types import ModuleType
from typing import Any

import numpy as np

from envs import worker
from envs.adapter import Accounts, AdapterVectorEnv
from envs.multiagentenv import MultiAgentEnv
from envs.subproc import (
    CLOSE_GRACE,
    TERM_GRACE,
    Broken,
    Deadline,
    SubprocVectorEnv,
    payload,
    start_message,
)
from envs.vector_env import EnvSpec, warm_up
from utils.errors import EnvError, EnvFailure, UserError, raised
from utils.ray_cluster import Demand, check_room, connect, disconnect, shown_amount

# commands
START, RESET, STEP, ASK, CLOSE = range(5)

_MARGIN = 15.0  # s beyond `env_timeout` for killing a worker and for the way
_REMINDER = 30.0  # s between two lines about environments that wait for room

_log = logging.getLogger(__name__)


# --- On the nodes ---


class Share(SubprocVectorEnv):
    """Environments first .. first + n_envs - 1 of a run, in worker processes of this one.

    Args:
        spec: their sizes, where they are known: then their building is not waited for.
        rest: as for `SubprocVectorEnv`.
    """

    def __init__(self, spec: EnvSpec | None, **rest: Any) -> None:
        self._known_spec = spec
        self._new_names: dict[int, list[str]] = {}
        self._events: list[tuple[int, str, str]] = []
        super().__init__(**rest)
        assert self._memory_fd is not None
        self._block_size = worker.memory_size(self.spec.layout(self.n_envs))
        self._memory = mmap.mmap(self._memory_fd, self._block_size)

    def _start(self) -> EnvSpec:
        if self._known_spec is None:
            return super()._start()
        self._start_workers()
        return self._known_spec

    def _after_step(self, b: int, new_names: Sequence[str]) -> None:
        if new_names:
            self._new_names[b] = list(new_names)
        super()._after_step(b, new_names)

    def _count_failure(self, b: int, cause: str, detail: str = "") -> None:
        self._events.append((b, cause, detail))
        super()._count_failure(b, cause, detail)

    def ask(
        self,
        method: str,
        arguments: Sequence[Any] | None,
        indices: Sequence[int],
        seed: int,
        replaced: list[int],
    ) -> list[Any]:
        """What hosts answer, once the streams are counted as the whole counts them."""
        self._seed, self._accounts.replaced = seed, replaced
        return self._ask(method, arguments, indices)

    def events(self) -> list[tuple[int, str, str]]:
        """(environment, cause, detail) of each that was replaced since this was last asked."""
        found, self._events = self._events, []
        return found

    def shown(self) -> bytes:
        """All arrays of the contract as they are; then, pickled, the info figures [B, width] and
        the names that are new (environment -> names, in the order of their columns).
        """
        width = max(map(len, self._info_rows))
        figures = self._arrays["info_values"][:, :width]
        names, self._new_names = self._new_names, {}
        return self._memory[: self._block_size] + pickle.dumps((figures, names))


class EnvActor:
    """What Ray runs on a node. Its messages are bytes, tagged as those of worker processes are."""

    def __init__(self) -> None:
        self._share: Share | None = None

    def where(self) -> Place:
        """Answers once the actor is placed."""
        import ray

        context = ray.get_runtime_context()
        address = ray.util.get_node_ip_address()
        return Place(context.get_node_id(), f"{socket.gethostname()} ({address})", os.getpid())

    def call(self, message: bytes) -> tuple[bytes, list[tuple[int, str, str]] | None]:
        """Carries out a command.

        Returns:
            The answer, and `Share.events` if there are any.
        """
        command, timeout, rest = pickle.loads(message)
        try:
            reply = worker.DONE + self._done(command, timeout, rest)
        except (Exception, SystemExit) as error:
            reply = worker.refusal(error)
        return reply, (self._share and self._share.events()) or None

    def _done(self, command: int, timeout: float, rest: Any) -> bytes:
        if command == START:
            self._share = _build(timeout, **rest)
            return pickle.dumps(self._share.spec)
        share = self._share
        if command == CLOSE or share is None:
            self._share = None
            if share is not None:
                share.close()
            return b""
        share.env_timeout = timeout
        if command == ASK:
            return pickle.dumps(share.ask(*rest))
        mask = np.frombuffer(rest[0], dtype=np.bool_)
        if command == RESET:
            if rest[1] is not None:
                share.set_t_env(rest[1])
            share.reset(mask)
        else:
            shape, dtype = share.spec.action_layout(share.n_envs)
            share.step(np.frombuffer(rest[1], dtype).reshape(shape), mask)
        return share.shown()


def _build(timeout: float, start: dict[str, Any], **rest: Any) -> Share:
    """The environments of an actor.

    Args:
        timeout: see `SubprocVectorEnv`.
        start: the `start_message` of the process that uses them.
        rest: for `Share`.
    """
    start = {**start, "preparation": dict(start["preparation"])}
    if not os.path.isdir(start["preparation"].get("dir", "")):
        # Where the run was started need not exist on this node.
        start["preparation"].pop("dir", None)
    spawn.prepare(start["preparation"])
    setup = pickle.loads(start["setup"])
    if setup is not None:
        setup()
    factory = pickle.loads(start["factory"])
    batched = getattr(factory, "vector_env", None)
    if batched is not None:
        warm_up(batched, start["env_args"])
    return Share(
        factory=factory,
        env_args=start["env_args"],
        worker_setup=setup,
        env_timeout=timeout,
        start=start,
        **rest,
    )


# --- Where they are used ---


@dataclass(frozen=True)
class Place:
    """Where an actor is: Ray's name of the node, its name for readers, the process."""

    node: str
    name: str
    pid: int


class _Actor:
    """The other side of one actor.

    Args:
        handle: Ray's.
        first, n_envs: which environments it has.
        start: the message that builds them.
    """

    def __init__(self, handle: Any, first: int, n_envs: int, start: bytes) -> None:
        self.handle = handle
        self.rows = slice(first, first + n_envs)
        self.n_envs = n_envs
        self.asked = time.monotonic()
        self.placed = handle.where.remote()
        self.started = handle.call.remote(start)
        self.place: Place | None = None  # None: not up yet
        self.spec: EnvSpec | None = None

    def __str__(self) -> str:
        last = self.rows.stop - 1
        if last == self.rows.start:
            return f"environment {last}"
        return f"environments {self.rows.start}-{last}"


def _shut_down(ray: ModuleType, actors: list[_Actor], owner: int) -> None:
    """Closes all actors, gently at first. Must not refer to the environment: it also runs when that
    is collected.
    """
    if os.getpid() != owner:
        return
    with contextlib.suppress(Exception):  # Ray may be gone: so are its actors
        if ray.is_initialized():
            closing = pickle.dumps((CLOSE, 0.0, None))
            told = [one.handle.call.remote(closing) for one in actors if one.place is not None]
            if told:
                patience = CLOSE_GRACE + 2 * TERM_GRACE + 1
                ray.wait(told, num_returns=len(told), timeout=patience)
            for one in actors:
                ray.kill(one.handle)
    actors.clear()
    disconnect()


class RayVectorEnv(AdapterVectorEnv):
    """B `MultiAgentEnv`s in actors of a Ray cluster.

    Episodes are those of `SubprocVectorEnv` with the same seed, wherever the actors are and however
    many environments share one. An actor that dies, or whose node does, takes its environments with
    it: `failed` says so, and another actor comes up where there is room; in a reset it takes over
    at once.

    Args:
        factory, env_args, n_envs, seed, role, max_env_restarts, worker_setup, env_timeout: see
            `SubprocVectorEnv`.
        address: of the cluster; `auto`: the one that runs on this machine; "": start one here.
        envs_per_actor: environments that share an actor.
        resources: what each environment asks of its node: `cores`, `gpus`, `memory` [GB], or
            anything else that nodes have by name.
        patience: s, how long environments wait for room in the cluster.

    Raises:
        MissingPackage: Ray is not installed.
        UserError: there is no such cluster, it can never have what the environments need, or the
            environments refuse something.
        EnvFailure: an environment broke too often in a row, or there is no room for it.
    """

    _others: weakref.WeakSet[RayVectorEnv] = weakref.WeakSet()  # of this process, not closed

    def __init__(
        self,
        factory: Callable[..., MultiAgentEnv],
        env_args: dict[str, Any],
        n_envs: int,
        seed: int,
        role: str,
        max_env_restarts: int = 5,
        worker_setup: Callable[[], None] | None = None,
        env_timeout: float = 120.0,
        *,
        address: str,
        envs_per_actor: int,
        resources: Mapping[str, float],
        patience: float,
    ) -> None:
        self.env_timeout = env_timeout
        self._usable = True
        self._actors: list[_Actor] = []
        self._per_actor = min(envs_per_actor, n_envs)
        self._demand = _demand(resources)
        self._patience = patience
        self._start_message = start_message(factory, env_args, worker_setup)
        self._ray = connect("runner=ray", address)
        self._actor_class = self._ray.remote(EnvActor)
        self._finalizer = weakref.finalize(self, _shut_down, self._ray, self._actors, os.getpid())
        super().__init__(factory, env_args, n_envs, seed, role, max_env_restarts)

    @property
    def places(self) -> list[Place | None]:
        """Where each actor is; None: it is not up yet."""
        return [one.place for one in self._actors]

    # starting

    def _start(self) -> EnvSpec:
        self._known_spec: EnvSpec | None = None
        self._check_room()
        self._others.add(self)
        for first in range(0, self.n_envs, self._per_actor):
            self._actors.append(self._new_actor(first))
        waiting = set(range(len(self._actors)))
        while waiting:
            broken: dict[int, Broken] = {}
            for i in sorted(waiting):
                try:
                    self._wait_until_up(i)
                except Broken as error:
                    broken[i] = error
            self._replace(broken)
            waiting = set(broken)
        spec = self._actors[0].spec
        assert spec is not None
        for one in self._actors:
            if one.spec != spec:
                fault = EnvError(f"it has other sizes than environment 0: {one.spec}, {spec}")
                raise self._named(one.rows.start, fault)
        self._known_spec = spec
        return spec

    def _check_room(self) -> None:
        """
        Raises:
            UserError: the cluster never has room for an actor, or for all environments of this
                process.
        """
        check_room(
            self._ray,
            self._demand.times(self._per_actor),
            f"an actor with envs_per_actor={self._per_actor} environments",
        )
        sets = [self, *self._others]
        there = self._ray.cluster_resources()
        for name in self._demand.amounts():
            needed = sum(one.n_envs * one._demand.amounts().get(name, 0.0) for one in sets)
            if needed > there.get(name, 0.0):
                raise UserError(
                    f"the Ray cluster has {shown_amount(name, there.get(name, 0.0))}, the "
                    f"environments of this run need {shown_amount(name, needed)} (training and "
                    "evaluation have environments of their own)"
                )

    def _new_actor(self, first: int) -> _Actor:
        n_envs = min(self._per_actor, self.n_envs - first)
        rows = slice(first, first + n_envs)
        replaced, in_a_row = self._accounts.replaced[rows], self._accounts.in_a_row[rows]
        rest = {
            "start": self._start_message,
            "n_envs": n_envs,
            "seed": self._seed,
            "role": self._role,
            "max_env_restarts": self._max_env_restarts,
            "accounts": Accounts(replaced, in_a_row, first),
            "spec": self._known_spec,
        }
        message = pickle.dumps((START, self.env_timeout, rest))
        options = self._demand.times(n_envs).options()
        handle = self._actor_class.options(**options, scheduling_strategy="SPREAD").remote()
        return _Actor(handle, first, n_envs, message)

    def _wait_until_up(self, i: int) -> None:
        """Waits for the actor's environments.

        Raises:
            Broken: the actor died, or did not answer in time.
            EnvFailure: there was no room for it in time.
            Exception: what the environments refused.
        """
        actor = self._actors[i]
        if actor.place is not None:
            return
        self._wait_for_room(actor)
        place = self._answer(actor.placed, Deadline(_MARGIN), actor)
        deadline = self._deadline(self._max_env_restarts + 1)
        reply, events = self._answer(actor.started, deadline, actor)
        self._note(actor, events)
        actor.spec, actor.place = pickle.loads(payload(reply)), place
        _log.info("%s (%s): on %s", actor, self._role, place.name)

    def _wait_for_room(self, actor: _Actor) -> None:
        while not self._ray.wait([actor.placed], timeout=_REMINDER)[0]:
            waited = time.monotonic() - actor.asked
            needs = self._demand.times(actor.n_envs)
            text = (
                f"{actor} ({self._role}) wait for room in the Ray cluster since {waited:.0f} s: "
                f"{str(needs) or 'any node'}"
            )
            if waited > self._patience:
                raise EnvFailure(f"{text}; ray.patience is over")
            _log.warning("%s", text)

    def _attach(self) -> None:
        pass  # arrays come with the answers

    # calls

    def _reset(self, mask: np.ndarray) -> None:
        waiting = mask.copy()
        while waiting.any():
            messages = {
                i: (RESET, (part.tobytes(), self._t_env)) for i, part in self._parts(waiting)
            }
            for i, (reply, _) in self._call(messages, self._max_env_restarts + 1).items():
                self._take(i, reply, waiting)
                waiting[self._actors[i].rows] = False

    def _step(self, actions: np.ndarray, mask: np.ndarray) -> None:
        parts = self._parts(mask)
        messages = {
            i: (STEP, (part.tobytes(), actions[self._actors[i].rows].tobytes()))
            for i, part in parts
        }
        for i, (reply, broken) in sorted(self._call(messages, 1).items()):
            first = self._actors[i].rows.start
            names = self._take(i, reply, mask)
            for b in np.flatnonzero(mask[self._actors[i].rows]).tolist():
                if b not in broken:
                    self._after_step(first + b, names.get(b, ()))

    def _parts(self, mask: np.ndarray) -> list[tuple[int, np.ndarray]]:
        """Number and part of the mask of each actor that has a share in it."""
        parts = [(i, mask[one.rows]) for i, one in enumerate(self._actors)]
        return [(i, part) for i, part in parts if part.any()]

    def _take(self, i: int, reply: bytes, mask: np.ndarray) -> dict[int, list[str]]:
        """Copies the rows in `mask` out of an answer.

        Returns:
            New names of info figures, by environment of the actor.
        """
        actor = self._actors[i]
        layout = self.spec.layout(actor.n_envs)
        figures, names = pickle.loads(memoryview(reply)[worker.memory_size(layout) :])
        own = mask[actor.rows]
        rows: Any = actor.rows if own.all() else actor.rows.start + np.flatnonzero(own)
        chosen: Any = slice(None) if own.all() else own
        for name, values in worker.map_arrays(reply, layout).items():
            self._arrays[name][rows] = values[chosen]
        self._arrays["info_values"][rows, : figures.shape[1]] = figures[chosen]
        return names

    def _note(self, actor: _Actor, events: Sequence[tuple[int, str, str]] | None) -> set[int]:
        """Counts environments that the actor has replaced; which these are, by their number
        there.
        """
        for b, cause, detail in events or ():
            self._lose(actor.rows.start + b, cause, detail)
        return {b for b, _, _ in events or ()}

    def _lose(self, b: int, cause: str, detail: str) -> None:
        if self._known_spec is not None:  # else there are no arrays yet
            self._drop_episode(b)
        self._count_failure(b, cause, detail)

    def _ask(
        self,
        method: str,
        arguments: Sequence[Any] | None = None,
        indices: Sequence[int] | None = None,
    ) -> list[Any]:
        indices = range(self.n_envs) if indices is None else indices
        waiting = dict(enumerate(indices))  # position among the answers -> environment
        answers: dict[int, Any] = {}
        while waiting:
            messages, asked = {}, {}
            for i in sorted({b // self._per_actor for b in waiting.values()}):
                asked[i] = [k for k, b in waiting.items() if b // self._per_actor == i]
                given = None if arguments is None else [arguments[k] for k in asked[i]]
                rows = self._actors[i].rows
                own = [waiting[k] - rows.start for k in asked[i]]
                replaced = self._accounts.replaced[rows]
                messages[i] = (ASK, (method, given, own, self._seed, replaced))
            for i, (reply, _) in self._call(messages, self._max_env_restarts + 1).items():
                answers |= zip(asked[i], pickle.loads(reply), strict=True)
            waiting = {k: b for k, b in waiting.items() if k not in answers}
        return [answers[k] for k in range(len(indices))]

    def _call(
        self, messages: Mapping[int, tuple[int, Any]], rounds: int
    ) -> dict[int, tuple[bytes, set[int]]]:
        """Sends commands and collects the answers; actors that break are replaced and missing in
        what is returned.

        Args:
            messages: number of the actor -> command and what belongs to it.
            rounds: how often a worker's `env_timeout` may pass before the answer.

        Returns:
            Number of the actor -> its answer, and which of its environments it has replaced.

        Raises:
            EnvFailure: see the class.
            Exception: what an environment refused to do, once all have answered.
        """
        if not self._usable:
            raise RuntimeError(
                "after close(), an interrupted call or an EnvFailure these environments cannot be "
                "used"
            )
        self._usable = False
        broken: dict[int, Broken] = {}
        told: dict[int, Any] = {}
        for i, (command, rest) in messages.items():
            try:
                self._wait_until_up(i)
            except Broken as error:
                broken[i] = error
                continue
            message = pickle.dumps((command, self.env_timeout, rest))
            told[i] = self._actors[i].handle.call.remote(message)
        deadline = self._deadline(rounds)
        replies: dict[int, tuple[bytes, set[int]]] = {}
        refused: Exception | None = None
        for i, answer in self._answers(told, deadline).items():
            if isinstance(answer, Broken):
                broken[i] = answer
                continue
            reply, events = answer
            lost = self._note(self._actors[i], events)
            try:
                replies[i] = payload(reply), lost
            except Exception as error:
                refused = error
        self._replace(broken)
        if refused is not None:
            self._usable = type(refused) is not EnvFailure  # that one leaves its actor unusable
            raise refused
        return replies

    def _deadline(self, rounds: int) -> Deadline:
        return Deadline(rounds * (self.env_timeout + _MARGIN))

    def _answers(self, told: dict[int, Any], deadline: Deadline) -> dict[int, Any]:
        """Number of the actor -> what it answers, or how it broke."""
        try:  # all at once costs least
            found = self._ray.get(list(told.values()), timeout=deadline.remaining())
            return dict(zip(told, found, strict=True))
        except self._ray.exceptions.RayError:
            pass
        answers: dict[int, Any] = {}
        for i, reference in told.items():
            try:
                answers[i] = self._answer(reference, deadline, self._actors[i])
            except Broken as error:
                answers[i] = error
        return answers

    def _answer(self, reference: Any, deadline: Deadline, actor: _Actor) -> Any:
        """
        Raises:
            Broken: there is none.
            UserError: the actor's node cannot load the program.
        """
        exceptions = self._ray.exceptions
        try:
            return self._ray.get(reference, timeout=deadline.remaining())
        except exceptions.GetTimeoutError:
            raise Broken(f"its actor{_on(actor)} gave no answer in {deadline.seconds} s") from None
        except exceptions.RayError as error:
            if "ModuleNotFoundError" in str(error):
                raise UserError(
                    "a node of the Ray cluster cannot load the environments: the checkout and its "
                    "Python must be at the same path on every node, `doctor --cluster` asks them "
                    f"({raised(error)[-200:]})"
                ) from error
            raise Broken(f"its actor{_on(actor)} died: {_why(error)}", str(error)) from None

    def _replace(self, broken: Mapping[int, Broken]) -> None:
        """Gives up actors and starts others in their places, which build their environments while
        the run goes on.
        """
        self._usable = False
        for i, cause in sorted(broken.items()):
            actor = self._actors[i]
            with contextlib.suppress(Exception):
                self._ray.kill(actor.handle)
            for b in range(self.n_envs)[actor.rows]:
                self._lose(b, str(cause), cause.detail)
            self._actors[i] = self._new_actor(actor.rows.start)
        self._usable = True

    def close(self) -> None:
        self._usable = False
        self._others.discard(self)
        self._finalizer()


def _demand(resources: Mapping[str, float]) -> Demand:
    own = {name: resources[name] for name in ("cores", "gpus", "memory") if name in resources}
    return Demand(**own, named={name: x for name, x in resources.items() if name not in own})


def _on(actor: _Actor) -> str:
    return f" on {actor.place.name}" if actor.place is not None else ""


def _why(error: Exception) -> str:
    """Ray's own words in one sentence."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    because = [line for line in lines if "is dead because" in line or "died because" in line]
    said = (because or lines or [type(error).__name__])[0]
    return said.partition(". ")[0].rstrip(".")
