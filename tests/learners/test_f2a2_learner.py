"""F2A2's updates against a loop over agents that knows nothing of stacks, and what may pass between
agents.
"""

import copy

import pytest
import torch
from f2a2_fixtures import (
    SIZES,
    H,
    copy_value,
    drawn_at_the_end,
    f2a2_args,
    f2a2_episodes,
    f2a2_learner,
    f2a2_transitions,
    histories_of,
    next_histories_of,
)
from learner_fixtures import td_lambda_returns

from components.distributions import MaskedCategorical
from components.transitions import Transitions
from learners import REGISTRY as LEARNERS
from learners.f2a2.learner import _step_some
from learners.f2a2.view import view_of
from modules.f2a2 import episode_histories
from utils.config import CONFIG_DIR, build_config, load_file
from utils.errors import ConfigError, Diverged

A, SEED = 3, 11
ALIKE = ((5, 5, 5), (4, 4, 4))  # agents that can have networks in common
OFF_POLICY = ["sac", "ddpg", "td3", "isac"]


RECURRENT = {"agent": "rnn", "policy_logit_penalty": 0.0}


def trained(learner, batch, updates=1):
    torch.manual_seed(SEED)
    for n in range(updates):
        learner.train(batch, n, n)
    return learner


def one_hot(actions, u):
    return torch.nn.functional.one_hot(actions, u).float()


def pick(all_q, own):
    return (all_q * own).sum(-1)


def log_probs_of(logits, avail):
    return torch.log_softmax(torch.where(avail != 0, logits, torch.finfo(logits.dtype).min), -1)


