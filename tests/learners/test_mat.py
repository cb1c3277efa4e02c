"""MAT: who depends on whom, acting one by one and training all at once, losses against loops."""

import copy

import pytest
import torch
from learner_fixtures import (
    LENGTHS,
    N_AGENTS,
    OBS,
    assert_models_continue,
    assert_same_gradients,
    make_args,
    make_batch,
    make_learner,
    make_mac,
)
from test_ppo import SMALL, Slow, log_policy
from transition_fixtures import assert_continues, train_run

from components.episode_buffer import EpisodeBatch
from modules.mat import MATAgent
from utils.errors import ConfigError


def mat_args(continuous=False, **overrides):
    small = {"mat_embed_dim": 8, "mat_heads": 2, "mat_blocks": 2} | SMALL
    small.pop("critic_hidden_dim")
    args = make_args("mat", **(small | overrides))
    args.continuous_actions = continuous
    args.env_info = {"obs_sizes": (OBS,) * N_AGENTS, "action_sizes": (args.n_actions,) * N_AGENTS}
    return args


def livelier(agent, scale=1.0):
    """Weights so large that all inputs matter."""
    with torch.no_grad():
        for param in agent.parameters():
            if param.dim() > 1:
                param.normal_().mul_(scale / param.shape[1] ** 0.5)
    return agent


def agent_and_rows(continuous, n=6, seed=0):
    torch.manual_seed(seed)
    args = mat_args(continuous)
    agent = livelier(MATAgent(7, args))
    inputs = torch.randn(n, N_AGENTS, 7)
    if continuous:
        return agent, inputs, torch.rand(n, N_AGENTS, args.n_actions) * 2 - 1
    return agent, inputs, torch.randint(args.n_actions, (n, N_AGENTS))


# -- the network -----------------------------------------------------------------------------------


@pytest.mark.parametrize("continuous", [False, True])
def test_an_agents_policy_does_not_depend_on_later_actions(continuous):
    """Not by one bit; and it does depend on each earlier one, and on all observations."""
    agent, inputs, actions = agent_and_rows(continuous)
    reps = agent.encode(inputs).reps
    before = agent.decode(reps, actions)
    for j in range(N_AGENTS):
        other = actions.clone()
        other[:, j] = -other[:, j] if continuous else (other[:, j] + 1) % 4
        after = agent.decode(reps, other)
        for i in range(N_AGENTS):
            same = torch.equal(after[:, i], before[:, i])
            assert same == (j >= i), (i, j)
        seen = inputs.clone()
        seen[:, j, 0] += 3  # the same for all entries would be gone with the LayerNorm
        after = agent.decode(agent.encode(seen).reps, actions)
        values = agent.encode(seen).values
        for i in range(N_AGENTS):
            assert not torch.allclose(after[:, i], before[:, i], atol=1e-3)
            assert not torch.allclose(values[:, i], agent.encode(inputs).values[:, i], atol=1e-3)


def test_gradients_reach_earlier_actions_alone():
    """The Jacobian of continuous policies by autograd is strictly triangular."""
    agent, inputs, actions = agent_and_rows(continuous=True, n=1)
    agent = agent.double()
    reps = agent.encode(inputs.double()).reps

    def outputs(x):
        return agent.decode(reps, x)

    x = actions.double().requires_grad_(True)
    jacobian = torch.autograd.functional.jacobian(outputs, x)[0, :, :, 0]  # [A, 2U, A, U]
    sizes = jacobian.abs().amax((1, 3))
    for i in range(N_AGENTS):
        for j in range(N_AGENTS):
            assert (sizes[i, j] > 1e-6) == (j < i)
    assert torch.autograd.gradcheck(outputs, (x,))


@pytest.mark.parametrize("continuous", [False, True])
def test_decoding_all_at_once_is_decoding_one_by_one(continuous):
    agent, inputs, actions = agent_and_rows(continuous)
    reps = agent.encode(inputs).reps
    whole = agent.decode(reps, actions)
    for i in range(N_AGENTS):
        one = agent.decode(reps[:, : i + 1], actions[:, :i])[:, -1]
        assert torch.allclose(one, whole[:, i], atol=1e-5)


