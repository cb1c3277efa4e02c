"""Several `MultiAgentEnv`s in this process, one after the other."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np

from envs.adapter import AdapterVectorEnv, EnvHost
from envs.vector_env import EnvSpec
from utils.errors import EnvError


class SerialVectorEnv(AdapterVectorEnv):
    """B `MultiAgentEnv`s stepped in turn. One that reports `env_error` is built anew at its next
    reset; an exception in an environment is an `EnvError`.
    """

    def _start(self) -> EnvSpec:
        self._hosts: list[EnvHost | None] = [None] * self.n_envs
        for b in range(self.n_envs):
            self._hosts[b] = self._build(b)
        return self._host(0).spec

    def _build(self, b: int) -> EnvHost:
        with self._naming(b):
            return EnvHost(self._factory, self._env_args, self._host_seed(b))

    def _attach(self) -> None:
        for b in range(self.n_envs):
            with self._naming(b):
                self._host(b).attach(self._arrays, self.spec, b)

    @contextmanager
    def _naming(self, b: int) -> Iterator[None]:
        try:
            yield
        except EnvError as error:
            raise self._named(b, error) from error

    def _host(self, b: int) -> EnvHost:
        host = self._hosts[b]
        if host is None:
            host = self._hosts[b] = self._build(b)
            host.attach(self._arrays, self.spec, b)
        return host

    def _reset(self, mask: np.ndarray) -> None:
        for b in np.flatnonzero(mask).tolist():
            with self._naming(b):
                self._host(b).reset(self._t_env)

    def _step(self, actions: np.ndarray, mask: np.ndarray) -> None:
        self._arrays["actions"][:] = actions
        for b in np.flatnonzero(mask).tolist():
            try:
                new_names = self._host(b).step()
            except EnvError as error:
                raise self._named(b, error) from error
            if self.failed[b]:
                self._host(b).close()
                self._hosts[b] = None
                self._drop_episode(b)
                self._count_failure(b, "it reported env_error")
            else:
                self._after_step(b, new_names)

    def _ask(
        self,
        method: str,
        arguments: Sequence[Any] | None = None,
        indices: Sequence[int] | None = None,
    ) -> list[Any]:
        indices = range(self.n_envs) if indices is None else indices
        answers = []
        for i, b in enumerate(indices):
            with self._naming(b):
                given = [] if arguments is None else [arguments[i]]
                answers.append(getattr(self._host(b), method)(*given))
        return answers

    def close(self) -> None:
        hosts, self._hosts = self._hosts, [None] * self.n_envs
        for host in hosts:
            if host is not None:
                host.close()