class Reference:
    """One off-policy update of all agents, one agent after the other; it calls the learner for
    random draws only.

    The actors' losses are formed with the critics after their step, which are given.
    """

    def __init__(self, learner, batch, stepped_critic):
        args = learner.args
        self.args, self.learner, self.batch = args, learner, batch
        self.form, self.n_critics = args.critic, learner.algorithm.n_critics
        self.counts = args.resampled_target != "none"  # the error of resampled actions
        joint = args.joint_scale if args.joint else 0.0
        self.weights = (args.alpha_1, joint * args.alpha_2, joint * args.alpha_1, args.alpha_2)
        for mac in (learner.mac, learner.target_mac):
            mac.agent.train()
        self.logits = learner.mac.agent.logits(batch["obs"])
        self.log_probs = log_probs_of(self.logits, batch["avail_actions"])
        self._draw()
        targets = [self.targets(i) for i in range(A)]
        self.critic_losses = [self.critic_loss(learner.critic, i, *targets[i]) for i in range(A)]
        self.actor_losses = [
            self.actor_loss(stepped_critic, i, *targets[i]) + self.penalty(i) for i in range(A)
        ]

    def _draw(self):
        """In the order in which the learner draws."""
        learner, batch, args = self.learner, self.batch, self.args
        torch.manual_seed(SEED)
        policy = MaskedCategorical(self.logits, batch["avail_actions"])
        self.own = learner.algorithm.draw(policy)
        self.joint = self.imagine(self.own, batch["actions"], histories_of)
        with torch.no_grad():
            next_logits = learner.target_mac.agent.logits(batch["next_obs"])
        self.next_policy = learner.algorithm.next_policy(next_logits, batch["next_avail_actions"])
        with torch.no_grad():
            self.next_own = learner.algorithm.draw(self.next_policy)
        self.next_joint = self.imagine(
            self.next_own, self.next_own.argmax(-1).t(), next_histories_of
        )
        self.replayed = one_hot(batch["actions"], args.n_actions)

    def imagine(self, own, known, histories):
        if self.learner.models is None:
            return one_hot(known, self.args.n_actions).expand(A, -1, -1, -1)
        joint = self.learner.models.imagine(histories(self.batch), own.argmax(-1).t())
        return one_hot(joint, self.args.n_actions)

    def all_q(self, critic, i, obs, joint):
        return [copy_value(critic, self.form, i, c, obs, joint) for c in range(self.n_critics)]

    def targets(self, i):
        """Of the replayed actions of agent i [M], and of the resampled ones for every critic, [M]
        each.
        """
        args, batch, critic = self.args, self.batch, self.learner.target_critic
        rewards = (
            (batch["reward"] - batch.reward_mean) / batch.reward_std
            if args.standardise_rewards
            else batch["reward"]
        )
        values = [
            pick(q, self.next_own[i])
            for q in self.all_q(critic, i, batch["next_obs"], self.next_joint[i])
        ]
        value = torch.stack(values).amax(0)
        if args.f2a2_algorithm in ("sac", "isac"):
            value = value + args.alpha_entropy * pick(
                self.next_policy.log_probs[:, i], self.next_own[i]
            )
        target = -rewards[:, i] + args.gamma * (1 - batch["terminated"][:, 0]) * value
        values = [
            pick(q, self.own[i].detach())
            for q in self.all_q(critic, i, batch["obs"], self.joint[i])
        ]
        new = [target] * self.n_critics if args.resampled_target == "transition" else values
        return target.detach(), [value.detach() for value in new]

    def probabilities(self, i):
        """log pi and log pi_0, of the replayed and of the resampled own actions; [M] each."""
        old, new = self.replayed[:, i], self.own[i].detach()
        pi, pi_0 = self.log_probs[:, i], self.batch["behaviour"][:, i]
        return [pick(pi, old), pick(pi_0, old), pick(pi, new), pick(pi_0, new)]

    def critic_loss(self, critic, i, target, new_target):
        _, _, alpha_1, alpha_2 = self.weights
        pi, pi_0, pi_new, pi_0_new = [x.detach().exp() for x in self.probabilities(i)]
        rho, rho_new = (pi / pi_0).clamp(max=1.0), (pi_0_new / pi_new).clamp(max=1.0)
        replayed = self.all_q(critic, i, self.batch["obs"], self.replayed)
        resampled = self.all_q(critic, i, self.batch["obs"], self.joint[i])
        loss = 0.0
        for c in range(self.n_critics):
            first = alpha_1 if c == 0 else 0.0
            q, q_new = (
                pick(replayed[c], self.replayed[:, i]),
                pick(resampled[c], self.own[i].detach()),
            )
            # The squares have the gradients 2 delta grad Q.
            loss = loss + (first * rho * q + alpha_2 * (q - target) ** 2).mean()
            loss = (
                loss
                + (
                    first * q_new + alpha_2 * self.counts * rho_new * (q_new - new_target[c]) ** 2
                ).mean()
            )
        return loss

    def penalty(self, i):
        outputs = self.logits[:, i, : SIZES[1][i]]
        return self.args.policy_logit_penalty * (outputs**2).mean()

    def actor_loss(self, critic, i, target, new_target):
        alpha_1, alpha_2, _, _ = self.weights
        args = self.args
        log_pi, log_pi_0, log_new, log_0_new = self.probabilities(i)
        rho = (log_pi - log_pi_0).detach().exp().clamp(max=1.0)
        rho_new = (log_0_new - log_new).detach().exp().clamp(max=1.0)
        replayed = self.all_q(critic, i, self.batch["obs"], self.replayed)
        resampled = self.all_q(critic, i, self.batch["obs"], self.joint[i])
        if args.f2a2_algorithm in ("ddpg", "td3"):
            q = [pick(values.detach(), self.own[i]) for values in resampled]
            loss = alpha_1 * q[0].mean()
            return loss + sum(
                (alpha_2 * self.counts * rho_new * (value - to) ** 2).mean()
                for value, to in zip(q, new_target, strict=True)
            )
        probs = self.log_probs[:, i].exp().detach()
        brackets = []
        for all_q, own, log_prob in (
            (replayed, self.replayed[:, i], log_pi),
            (resampled, self.own[i], log_new),
        ):
            baseline = (probs * all_q[0]).sum(-1)
            brackets.append(
                (pick(all_q[0], own) + args.alpha_entropy * log_prob - baseline).detach()
            )
        pairs = zip(resampled, new_target, strict=True)
        errors = self.counts * sum(
            (pick(values, self.own[i]).detach() - to) ** 2 for values, to in pairs
        )
        loss = alpha_1 * (rho * brackets[0] * log_pi + brackets[1] * log_new)
        return (loss + alpha_2 * rho_new * errors * log_new).mean()


def assert_gradients(params, loss, grads):
    expected = torch.autograd.grad(loss, params, allow_unused=True)
    assert any(grad is not None and grad.abs().max() > 1e-3 for grad in expected)
    for param, theirs, mine in zip(params, expected, grads, strict=True):
        theirs = torch.zeros_like(param) if theirs is None else theirs
        assert torch.allclose(
            mine, theirs, rtol=1e-3, atol=1e-5 * max(float(theirs.abs().max()), 1.0)
        )


