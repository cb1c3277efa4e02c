"""What the tests of learners, controllers and agents share: configs, batches, slow plain-loop
values and returns.
"""

from types import SimpleNamespace

import numpy as np
import torch

from assembly import build_learner, build_mac, new_batch, scheme_of
from utils.config import CONFIG_DIR, load_file

make_scheme, make_mac = scheme_of, build_mac
N_AGENTS, N_ACTIONS, OBS, STATE = 3, 4, 5, 7
# Filled steps of the test batch, not sorted, and how the episodes end (False: truncated).
LENGTHS, TERMINATED = (4, 7, 2, 5, 4), (True, False, False, True, False)


def make_args(alg="qmix", **overrides):
    """default.yaml <- algs/ALG.yaml <- small networks <- `overrides`, which must be existing
    keys.
    """
    config = load_file(CONFIG_DIR / "default.yaml") | load_file(CONFIG_DIR / "algs" / f"{alg}.yaml")
    small = {"rnn_hidden_dim": 6, "mixing_embed_dim": 5, "hypernet_embed": 8, "grad_norm_clip": 1e9}
    small |= (
        {"central_rnn_hidden_dim": 5, "central_mixing_embed_dim": 9}
        if "central_agent" in config
        else {}
    )
    config |= small | {
        "n_agents": N_AGENTS, "n_actions": N_ACTIONS, "obs_shape": OBS, "state_shape": STATE,
        "episode_limit": 6, "agent_own_state_size": 0,
        "continuous_actions": False, "device": "cpu", "use_cuda": False,
    }  # fmt: skip
    unknown = set(overrides) - set(config)
    assert not unknown, unknown
    return SimpleNamespace(**(config | overrides))


def make_learner(args, seed=0):
    """A learner whose target networks differ from the online ones, and its log."""
    torch.manual_seed(seed)
    log = Log()
    _, learner = build_learner(args, log)
    for _, target in learner.targets:
        for param in target.parameters():
            param.add_(0.1 * torch.randn_like(param))
    return learner, log


class Log:
    """The part of `utils.logging.Logger` that learners use."""

    def __init__(self):
        self.stats = {}

    def log_stat(self, key, value, t):
        self.stats.setdefault(key, []).append((value, t))


def make_batch(args, lengths=LENGTHS, terminated=TERMINATED, seed=0):
    """Random ragged episodes; what lies behind an episode's end is garbage that nobody may read.

    Some actions are unavailable; in the last step of a terminated episode all of them are.
    """
    rng = np.random.default_rng(seed)
    b, t, a, u = len(lengths), max(lengths) + 1, args.n_agents, args.n_actions
    avail = rng.random((b, t, a, u)) < 0.6
    avail[..., 0] |= ~avail.any(-1)
    actions = np.where(avail, rng.random((b, t, a, u)), -1).argmax(-1)
    data = {
        "obs": rng.normal(size=(b, t, a, args.obs_shape)),
        "state": rng.normal(size=(b, t, args.state_shape)),
        "reward": rng.normal(size=(b, t, 1 if args.common_reward else a)),
        "avail_actions": avail,
        "actions": actions[..., None],
        "terminated": np.zeros((b, t, 1)),
    }
    for i, (length, ended) in enumerate(zip(lengths, terminated, strict=True)):
        data["terminated"][i, length - 2] = ended
        if ended:
            data["avail_actions"][i, length - 1] = 0
        data["reward"][i, length - 1 :] = 1e3
        for key in ("obs", "state"):
            data[key][i, length:] = 1e3
    batch = new_batch(args, b, t)
    batch.update(data, mark_filled=False)
    for i, length in enumerate(lengths):
        batch.update({}, bs=i, ts=slice(length))
    return batch


# -- slow reference: episodes, steps and agents one by one -----------------------------------------


def step_outputs(mac, episode, hidden=False):
    """Outputs [A, U] of every filled step of a batch of one episode, by `mac.forward`.

    With `hidden` also what the last layer reads, [A, H].
    """
    outputs, features = [], []
    head = getattr(mac.agent, "fc3", None) or mac.agent.fc2
    hook = head.register_forward_pre_hook(
        lambda _, inputs: features.append(inputs[0].view(mac.n_agents, -1))
    )
    mac.init_hidden(1)
    for t in range(int(episode["filled"].sum())):
        outputs.append(mac.forward(episode, t).view(mac.n_agents, -1))
    hook.remove()
    return (outputs, features) if hidden else outputs


def greedy_action(values, avail):
    """The available action of the highest value, for every agent: values, avail [A, U] -> list of
    ints.
    """
    chosen = []
    for agent_values, agent_avail in zip(values.tolist(), avail.tolist(), strict=True):
        options = [u for u, ok in enumerate(agent_avail) if ok] or [0]
        chosen.append(max(options, key=lambda u: agent_values[u]))
    return chosen


def taken_actions(episode, t):
    return episode["actions"][0, t, :, 0].tolist()


def td_lambda_returns(rewards, values, ended, gamma, lam):
    """G_t of one episode: rewards of L transitions, values of L + 1 steps."""
    n = len(rewards)
    returns = [None] * n
    for t in reversed(range(n)):
        last = t == n - 1
        following = 0.0 if last and ended else values[t + 1]
        returns[t] = rewards[t] + gamma * (
            following if last else (1 - lam) * following + lam * returns[t + 1]
        )
    return returns


def q_lambda_returns(rewards, best, taken, ended, gamma, lam):
    """Q(lambda) of one episode: values of the greedy and of the taken actions at L + 1 steps."""
    n = len(rewards)
    returns = [None] * n
    for t in reversed(range(n)):
        last = t == n - 1
        following = 0.0 if last and ended else best[t + 1]
        correction = 0.0 if last else lam * (returns[t + 1] - taken[t + 1])
        returns[t] = rewards[t] + gamma * (following + correction)
    return returns


def gradients(learner):
    """Name -> gradient of everything that the learner trains."""
    networks = {"agent": learner.mac.agent, **learner.modules}
    return {
        f"{name}.{key}": param.grad
        for name, network in networks.items()
        for key, param in network.named_parameters()
    }


def assert_same_gradients(learner, reference):
    """The gradients of both learners are equal to 1e-5 of their size."""
    mine, theirs = gradients(learner), gradients(reference)
    assert mine.keys() == theirs.keys()
    for name, grad in theirs.items():
        assert (mine[name] is None) == (grad is None), name
        if grad is not None:
            scale = float(grad.abs().max())
            assert torch.allclose(mine[name], grad, rtol=1e-4, atol=1e-5 * max(scale, 1.0)), name
    assert any(grad is not None and grad.abs().max() > 1e-3 for grad in theirs.values())


def assert_models_continue(learner, other, batch, folder):
    """A learner that loads the models of one in mid-training learns what that one goes on to."""
    learner.train(batch, t_env=0, episode_num=1)
    learner.save_models(str(folder))
    other.load_models(str(folder))
    for twin in (learner, other):
        torch.manual_seed(3)
        twin.train(batch, t_env=0, episode_num=2)
    pairs = zip(weights_of(learner), weights_of(other), strict=True)
    assert all(torch.equal(mine, theirs) for mine, theirs in pairs)


def weights_of(learner):
    """Copies of all online weights."""
    networks = [learner.mac.agent, *learner.modules.values()]
    return [param.detach().clone() for network in networks for param in network.parameters()]