def slow_attention(layer, query, source):
    """Agents and heads one by one: [A, D], [A, D] -> [A, D]."""
    d = query.shape[-1] // layer.heads
    rows = []
    for i in range(len(query)):
        parts = []
        for head in range(layer.heads):
            part = slice(head * d, (head + 1) * d)
            q = layer.query(query[i])[part]
            seen = range(i + 1) if layer.causal else range(len(source))
            scores = torch.stack([q @ layer.key(source[j])[part] / d**0.5 for j in seen])
            weights = scores.exp() / scores.exp().sum()
            parts.append(
                sum(w * layer.value(source[j])[part] for w, j in zip(weights, seen, strict=True))
            )
        rows.append(layer.out(torch.cat(parts)))
    return torch.stack(rows)


def test_encoder_and_decoder_equal_loops():
    agent, inputs, actions = agent_and_rows(continuous=False, n=2)
    encoded = agent.encode(inputs)
    outputs = agent.decode(encoded.reps, actions)
    for n in range(2):
        x = agent.observe(inputs[n])
        for block in agent.encoder:
            x = block.norm1(x + slow_attention(block.attention, x, x))
            x = block.norm2(x + block.layers(x))
        assert torch.allclose(encoded.reps[n], x, atol=1e-5)
        assert torch.allclose(encoded.values[n], agent.value(x).squeeze(-1), atol=1e-5)
        tokens = torch.zeros(N_AGENTS, 5)
        tokens[0, 0] = 1
        for i in range(1, N_AGENTS):
            tokens[i, 1 + actions[n, i - 1]] = 1
        y = agent.embed(tokens)
        for block in agent.decoder:
            y = block.norm1(y + slow_attention(block.among_actions, y, y))
            y = block.norm2(x + slow_attention(block.from_reps, x, y))
            y = block.norm3(y + block.layers(y))
        assert torch.allclose(outputs[n], agent.head(y), atol=1e-5)


# -- acting ----------------------------------------------------------------------------------------


def test_what_is_recorded_when_acting_is_what_training_computes():
    """Log probabilities of a whole batch: agent by agent while acting, all at once in `unroll`."""
    args = mat_args()
    torch.manual_seed(3)
    mac = make_mac(args)
    livelier(mac.agent)
    batch = make_batch(args, terminated=(False,) * 5)
    noted = torch.zeros(5, batch.max_seq_length, N_AGENTS)
    mac.init_hidden(5)
    for t in range(max(LENGTHS)):
        running = [b for b, length in enumerate(LENGTHS) if t < length]
        actions = mac.select_actions(batch, t, t_env=0, bs=running)
        assert batch["avail_actions"][running, t].gather(-1, actions.unsqueeze(-1)).all()
        stored = batch.stored("actions")
        stored[running, t] = actions.unsqueeze(-1).to(stored.dtype)
        noted[running, t] = mac.last_record["log_prob"]
    batch.changed("actions")
    steps = batch.steps()
    avail, actions = steps.pack(batch["avail_actions"]), steps.pack(batch["actions"]).squeeze(-1)
    with torch.no_grad():
        log_prob = mac.policy(mac.unroll(batch, steps), avail).log_prob(actions)
        assert torch.allclose(log_prob, steps.pack(noted), atol=1e-5)
        assert log_prob.std() > 0.1
        for t in range(3):  # and step by step
            outputs = mac.forward(batch, t)
            whole = steps.unpack(mac.unroll(batch, steps))
            for b, length in enumerate(LENGTHS):
                if t < length:
                    assert torch.allclose(outputs[b], whole[b, t], atol=1e-5)


def test_greedy_actions_follow_from_the_earlier_greedy_ones():
    args = mat_args()
    torch.manual_seed(4)
    mac = make_mac(args)
    livelier(mac.agent, 2.0)
    batch = make_batch(args)
    mac.init_hidden(5)
    chosen = mac.select_actions(batch, 0, 0, test_mode=True)
    with torch.no_grad():
        inputs = mac._build_inputs(batch, 0).view(5, N_AGENTS, -1)
        for b in range(5):
            reps, taken = mac.agent.encode(inputs[b : b + 1]).reps, []
            for i in range(N_AGENTS):
                done = torch.tensor([taken + [0] * (N_AGENTS - i)])
                log_pi = log_policy(
                    mac.agent.decode(reps, done)[0, i], batch["avail_actions"][b, 0, i]
                )
                taken.append(int(log_pi.argmax()))
            assert chosen[b].tolist() == taken


def test_acting_is_declared_to_be_centralised(caplog):
    args = mat_args()
    with caplog.at_level("INFO"):
        mac = make_mac(args)
    assert mac.centralised_acting
    assert "acting is centralised" in caplog.text
    batch = make_batch(args)
    mac.init_hidden(5)
    mac.select_actions(batch, 0, 0)
    # 3 agents send 5 numbers to 2 others each; of 3 agents 3 pairs pass an action on.
    assert mac.episode_figures()["numbers_sent"].tolist() == [3 * 2 * 5 + 3] * 5