@pytest.mark.parametrize(
    "settings",
    [
        *(
            {},
            {"joint": False},
            {"joint_scale": 0.3},
            {"resampled_target": "transition"},
            {"moa": True},
        ),
        {"resampled_target": "critic"},
        {"resampled_target": "none"},
        {"policy_logit_penalty": 0.5},
    ],
    ids=str,
)
@pytest.mark.parametrize("algorithm", OFF_POLICY)
def test_update_equals_a_loop_over_agents(algorithm, settings):
    if algorithm == "isac" and "moa" in settings:
        settings = {"standardise_rewards": False}
    args = f2a2_args(algorithm, policy_delay=1, **settings)
    learner, _ = f2a2_learner(args)
    batch = f2a2_transitions(args)
    before = copy.deepcopy(learner)
    trained(learner, batch)
    reference = Reference(before, batch, learner.critic)
    grads = [param.grad for param in learner.critic_params]
    assert_gradients(before.critic_params, sum(reference.critic_losses), grads)
    grads = [param.grad for param in learner.params]
    assert_gradients(before.params, sum(reference.actor_losses), grads)


@pytest.mark.parametrize("algorithm", OFF_POLICY)
def test_an_agent_needs_nothing_but_its_own_when_nothing_is_exchanged(algorithm):
    """With the others' policies, critics and targets replaced by garbage, agent 0 does exactly what
    it did before.
    """
    moa = algorithm != "isac"
    args = f2a2_args(algorithm, moa=moa, topology="none")
    learners = []
    for poisoned in (False, True):
        learner, _ = f2a2_learner(args)
        if poisoned:
            own = [learner.params, learner.critic_params]
            targets = [list(target.parameters()) for _, target in learner.targets]
            with torch.no_grad():
                for param in {id(p): p for group in (*own, *targets) for p in group}.values():
                    param[1:] = 7 * torch.randn(
                        param[1:].shape, generator=torch.Generator().manual_seed(1)
                    )
        trained(learner, f2a2_transitions(args), updates=3)
        learners.append(learner)
    clean, poisoned = learners
    start, _ = f2a2_learner(args)
    for mine, theirs, first in zip(
        *([*x.params, *x.critic_params] for x in (clean, poisoned, start)), strict=True
    ):  # fmt: skip
        assert torch.equal(mine[0], theirs[0])
        assert mine[1:].numel() == 0 or not torch.equal(mine[1:], theirs[1:])
        assert (
            not torch.equal(mine[0], first[0]) or mine[0].numel() <= 4 or first[0].abs().sum() == 0
        )
    assert clean.channel.sent("critic").numbers.sum() == 0


def test_what_passes_between_agents():
    args = f2a2_args(moa=True)
    learner, _ = f2a2_learner(args)
    batch = f2a2_transitions(args)
    size = sum(
        param[0].numel()
        for param in learner.critic.shared_parameters(args.consensus_scope).values()
    )
    trained(learner, batch, updates=2)
    sent = learner.channel.sent("critic")
    # To both others at both updates, float32.
    assert sent.messages.tolist() == [4] * A
    assert sent.numbers.tolist() == [4 * size] * A
    assert sent.bytes.tolist() == [16 * size] * A
    with pytest.raises(ValueError, match="'actor' must not pass between agents"):
        learner.channel.share("actor", torch.zeros(A, 2))


def test_what_is_seen_and_done_is_counted():
    n, recent, (o, u) = 16, 8, (max(sizes) for sizes in SIZES)
    numbers = {
        "observations": [n * o * (2 + H), recent * o * (1 + H)],
        "actions": [n * (1 + H), recent * (1 + H)],
    }
    numbers["avail_actions"] = [2 * n * u, recent * u]
    learner, _ = f2a2_learner(f2a2_args(moa=True))
    trained(learner, f2a2_transitions(learner.args, n), updates=2)
    for name, parts in numbers.items():
        # To both others at both updates.
        assert learner.channel.sent(name).numbers.tolist() == [4 * sum(parts)] * A
    # Without models agents tell what they would do next instead of what models read.
    learner, _ = f2a2_learner(f2a2_args())
    trained(learner, f2a2_transitions(learner.args, n), updates=2)
    for name, number in {"observations": 2 * n * o, "actions": 2 * n, "avail_actions": 0}.items():
        assert learner.channel.sent(name).numbers.tolist() == [4 * number] * A


