"""What every learner needs around its loss: optimiser, target networks, logging, model files."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Mapping
from types import SimpleNamespace
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from components.episode_buffer import EpisodeBatch, ReplayBuffer
from components.inner import Explained
from components.transitions import Transitions
from learners.needs import Needs
from learners.resets import Resets
from modules.kernels.linear import takes_bfloat16
from utils.errors import ConfigError, Diverged
from utils.ranges import Range, check_ranges

OPTIMISERS = ("rmsprop", "adam", "radam")


def make_optimiser(
    params: Iterable[nn.Parameter],
    args: SimpleNamespace,
    weight_decay: float | None = None,
    lr: float | None = None,
) -> torch.optim.Optimizer:
    """The optimiser that `args.optimizer` names, with PyMARL's keys (`lr`, `optim_alpha`,
    `optim_eps`), which are RMSprop's, and `adam_eps`, which is Adam's and RAdam's (Liu et al.
    2020).

    Args:
        weight_decay: L2 penalty; None: that of `args`.
        lr: learning rate; None: that of `args`.
    """
    lr = args.lr if lr is None else lr
    weight_decay = args.weight_decay if weight_decay is None else weight_decay
    # For so many small parameters, one call for all of them is a quarter of the work of a loop over
    # them.
    if args.optimizer == "adam":
        return torch.optim.Adam(
            params, lr=lr, eps=args.adam_eps, weight_decay=weight_decay, fused=True
        )
    if args.optimizer == "radam":
        return torch.optim.RAdam(
            params, lr=lr, eps=args.adam_eps, weight_decay=weight_decay, foreach=True
        )
    if args.optimizer == "rmsprop":
        return torch.optim.RMSprop(
            params,
            lr=lr,
            alpha=args.optim_alpha,
            eps=args.optim_eps,
            weight_decay=weight_decay,
            foreach=True,
        )
    raise ConfigError(f"optimizer must be one of {', '.join(OPTIMISERS)}, got '{args.optimizer}'")


@torch.no_grad()
def clip_per_agent_(params: list[nn.Parameter], max_norm: float, n_agents: int) -> Tensor:
    """`clip_grad_norm_` of every agent alone: scales agent i's gradients, the i-th of each [A,
    ...], to `max_norm`.

    Returns:
        [A], the norms before clipping.

    Raises:
        ConfigError: a parameter is not [A, ...].
    """
    for param in params:
        if param.dim() == 0 or param.shape[0] != n_agents:
            raise ConfigError(
                "agents that learn alone share no weights, but a parameter of shape "
                f"{tuple(param.shape)} is not one "
                f"per agent ({n_agents}, ...): set share_params=False, or an agent network that "
                "knows this key"
            )
    grads = [param.grad for param in params if param.grad is not None]
    norms = torch.stack(
        [torch.linalg.vector_norm(grad.reshape(n_agents, -1), dim=1) for grad in grads]
    )
    norms = torch.linalg.vector_norm(norms, dim=0)
    scale = (max_norm / (norms + 1e-6)).clamp(max=1.0)  # the formula of clip_grad_norm_
    scales = {dim: scale.view(-1, *[1] * (dim - 1)) for dim in {grad.dim() for grad in grads}}
    torch._foreach_mul_(grads, [scales[grad.dim()] for grad in grads])
    return norms


def check_fresh(args: SimpleNamespace, method: str) -> None:
    """A batch is never larger than what has been collected since the one before.

    Args:
        args: `batch_size`, `accumulated_episodes`, `batch_size_run`.
        method: its name, for the message.

    Raises:
        ConfigError: it is.
    """
    # In whole collections: what one brings above accumulated_episodes shortens the wait for the
    # next batch.
    fresh = max(args.accumulated_episodes // args.batch_size_run, 1) * args.batch_size_run
    if args.batch_size > fresh:
        raise ConfigError(
            f"{method} learns from episodes of its present policy: batch_size is "
            f"{args.batch_size}, but only {fresh} new ones are collected in between; raise "
            "accumulated_episodes or batch_size_run"
        )


def random_parts(n_episodes: int, n_parts: int) -> tuple[Tensor, ...]:
    """Every episode once, in `n_parts` random parts (fewer where there are not so many episodes):
    int64 each. One part has them in their order, and draws nothing.
    """
    n_parts = min(n_parts, n_episodes)
    if n_parts == 1:
        return (torch.arange(n_episodes),)
    return torch.randperm(n_episodes).tensor_split(n_parts)


def parts_of(
    batch: EpisodeBatch | Transitions, **values: Tensor | None
) -> dict[str, Tensor | None]:
    """`parts` for `Learner.optimise`: what a batch feeds to an update, then `values` computed from
    it.
    """
    stored = {"observations": "obs", "states": "state", "rewards": "reward"}
    return {name: batch.stored(key) for name, key in stored.items()} | values


def _divergence(
    loss: Tensor, grad_norm: Tensor, finite: Tensor, t_env: int, parts: Mapping[str, Tensor | None]
) -> str:
    """What to tell about an update that is not `finite` everywhere; the shapes are those of
    `Learner.optimise`.
    """
    bad = [
        name
        for name, value in parts.items()
        if value is not None and not torch.isfinite(value).all()
    ]
    who = ""
    if loss.dim():
        agent = int((~finite).nonzero()[0])
        who, loss, grad_norm = f"agent {agent}: ", loss[agent], grad_norm[agent]
    return (
        f"{who}loss {loss.item():g}, gradient norm {grad_norm.item():g} at t_env={t_env}: not "
        "finite in "
        f"{', '.join(bad) or 'the gradient only (weights too large?)'}; "
        "lower lr, or look at the rewards and observations"
    )


def log_by_agent(logger: Any, figures: Mapping[str, Tensor], t_env: int) -> None:
    """Logs lists: of figures [A] `NAME_by_agent`, of figures [A, A] `NAME_by_pair`, row by row."""
    for name, value in figures.items():
        if value.dim() in (1, 2):
            logger.log_list(
                f"{name}_by_{'agent' if value.dim() == 1 else 'pair'}",
                value.flatten().tolist(),
                t_env,
            )


def check_precision(args: SimpleNamespace) -> None:
    """Whether `args.device` can do what `args.precision` asks for.

    Raises:
        ConfigError: it cannot.
    """
    if args.precision == "float32":
        return
    if args.device == "cpu":
        fits, who = takes_bfloat16(), "a processor with AVX512_BF16 and a C++ compiler"
    else:
        fits, who = torch.cuda.is_bf16_supported(), "a GPU that computes with bfloat16"
    if not fits:
        raise ConfigError(
            f"precision=bfloat16 needs {who}, which are not here: leave precision at float32"
        )


class Learner:
    """Base of the learners: a subclass sets up its networks and writes `train`.

    Args:
        mac: the controller that acts.
        scheme: of the episode batch.
        logger: `utils.logging.Logger`.
        args: the run's configuration.

    Attributes:
        modules: name -> network that is saved as `NAME.th` beside the controller's `agent.th`.
        optimiser: that of the controller's networks, set by the subclass.
        targets: (online, target) pairs of networks or controllers, kept equal by `update_targets`.
        needs: what it needs of the settings, the controller and its agent network.
        ranges: key -> what values of the learner's own keys must be.
        continuous_actions: whether it can train agents whose actions are real numbers.
        weights_episodes: whether `train` reads `per_weight` and returns `td_errors_abs`, for a
            prioritised buffer.
        resets_networks: whether its networks can be reset from time to time (`resets`): all that it
            trains are among `networks`.
        resets: what resets them; None: nothing does.
        shares_updates: whether it shares out an update among `threads` by itself (`in_parts`);
            otherwise torch's operations use as many threads.

    Raises:
        ConfigError: the settings, the controller or the environment's actions do not fit.
    """

    optimiser: torch.optim.Optimizer
    needs = Needs()
    ranges: ClassVar[Mapping[str, Range]] = {}
    continuous_actions = False
    weights_episodes = False
    shares_updates = False
    resets_networks = False
    resets: Resets | None = None

    def __init__(
        self, mac: Any, scheme: Mapping[str, Any], logger: Any, args: SimpleNamespace
    ) -> None:
        self.check_settings(args)
        self.needs.check_built(mac, args)
        self.args = args
        self.mac = mac
        self.scheme = scheme
        self.logger = logger
        self.modules: dict[str, nn.Module] = {}
        self.targets: list[tuple[Any, Any]] = []
        self.last_target_update_episode = 0
        self.log_stats_t = -args.learner_log_interval - 1
        self._finite: Tensor | None = None  # on a device: whether all updates were

    @classmethod
    def check_settings(cls, args: SimpleNamespace) -> None:
        """Checks `needs` and `ranges`, and what of settings depends on one another.

        Called before anything is built: a subclass that adds to it cannot rely on networks.

        Raises:
            ConfigError: a setting does not fit.
        """
        cls.needs.check_settings(args)
        check_ranges(vars(args), cls.ranges)
        if args.continuous_actions and not cls.continuous_actions:
            raise ConfigError(
                f"learner '{args.learner}' needs discrete actions, those of environment "
                f"'{args.env}' are continuous: choose happo, hasac, hatrpo, maac, maddpg, "
                "ma_ppo, mamt or mat"
            )

    def with_target(self, online: Any) -> Any:
        """A frozen copy of a network or controller, registered for `update_targets`."""
        target = copy.deepcopy(online)
        for param in target.parameters():
            param.requires_grad_(False)
        self.targets.append((online, target))
        return target

    def networks(self) -> list[Any]:
        """All networks and controllers that have weights, the target networks included."""
        return [self.mac, *self.modules.values(), *(target for _, target in self.targets)]

    def prepare(self, buffer: ReplayBuffer) -> None:
        """Called once in a run, before the first update: what a learner makes of the first stored
        episodes.
        """

    def train(
        self, batch: Any, t_env: int, episode_num: int, per_weight: Tensor | None = None
    ) -> dict[str, Tensor] | None:
        """One update.

        Args:
            batch: an `EpisodeBatch` or, with `replay: transitions`, `Transitions`, on the learner's
                device.
            t_env: environment steps so far.
            episode_num: episodes so far.
            per_weight: [B] importance weights of a prioritised buffer, in PyMARL2's form: NumPy's.

        Returns:
            With `per_weight` also `td_errors_abs` [B], see `replayed.episode_errors`.
        """
        raise NotImplementedError(f"{type(self).__name__} has no train")

    @property
    def threads(self) -> int:
        """How many threads share an update, where the learner `shares_updates`.

        A GPU has one queue, and is not faster by being asked twice.
        """
        alone = not self.shares_updates or self.args.device != "cpu"
        return 1 if alone else max(1, self.args.learner_threads)

    # -- optimisation ------------------------------------------------------------------------------
    def optimise(
        self,
        optimiser: torch.optim.Optimizer,
        params: list[nn.Parameter],
        loss: Tensor,
        t_env: int,
        parts: Mapping[str, Tensor | None],
        max_norm: float | None = None,
        before_clipping: Callable[[], None] | None = None,
        take_step: Callable[[], None] | None = None,
    ) -> Tensor:
        """Backward pass, clipping, one optimiser step.

        Args:
            params: with a vector of losses, [A, ...] each.
            loss: a scalar, or [A], one loss per agent, of networks that have nothing in common:
                every agent's gradient is then clipped on its own.
            parts: named tensors of this update, searched for the culprit if the gradient is not
                finite.
            max_norm: largest norm of the gradient; None: `grad_norm_clip`.
            before_clipping: what to do to the gradients first.
            take_step: in place of the optimiser's step, with the clipped gradients.

        Returns:
            The gradient's norm before clipping, of the shape of `loss`.

        Raises:
            ConfigError: a vector of losses, and a parameter that is not one per agent.
            Diverged: a loss or gradient is NaN or infinite; the weights are left as they were. On a
                GPU that is told later, see `raise_if_diverged`.
        """
        optimiser.zero_grad()
        loss.sum().backward()
        if before_clipping is not None:
            before_clipping()
        max_norm = self.args.grad_norm_clip if max_norm is None else max_norm
        # One agent's networks have no axis of agents.
        if loss.numel() == 1:
            grad_norm = nn.utils.clip_grad_norm_(params, max_norm).view(loss.shape)
        else:
            grad_norm = clip_per_agent_(params, max_norm, loss.shape[0])
        finite = torch.isfinite(grad_norm + loss.detach())
        if finite.device.type != "cpu":
            self._note_finite(finite.all(), t_env)
        elif not finite.all():
            raise Diverged(_divergence(loss.detach(), grad_norm, finite, t_env, parts))
        (take_step or optimiser.step)()
        return grad_norm

    def _note_finite(self, finite: Tensor, t_env: int) -> None:
        """Keeps on the device whether all updates were finite; looks only where a record is due,
        since the processor would have to wait for the answer.
        """
        self._finite = finite if self._finite is None else self._finite & finite
        if self._record_due(t_env):
            self.raise_if_diverged(t_env)

    def raise_if_diverged(self, t_env: int) -> None:
        """Training calls this before a checkpoint and at its end.

        Raises:
            Diverged: on a GPU, a loss or gradient since the last call was NaN or infinite.
        """
        finite, self._finite = self._finite, None
        if finite is not None and not finite:
            raise Diverged(
                f"a loss or gradient before t_env={t_env} was not finite; lower lr, or look at the "
                "rewards and observations (on the CPU the same run stops at the update itself)"
            )

    def update_targets_if_due(self, episode_num: int) -> None:
        """Hard update every `target_update_interval` episodes."""
        if (
            episode_num - self.last_target_update_episode
        ) / self.args.target_update_interval >= 1.0:
            self.update_targets()
            self.last_target_update_episode = episode_num

    def update_targets(self) -> None:
        """Copies the online weights into the target networks."""
        for online, target in self.targets:
            if isinstance(online, nn.Module):
                target.load_state_dict(online.state_dict())
            else:
                target.load_state(online)

    @torch.no_grad()
    def soft_update_targets(self, tau: float) -> None:
        """Moves the target networks' weights by the share `tau` towards the online ones; buffers
        stay as they are.
        """
        pairs = [
            (old, new)
            for online, target in self.targets
            for old, new in zip(target.parameters(), online.parameters(), strict=True)
        ]
        olds, news = zip(*pairs, strict=True)
        torch._foreach_lerp_(olds, news, tau)

    def log_due(self, t_env: int) -> bool:
        """Whether `learner_log_interval` steps have passed; starts the next interval if so."""
        if not self._record_due(t_env):
            return False
        self.log_stats_t = t_env
        return True

    def _record_due(self, t_env: int) -> bool:
        return t_env - self.log_stats_t >= self.args.learner_log_interval

    def log_means(self, t_env: int, **values: Tensor) -> None:
        """Logs the mean of every tensor under its name, if a record is due."""
        if self.log_due(t_env):
            for name, value in values.items():
                self.logger.log_stat(name, value.detach().mean().item(), t_env)

    # -- for people who watch ---------------------------------------------------------------------
    @property
    def explained_by(self) -> tuple[str, ...]:
        """Names of the `modules` that `explain` reads."""
        return ()

    def explain(self, batch: EpisodeBatch) -> Explained:
        """What the learner's own networks say, at all N filled steps of one recorded episode.

        `value`, of the team or of each agent, is drawn over time. The last step of an episode has
        no action.
        """
        return {}

    # -- devices and files -------------------------------------------------------------------------
    def cuda(self) -> None:
        """Moves all networks to the GPU."""
        self.mac.cuda()
        for module in self.modules.values():
            module.cuda()
        for _, target in self.targets:
            target.cuda()

    def optimisers(self) -> dict[str, torch.optim.Optimizer]:
        """File name stem -> optimiser, as PyMARL saves them."""
        return {"opt": self.optimiser}

    def save_models(self, path: str) -> None:
        """PyMARL's files: `agent.th`, one `NAME.th` per module, `opt.th`."""
        self.mac.save_models(path)
        for name, module in self.modules.items():
            torch.save(module.state_dict(), f"{path}/{name}.th")
        for name, optimiser in self.optimisers().items():
            torch.save(optimiser.state_dict(), f"{path}/{name}.th")

    def load_models(self, path: str) -> None:
        """Reads what `save_models` wrote; the target networks become copies of the online ones."""
        self.mac.load_models(path)
        for name, module in self.modules.items():
            module.load_state_dict(
                torch.load(f"{path}/{name}.th", map_location="cpu", weights_only=True)
            )
        for name, optimiser in self.optimisers().items():
            optimiser.load_state_dict(
                torch.load(f"{path}/{name}.th", map_location="cpu", weights_only=True)
            )
        self.update_targets()