# -- the learner -----------------------------------------------------------------------------------


class SlowMAT(Slow):
    """Losses in loops, with the network for one step of one episode at a time."""

    def __init__(self, learner, batch):
        self.learner, self.batch = learner, batch
        args, mac = learner.args, learner.mac
        self.inputs = [
            mac._build_inputs(batch, t).view(batch.batch_size, N_AGENTS, -1)
            for t in range(batch.max_seq_length)
        ]
        self.old, self.advantages, self.returns = {}, {}, {}
        with torch.no_grad():
            for b, length in enumerate(LENGTHS):
                values = [self.network(b, t)[1] for t in range(length)]
                following = torch.zeros(N_AGENTS)
                for t in reversed(range(length - 1)):
                    goes_on = 0.0 if batch["terminated"][b, t, 0] else 1.0
                    delta = batch["reward"][b, t] + args.gamma * goes_on * values[t + 1] - values[t]
                    last = t == length - 2
                    following = delta if last else delta + args.gamma * args.gae_lambda * following
                    self.old[b, t], self.advantages[b, t] = values[t], following
                    self.returns[b, t] = following + values[t]
        stacked = torch.stack(list(self.returns.values())).double()
        mean, std = stacked.mean(0), stacked.var(0, correction=0).clamp(min=0.01).sqrt()
        self.returns = {k: ((v - mean) / std).float() for k, v in self.returns.items()}
        self.advantages = self.normalised()

    def network(self, b, t):
        """Log policies, a list of [U], and values [A]; actions read one by one."""
        agent, batch = self.learner.mac.agent, self.batch
        encoded = agent.encode(self.inputs[t][b : b + 1])
        log_pis = []
        for i in range(N_AGENTS):
            earlier = batch["actions"][b : b + 1, t, :i, 0]
            logits = agent.decode(encoded.reps[:, : i + 1], earlier)[0, -1]
            log_pis.append(log_policy(logits, batch["avail_actions"][b, t, i]))
        return log_pis, encoded.values[0]

    def loss(self):
        args, batch = self.learner.args, self.batch
        policy, entropy, values = [], [], []
        for b, t in self.advantages:
            log_pis, now = self.network(b, t)
            for i in range(N_AGENTS):
                goal, old = self.returns[b, t][i], self.old[b, t][i]
                near = old + (now[i] - old).clamp(-args.ppo_clip, args.ppo_clip)
                values.append(torch.max(*((v - goal) ** 2 / 2 for v in (now[i], near))))
                if self.choices(b, t, i) < 2:
                    continue
                log_ratio = log_pis[i][batch["actions"][b, t, i, 0]] - batch["log_prob"][b, t, i]
                a, ratio = self.advantages[b, t][i], log_ratio.exp()
                near = ratio.clamp(1 - args.ppo_clip, 1 + args.ppo_clip)
                policy.append(-torch.min(ratio * a, near * a))
                entropy.append(-sum(x.exp() * x for x in log_pis[i] if x > -torch.inf))
        means = [sum(found) / len(found) for found in (policy, entropy, values)]
        return means[0] - args.entropy_coef * means[1] + args.value_coef * means[2], means


def noted(learner, batch):
    """`recorded` for policies that depend on actions: some random log probabilities."""
    scheme = batch.scheme | {"log_prob": {"vshape": (), "group": "agents"}}
    out = EpisodeBatch(
        {k: v for k, v in scheme.items() if k not in ("filled", "actions_onehot")},
        batch.groups, batch.batch_size, batch.max_seq_length, preprocess=batch.preprocess,
    )  # fmt: skip
    out.data.transition_data |= batch.data.transition_data
    steps = batch.steps()
    with torch.no_grad():
        policy = learner.mac.policy(
            learner.mac.unroll(batch, steps), steps.pack(batch["avail_actions"])
        )
        log_prob = policy.log_prob(steps.pack(batch["actions"]).squeeze(-1)).clamp(min=-9)
    noise = 0.1 * torch.randn(log_prob.shape, generator=torch.Generator().manual_seed(5))
    out.stored("log_prob").copy_(steps.unpack(log_prob + noise))
    out.changed("log_prob")
    return out