def disguised(batch, kinds):
    """The transitions with what agents 1 and 2 see and do replaced; doing it twice gives back the
    first.

    `kinds`: of obs, actions, avail_actions.
    """
    entries = dict(batch)
    for name, x in batch.items():
        kind = name.removeprefix("next_").removeprefix("past_")
        if kind not in kinds:
            continue
        if kind == "obs":
            entries[name] = hidden(x, -x, -2)
        elif kind == "actions":
            entries[name] = hidden(x, torch.tensor(SIZES[1]) - 1 - x, -1)
        else:
            entries[name] = hidden(x, x.flip(0), -2)  # of other rows
    recent = batch.recent and disguised(batch.recent, kinds)
    return Transitions(entries, batch.reward_mean, batch.reward_std, recent)


def hidden(x, other, dim):
    """x with the entries of all agents but the first, along `dim`, from `other`."""
    return torch.cat([x.narrow(dim, 0, 1), other.narrow(dim, 1, A - 1)], dim)


@pytest.mark.parametrize("moa", [False, True])
@pytest.mark.parametrize("algorithm", ["sac", "ddpg", "td3"])
def test_what_others_see_and_do_comes_through_the_channel_only(algorithm, moa):
    """An agent learns the same when the others' part of its data is worthless before it has passed
    the channel.
    """
    args = f2a2_args(algorithm, moa=moa, topology="none", policy_delay=1)
    batch = f2a2_transitions(args)
    learners = []
    for case in ("plain", "restored", "worthless"):
        learner, _ = f2a2_learner(args)
        # What others could do is told for models alone. Actions that they could not take would be
        # an infinite loss.
        kinds = {
            "plain": (),
            "restored": ("obs", "actions", "avail_actions")[: 2 + moa],
            "worthless": ("obs",),
        }[case]
        given = disguised(batch, kinds)
        if case == "restored":
            data = {
                id(x): name for part in (given, given.recent) if part for name, x in part.items()
            }
            share = learner.channel.share

            def restored(sent_as, values, dim, share=share, data=data, kinds=kinds):
                passed = share(sent_as, values, dim)
                name = data.get(id(values))  # None: no data, but what an agent tells
                return (
                    passed
                    if name is None
                    else disguised(Transitions({name: passed}, None, None), kinds)[name]
                )

            learner.channel.share = restored
        trained(learner, given)
        learners.append(learner)
    plain, restored, worthless = ([*x.params, *x.critic_params] for x in learners)
    assert all(torch.equal(a[0], b[0]) for a, b in zip(plain, restored, strict=True))
    assert not all(torch.equal(a[0], b[0]) for a, b in zip(plain, worthless, strict=True))


def disguised_episodes(batch, kinds):
    """As `disguised`, of episodes; what others could do stays."""
    batch = copy.deepcopy(batch)
    obs, actions = batch.stored("obs"), batch.stored("actions").squeeze(-1)
    others = disguised(Transitions({"obs": obs, "actions": actions}, None, None), kinds)
    obs.copy_(others["obs"])
    actions.copy_(others["actions"])
    batch.changed("obs", "actions")
    return batch


@pytest.mark.parametrize(
    ("algorithm", "settings"),
    [("coma", {}), ("coma", {"moa": True}), ("coma", {"moa": True, "agent": "rnn"})]
    + [(name, {"moa": True, "replay": "episodes", **RECURRENT}) for name in ("sac", "ddpg", "td3")],
    ids=str,
)
def test_in_episodes_too_it_comes_through_the_channel_only(algorithm, settings):
    args = f2a2_args(algorithm, topology="none", policy_delay=1, **settings)
    # Without models the others tell what they would do in what they see, so that has to be right.
    kinds = ("obs", "actions") if args.moa else ("actions",)
    batch = f2a2_episodes(args)
    learners = []
    for case in ("plain", "restored", "worthless"):
        learner, _ = f2a2_learner(args)
        if case == "restored":
            share, n_rows = learner.channel.share, batch.steps().n_rows

            def restored(sent_as, values, dim, share=share, n_rows=n_rows):
                passed = share(sent_as, values, dim)
                name = {"observations": "obs", "actions": "actions"}.get(sent_as)
                if name is None or len(values) != n_rows:  # fewer: no data, but what agents tell
                    return passed
                return disguised(Transitions({name: passed}, None, None), kinds)[name]

            learner.channel.share = restored
        # Actions that others could not take would be an infinite loss.
        disguise = {"plain": (), "restored": kinds, "worthless": ("obs",)}[case]
        trained(learner, disguised_episodes(batch, disguise))
        learners.append(learner)
    plain, restored, worthless = (
        [*x.params, *x.critic_params, *x.modules.get("models", x.critic).parameters()]
        for x in learners
    )
    assert all(torch.equal(a[0], b[0]) for a, b in zip(plain, restored, strict=True))
    assert not all(torch.equal(a[0], b[0]) for a, b in zip(plain, worthless, strict=True))


def test_consensus_pulls_the_copies_together():
    apart = {}
    for topology in ("full", "none"):
        args = f2a2_args(consensus_beta=5.0, consensus_beta_steps=0, topology=topology, lr=0.01)
        learner, _ = f2a2_learner(args)
        trained(learner, f2a2_transitions(args, n=64), updates=60)
        apart[topology] = learner.consensus["critic"].consensus_error().mean()
    assert apart["full"] < 0.5 * apart["none"]


def test_isac_agrees_on_policies_too():
    args = f2a2_args("isac")
    learner, _ = f2a2_learner(args)
    for param in learner.params:
        assert torch.equal(param[0], param[2])
    trained(learner, f2a2_transitions(args))
    assert learner.channel.sent("actor").messages.tolist() == [2] * A
    size = sum(param[0].numel() for param in learner.params)
    assert learner.channel.sent("actor").numbers.tolist() == [2 * size] * A
    # Nobody reads what others see or do, so nobody sends it.
    assert learner.channel.total().messages.tolist() == [4] * A


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"resampled_target": "critic", "standardise_rewards": True},
        {"joint": False, "policy_logit_penalty": 0.5},
    ],
    ids=str,
)
def test_networks_in_common_get_the_mean_gradient_of_equal_copies(settings, monkeypatch):
    """But for batch norm, which takes the rows of all agents together, and with the same actions
    drawn anew.
    """
    common, copies = (
        f2a2_learner(f2a2_args("isac", sizes=ALIKE, share_params=share, lr=0.0, **settings))[0]
        for share in (True, False)
    )
    networks = [[x.mac.agent, x.critic, x.target_critic] for x in (common, copies)]
    for mine, theirs in zip(*networks, strict=True):
        for param, copied in zip(mine.parameters(), theirs.parameters(), strict=True):
            assert param.shape == (1, *copied.shape[1:])
            copied.data.copy_(param.detach().expand_as(copied))
    batch = f2a2_transitions(common.args)
    for learner in (common, copies):
        learner.mac.agent.norm = torch.nn.Identity()
        monkeypatch.setattr(
            learner.algorithm,
            "draw",
            lambda policy: one_hot(policy.probs.argmax(-1), 4).transpose(0, 1),
        )
        trained(learner, batch)
    for mine, theirs in (
        (common.params, copies.params),
        (common.critic_params, copies.critic_params),
    ):
        assert max(param.grad.abs().max() for param in mine) > 1e-3
        for param, copied in zip(mine, theirs, strict=True):
            assert torch.allclose(param.grad, copied.grad.mean(0, keepdim=True), atol=1e-6)


def test_networks_in_common_stand_for_gradients_that_all_send():
    learner, log = f2a2_learner(f2a2_args("isac", sizes=ALIKE, share_params=True))
    trained(learner, f2a2_transitions(learner.args), updates=2)
    for name, params in (("actor", learner.params), ("critic", learner.critic_params)):
        assert (
            learner.channel.sent(name).numbers.tolist()
            == [4 * sum(param.numel() for param in params)] * A
        )
    assert "consensus_error" not in log.stats
    assert not log.lists


def test_networks_in_common_learn_from_episodes_too():
    args = f2a2_args("isac", sizes=ALIKE, share_params=True, replay="episodes", **RECURRENT)
    learner, _ = f2a2_learner(args)
    before = [param.detach().clone() for param in learner.params]
    trained(learner, f2a2_episodes(args))
    assert not all(torch.equal(old, new) for old, new in zip(before, learner.params, strict=True))


def test_policies_differ_and_critics_start_equal():
    learner, _ = f2a2_learner(f2a2_args("ddpg", consensus_scope="paper"))
    assert not torch.equal(learner.params[0][0], learner.params[0][1])
    for param in learner.critic.parameters():  # all of it is agreed on
        assert torch.equal(param[0], param[2])