@pytest.mark.parametrize("options", [{}, {"value_coef": 0.5, "ppo_clip": 0.2, "entropy_coef": 0.1}])
def test_loss_and_gradients(options):
    learner, log = make_learner(mat_args(**options))
    livelier(learner.mac.agent)
    batch = noted(learner, make_batch(learner.args))
    twin = copy.deepcopy(learner)
    loss, (policy, entropy, value) = SlowMAT(twin, batch).loss()
    loss.backward()
    learner.train(batch, t_env=0, episode_num=5)
    for name, expected in (
        ("loss_policy", policy),
        ("policy_entropy", entropy),
        ("loss_value", value),
    ):
        assert log.stats[name][0][0] == pytest.approx(expected.item(), rel=1e-3), name
    assert_same_gradients(learner, twin)
    assert "critic_grad_norm" not in log.stats


def test_a_restored_learner_continues_bit_for_bit():
    args = mat_args(ppo_minibatches=2, ppo_epochs=2)
    learner, other = (make_learner(args, seed)[0] for seed in (1, 2))
    assert_continues(learner, other, noted(learner, make_batch(args)))


def test_model_files(tmp_path):
    args = mat_args()
    learner, other = (make_learner(args, seed)[0] for seed in (1, 2))
    batch = noted(learner, make_batch(args))
    assert_models_continue(learner, other, batch, tmp_path)
    assert {path.stem for path in tmp_path.iterdir()} == {"agent", "value_norm", "opt"}


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"mac": "actor_mac"}, "mac=mat_mac"),
        ({"agent": "rnn"}, "needs agent=mat, got agent=rnn"),
        ({"critic": "state"}, r"critic=encoder \(the values are the encoder's\)"),
        ({"share_params": False}, "share_params=True"),
        ({"mat_heads": 3}, r"mat_heads \(3\) must divide mat_embed_dim \(8\)"),
        ({"mat_blocks": 0}, "mat_blocks must be at least 1, got 0"),
        ({"continuous": True, "obs_last_action": True}, "obs_last_action=False"),
    ],
)
def test_settings_that_do_not_fit(options, said):
    with pytest.raises(ConfigError, match=said):
        make_learner(mat_args(**options))


@pytest.mark.slow
def test_learns_continuous_actions():
    """Each agent is to do the opposite of the one before it: nobody who does not see it could."""
    args = mat_args(
        True, n_actions=1, lr=0.005, ppo_epochs=5, ppo_clip=0.2, batch_size=64,
        batch_size_run=64, mat_embed_dim=16,
    )  # fmt: skip
    learner, _ = make_learner(args)
    scheme = {
        "state": {"vshape": args.state_shape},
        "obs": {"vshape": OBS, "group": "agents"},
        "actions": {"vshape": (1,), "group": "agents"},
        "avail_actions": {"vshape": (1,), "group": "agents", "dtype": torch.uint8},
        "reward": {"vshape": (1,)},
        "terminated": {"vshape": (1,), "dtype": torch.uint8},
        **learner.mac.recorded,
    }
    batch, returns = EpisodeBatch(scheme, {"agents": N_AGENTS}, 64, 2), []
    batch.update(
        {"obs": torch.zeros(64, 2, N_AGENTS, OBS), "avail_actions": torch.ones(64, 2, N_AGENTS, 1)}
    )
    for _ in range(25):
        learner.mac.init_hidden(64)
        actions = learner.mac.select_actions(batch, 0, 0)
        x = actions.squeeze(-1)
        reward = -(x[:, 1:] + x[:, :-1]).square().sum(1)
        returns.append(reward.mean().item())
        played = {"actions": actions, "reward": reward.unsqueeze(1)}
        batch.update({**played, "terminated": torch.ones(64, 1), **learner.mac.last_record}, ts=0)
        learner.train(batch, t_env=0, episode_num=0)
    assert sum(returns[-5:]) > 0.5 * sum(returns[:5])


@pytest.mark.slow
@pytest.mark.parametrize(("game", "least"), [("climbing", 6.0), ("two_step", 7.0)])
def test_learns_a_matrix_game(game, least, tmp_path):
    """At least the safe equilibrium; a uniformly random joint action pays -3.1 and 4.6."""
    run = train_run(
        tmp_path, "mat", "matrix_game", f"env_args.map_name={game}", "t_max=2400",
        "batch_size_run=32", "lr=0.003", "batch_size=32", "buffer_size=32", "ppo_epochs=5",
        "ppo_clip=0.2", "test_nepisode=4", "mat_embed_dim=16",
    )  # fmt: skip
    assert run.last_test_return >= least