def test_only_what_is_agreed_on_starts_equal():
    critic = f2a2_learner(f2a2_args("ddpg", consensus_scope="hidden"))[0].critic
    assert torch.equal(critic.fc2.weight[0], critic.fc2.weight[2])
    for layer in (critic.fc1, critic.fc3):
        assert not torch.equal(layer.weight[0], layer.weight[2])


# -- on-policy -------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    "settings", [{}, {"joint": False}, {"moa": True}, {"agent": "rnn"}], ids=str
)
def test_coma_equals_a_loop_over_episodes_and_agents(settings):
    args = f2a2_args("coma", **settings)
    learner, _ = f2a2_learner(args)
    epsilon = learner.mac.action_selector.epsilon = 0.3
    batch = f2a2_episodes(args)
    before = copy.deepcopy(learner)
    trained(learner, batch)

    steps, u = batch.steps(), args.n_actions
    before.mac.agent.train()
    obs, avail = steps.pack(batch["obs"]), steps.pack(batch["avail_actions"])
    taken = steps.pack(batch["actions"]).squeeze(-1)
    logits = before.mac.unroll(batch, steps)
    random = avail / avail.sum(-1, keepdim=True)
    log_probs = (
        ((1 - epsilon) * log_probs_of(logits, avail).exp() + epsilon * random)
        .clamp(min=1e-30)
        .log()
    )
    place = steps.unpack(torch.arange(steps.n_rows).unsqueeze(-1)).squeeze(
        -1
    )  # row of step t of episode b
    torch.manual_seed(SEED)
    if before.models is not None:
        joint = one_hot(
            before.models.imagine(episode_histories(obs, avail, taken, steps, H), taken), u
        )
    else:  # what nobody did any more, the others tell
        for b, told in enumerate(
            drawn_at_the_end(steps, steps.unpack(log_probs.exp().detach()), SEED)
        ):
            taken[place[b, steps.lengths[b] - 1]] = told
        joint = one_hot(taken, u).expand(A, -1, -1, -1)
    # Moments of all transitions; the fourth batch of the same would have the same, and the start
    # hardly weighs.
    rewards = [batch["reward"][b, : length - 1] for b, length in enumerate(steps.lengths.tolist())]
    std, mean = torch.std_mean(torch.cat(rewards), 0, correction=0)
    critic_losses, actor_losses = [], []
    alpha = (
        (args.alpha_1, args.alpha_2) * 2 if args.joint else (args.alpha_1, 0.0, 0.0, args.alpha_2)
    )
    assert args.joint_scale == 1.0
    for i in range(A):
        with torch.no_grad():
            target_q = copy_value(before.target_critic, "central", i, 0, obs, joint[i])
        targets, rows = [], []
        for b, length in enumerate(steps.lengths.tolist()):
            at = place[b, :length]
            values = [target_q[r, taken[r, i]].item() for r in at[:-1]]
            values.append((target_q[at[-1]] * log_probs[at[-1], i].exp()).sum().item())
            costs = ((mean - batch["reward"][b, : length - 1])[:, i] / std[i]).tolist()
            ended = bool(batch["terminated"][b, length - 2])
            targets += td_lambda_returns(costs, values, ended, args.gamma, args.td_lambda)
            rows += at[:-1].tolist()
        targets, rows = torch.tensor(targets), torch.tensor(rows)
        # The rows in the batch's order: batch norm reads all transitions, whatever their order.
        for critic, losses in ((before.critic, critic_losses), (learner.critic, actor_losses)):
            all_q = copy_value(critic, "central", i, 0, obs[rows], joint[i][rows])
            q = pick(all_q, one_hot(taken[rows, i], u))
            delta = (q - targets).detach()
            if losses is critic_losses:
                losses.append(((alpha[2] + 2 * alpha[3] * delta) * q).mean())
                continue
            base = (log_probs[rows, i].exp() * all_q).sum(-1)
            bracket = alpha[0] * (q - base) + alpha[1] * delta**2
            losses.append(
                (bracket.detach() * pick(log_probs[rows, i], one_hot(taken[rows, i], u))).mean()
            )
    assert_gradients(
        before.critic_params, sum(critic_losses), [p.grad for p in learner.critic_params]
    )
    assert_gradients(before.params, sum(actor_losses), [p.grad for p in learner.params])


def test_what_is_read_of_transitions():
    args = f2a2_args(moa=True, moa_interval=2, standardise_rewards=False)
    learner, _ = f2a2_learner(args)
    batch = f2a2_transitions(args)
    view = view_of(batch, learner._reading())
    for name, entry in {"obs": "obs", "next_obs": "next_obs", "actions": "actions"}.items():
        assert torch.equal(getattr(view, name), batch[entry])
    assert torch.equal(view.costs, -batch["reward"].t())
    assert torch.equal(view.goes_on, 1 - batch["terminated"][:, 0])
    histories, actions = view.modelled
    for mine, theirs in (
        (view.history, histories_of(batch)),
        (view.next_history, next_histories_of(batch)),
        (histories, histories_of(batch.recent)),
        ([actions], [batch.recent["actions"]]),
    ):
        assert all(torch.equal(a, b) for a, b in zip(mine, theirs, strict=True))
    assert view.filled is None
    learner.updates = 1  # the models' step is not due, so nobody sends what they would read
    assert view_of(batch, learner._reading()).modelled is None


@pytest.mark.parametrize("algorithm", ["sac", "ddpg", "td3"])
def test_recurrent_policies_learn_from_episodes(algorithm):
    """The rows of episodes are the transitions that a batch of single ones would have."""
    settings = {**RECURRENT, "replay": "episodes", "standardise_rewards": False, "moa": True}
    args = f2a2_args(algorithm, policy_delay=1, **settings)
    learner, log = f2a2_learner(args)
    batch = f2a2_episodes(args)
    steps = batch.steps()
    rows = view_of(batch, learner._reading())
    for n, (b, t) in enumerate(
        (b, t) for t in range(6) for b in (1, 3, 0, 4, 2) if t < steps.lengths[b] - 1
    ):
        assert torch.equal(rows.obs[n], batch["obs"][b, t])
        assert torch.equal(rows.next_obs[n], batch["obs"][b, t + 1])
        assert torch.equal(rows.actions[n], batch["actions"][b, t, :, 0])
        assert torch.equal(rows.behaviour[n], batch["behaviour"][b, t])
        assert torch.equal(rows.costs[:, n], -batch["reward"][b, t])
        assert rows.goes_on[n] == 1 - batch["terminated"][b, t, 0]
        assert torch.equal(rows.next_history.past_obs[n, -1], batch["obs"][b, t])
    start = [param.detach().clone() for param in learner.params]
    trained(learner, batch, updates=2)
    assert all(not torch.equal(old, new) for old, new in zip(start, learner.params, strict=True))
    assert 0 <= log.stats["moa_accuracy"][-1][0] <= 1


# -- steps of some agents --------------------------------------------------------------------------
def test_agents_of_td3_take_their_steps_at_their_own_times():
    args = f2a2_args("td3", policy_delay=3)
    learner, _ = f2a2_learner(args)
    delays = learner.algorithm.delays.tolist()
    assert len(set(delays)) > 1
    assert all(1 <= delay <= 5 for delay in delays)
    assert len(set(learner.algorithm.noise.tolist())) == A
    batch = f2a2_transitions(args)
    for update in range(1, 7):
        before = [param.detach().clone() for param in learner.params]
        trained(learner, batch)
        for i, delay in enumerate(delays):
            moved = any(
                not torch.equal(old[i], new[i])
                for old, new in zip(before, learner.params, strict=True)
            )
            assert moved == (update % delay == 0), (update, i)


def test_a_step_of_some_leaves_weights_and_moments_of_the_others():
    torch.manual_seed(0)
    params = [torch.nn.Parameter(torch.randn(A, 2)) for _ in range(2)]
    optimisers = [torch.optim.Adam([param], lr=0.1) for param in params]
    params[1].data.copy_(params[0].data)
    for due in ([True, False, True], [False, False, True], [True, True, True]):
        grad = torch.randn(A, 2)
        for param, optimiser in zip(params, optimisers, strict=True):
            param.grad = grad.clone()
            before = param.detach().clone()
            if param is params[0]:
                _step_some(optimiser, [param], torch.tensor(due))
                for i in range(A):
                    assert torch.equal(param[i], before[i]) != due[i]
            else:
                optimiser.step()
    state = [optimiser.state[param] for param, optimiser in zip(params, optimisers, strict=True)]
    # Agent 2 took every step: it is as if it had been alone. Agent 1 has only seen the last
    # gradient.
    assert torch.equal(params[0][2], params[1][2])
    assert torch.equal(state[0]["exp_avg"][2], state[1]["exp_avg"][2])
    assert torch.allclose(state[0]["exp_avg"][1], 0.1 * grad[1])


# -- settings --------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("algorithm", "settings", "message"),
    [
        ("sac", {"mac": "actor_mac"}, "needs mac=f2a2_mac, got mac=actor_mac"),
        ("sac", {"mixer": "qmix"}, "needs mixer=null"),
        ("sac", {"share_params": True, "agent": "rnn"}, "needs critic=own"),
        (
            "sac",
            {"share_params": True, **RECURRENT, "critic": "own"},
            r"needs share_params=False \(only the agents of isac share policies",
        ),
        ("isac", {"share_params": True}, "different size have no network in common"),
        ("isac", {"share_params": True, "agent": "rnn", "topology": "ring"}, "always agree"),
        ("isac", {"share_params": True, "agent": "rnn", "consensus_interval": 2.0}, "always agree"),
        (
            "sac",
            {"replay": "latest", "standardise_rewards": False},
            "needs replay=transitions or replay=episodes",
        ),
        ("coma", {"replay": "episodes"}, "needs replay=latest"),
        ("sac", {"alpha_1": 0.0}, "alpha_1 must be greater than 0"),
        ("sac", {"joint_scale": -0.1}, "joint_scale must be at least 0, got -0.1"),
        ("sac", {"policy_logit_penalty": -1.0}, "policy_logit_penalty must be at least 0, got -1"),
        ("sac", RECURRENT, "needs agent=mlp_policy .*set replay=episodes"),
        ("sac", {"agent": "rnn"}, "set policy_logit_penalty=0.*, got agent=rnn"),
        (
            "sac",
            {"resampled_target": "nothing"},
            "resampled_target must be one of critic, transition, none",
        ),
        ("sac", {"twin_target": "mean"}, "twin_target must be one of max, min, got 'mean'"),
        ("sac", {"f2a2_algorithm": "sak"}, "did you mean 'sac'"),
        ("sac", {"critic": "atention"}, "did you mean 'attention'"),
        ("isac", {"moa": True}, "critic=own does not read what others do"),
        ("sac", {"moa": True, "transition_history": 0}, "transition_history"),
        ("sac", {"moa": True, "recent_transitions": 0}, "recent_transitions"),
        (
            "sac",
            {"moa": True, "moa_trajectories": 6, "moa_character_batch": 7},
            "moa_character_batch=7",
        ),
        ("sac", {"importance_bound": 0.0}, "importance_bound must be greater than 0, got 0.0"),
        ("sac", {"consensus_beta": 2000.0}, "at most 1 / lr"),
        ("ddpg", {"gumbel_temperature": 0.0}, "gumbel_temperature must be greater than 0"),
        ("td3", {"target_noise": -0.1}, "target_noise must be at least 0, got -0.1"),
    ],
)
def test_bad_settings_are_one_line(algorithm, settings, message):
    with pytest.raises(Exception, match=message) as caught:
        f2a2_learner(f2a2_args(algorithm, **settings))
    assert isinstance(caught.value, ConfigError) or "did you mean" in message
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "algorithm",
    ["f2a2_sac", "f2a2_isac", "f2a2_ddpg", "f2a2_td3", "f2a2_coma", "coma", "ma_ac"],
)
def test_every_own_number_has_a_range(algorithm):
    config = build_config(algorithm, "rover_tower", [])
    own = config.keys() - load_file(CONFIG_DIR / "default.yaml").keys()
    ranges = LEARNERS[config["learner"]].ranges
    assert own >= ranges.keys()
    for key in own - ranges.keys():
        assert isinstance(config[key], bool | str), key


def test_divergence_names_the_agent_and_leaves_the_weights():
    args = f2a2_args()
    learner, _ = f2a2_learner(args)
    batch = f2a2_transitions(args)
    batch["reward"][3, 1] = float("inf")
    before = [param.detach().clone() for param in learner.critic_params]
    with pytest.raises(Diverged, match=r"agent 1: loss .* not finite in costs, targets"):
        trained(learner, batch)
    assert all(
        torch.equal(old, new) for old, new in zip(before, learner.critic_params, strict=True)
    )


def test_sizes_of_the_fixture():
    assert len(SIZES[0]) == A
