"""Small F2A2 learners, batches for them, and their critics agent by agent in plain loops."""

import math

import torch
import torch.nn.functional as F
from learner_fixtures import make_args, make_batch, make_scheme
from maac_fixtures import maac_args, maac_learner, normalised
from transition_fixtures import make_transitions

from components.distributions import MaskedCategorical
from components.episode_buffer import EpisodeBatch
from components.transitions import Transitions
from modules.f2a2 import Histories

SIZES = ((5, 3, 2), (4, 4, 2))  # of the agents' observations and action sets
H = 2  # steps of history
MODELS = {
    "moa_trajectories": 4, "moa_trajectory_steps": 3, "moa_character_batch": 4, "moa_hidden_dim": 6,
    "moa_prediction_dim": 5, "transition_history": H, "recent_transitions": 8,
}  # fmt: skip


def f2a2_args(algorithm="sac", moa=False, sizes=SIZES, **overrides):
    """Narrow networks, no clipping; without models of others and networks in common unless asked
    for.
    """
    settings = {
        "critic_grad_norm_clip": 1e9,
        "policy_grad_norm_clip": 1e9,
        "seed": 3,
        "moa": moa,
        "share_params": False,
    }
    settings |= {"alpha_1": 0.4, "alpha_2": 0.9, "joint_scale": 1.0}
    settings |= MODELS if moa else {"transition_history": 0, "recent_transitions": 0}
    return maac_args(f"f2a2_{algorithm}", sizes, **(settings | overrides))


def baseline_args(algorithm, **overrides):
    """COMA's or MA-AC's, with narrow networks and no clipping."""
    small = {
        "critic_hidden_dim": 7,
        "policy_hidden_dim": 6,
        "learner_log_interval": 1,
        "batch_size": 5,
        "seed": 2,
    }
    args = make_args(algorithm, **(small | overrides))
    args.env_info = {"obs_sizes": SIZES[0], "action_sizes": SIZES[1]}
    return args


def f2a2_learner(args, seed=0):
    """A learner whose targets differ from the online networks, and its log; its models have their
    trajectories.
    """
    learner, log = maac_learner(args, seed)
    if learner.models is not None:
        obs = torch.randn(4, 3, 3, 5) * (torch.arange(5) < torch.tensor(SIZES[0])[:, None])
        learner.models.set_trajectories(obs, torch.randint(2, (4, 3, 3)), torch.ones(4, 3))
    return learner, log


def behaviour_of(avail, generator):
    """Log probabilities of random policies over the available actions."""
    logits = torch.randn(avail.shape, generator=generator)
    return MaskedCategorical(logits, avail).log_probs.clamp(min=-1e9)


def f2a2_transitions(args, n=16, seed=0, recent=True):
    """Random transitions with behaviour, and the histories that models of others need."""
    batch = make_transitions(args, n, seed, SIZES)
    generator = torch.Generator().manual_seed(seed + 50)
    entries = dict(batch)
    entries["behaviour"] = behaviour_of(entries["avail_actions"], generator)
    if args.transition_history:
        seen = torch.arange(args.obs_shape) < torch.tensor(SIZES[0])[:, None]
        filled = (
            torch.arange(args.transition_history)
            >= args.transition_history - torch.arange(n)[:, None]
        ).float()
        past = (
            torch.randn(n, args.transition_history, 3, args.obs_shape, generator=generator) * seen
        )
        entries["past_obs"] = past * filled[..., None, None]
        entries["past_actions"] = (
            torch.randint(2, (*filled.shape, 3), generator=generator) * filled.long()[..., None]
        )
        entries["past_filled"] = filled
    out = Transitions(entries, batch.reward_mean, batch.reward_std)
    if recent and args.recent_transitions:
        out.recent = f2a2_transitions(args, args.recent_transitions, seed + 1, recent=False)
    return out


def histories_of(batch):
    """What models of others read of transitions in which actions were taken."""
    return Histories(*(batch[name] for name in Histories._fields))


def next_histories_of(batch):
    """The same of the steps that follow."""
    return histories_of(batch).moved_on(
        batch["actions"], batch["next_obs"], batch["next_avail_actions"]
    )


def f2a2_episodes(args, seed=0):
    """Random ragged episodes with behaviour; entries behind an agent's own sizes are 0."""
    base = make_batch(args, seed=seed)
    b, t = base.batch_size, base.max_seq_length
    generator = torch.Generator().manual_seed(seed + 60)
    avail = base["avail_actions"].bool() & (
        torch.arange(args.n_actions) < torch.tensor(SIZES[1])[:, None]
    )
    avail[..., 0] |= ~avail.any(-1)
    seen = torch.arange(args.obs_shape) < torch.tensor(SIZES[0])[:, None]
    scheme, groups, preprocess = make_scheme(args)
    scheme["behaviour"] = {"vshape": (args.n_actions,), "group": "agents"}
    batch = EpisodeBatch(scheme, groups, b, t, preprocess=preprocess)
    data = {key: base[key] for key in ("state", "reward", "terminated")}
    data |= {
        "obs": base["obs"] * seen,
        "avail_actions": avail,
        "actions": torch.where(avail, torch.rand(avail.shape, generator=generator), -1.0).argmax(
            -1, keepdim=True
        ),
        "behaviour": behaviour_of(avail, generator),
    }
    batch.update(data, mark_filled=False)
    for i, length in enumerate(base.lengths().tolist()):
        batch.update({}, bs=i, ts=slice(length))
    return batch


def drawn_at_the_end(steps, probs, seed):
    """int64 [B, A]: what a learner draws in the last observations of episodes from probabilities
    [B, T, A, U].
    """
    torch.manual_seed(seed)
    # Rows are time-major: of episodes that are as long, in the batch's order; the shorter ones end
    # first.
    order = sorted(range(steps.batch_size), key=lambda b: (steps.lengths[b], b))
    drawn = torch.multinomial(torch.cat([probs[b, steps.lengths[b] - 1] for b in order]), 1).view(
        len(order), -1
    )
    return drawn[torch.tensor(order).argsort()]


# -- critics of one agent in plain loops -----------------------------------------------------------
def copy_value(critic, name, i, c, obs, joint):
    """all_q [M, U] of critic c of agent i: observations [M, A, O], joint actions one-hot [M, A,
    U].
    """
    return {"attention": _attention, "central": _central, "own": _own}[name](
        critic, i, c, obs, joint
    )


def _apply(layer, index, x):
    bias = None if layer.bias is None else layer.bias[index]
    return F.linear(x, layer.weight[index], bias)


def _attention(critic, i, c, obs, joint):
    own = F.leaky_relu(_apply(critic.state_encoder, (i, c), normalised(obs[:, i])))
    query = _apply(critic.query, (i, c), own)
    others = [j for j in range(obs.shape[1]) if j != i]
    encoded = {}
    for j in others:
        seen = normalised(torch.cat([obs[:, j], joint[:, j]], -1))
        encoded[j] = F.leaky_relu(_apply(critic.encoder, (i, c, j), seen))
    d = critic.width // critic.heads
    parts = []
    for h in range(critic.heads):
        part = slice(h * d, (h + 1) * d)
        scores = [
            (query[:, part] * _apply(critic.key, (i, c), encoded[j])[:, part]).sum(-1)
            for j in others
        ]
        weights = (torch.stack(scores, -1) / math.sqrt(d)).softmax(-1)
        values = [F.leaky_relu(_apply(critic.value, (i, c), encoded[j]))[:, part] for j in others]
        parts.append(sum(weights[:, k, None] * value for k, value in enumerate(values)))
    hidden = F.leaky_relu(_apply(critic.head1, (i, c), torch.cat([own, *parts], -1)))
    return _apply(critic.head2, (i, c), hidden)


def _central(critic, i, c, obs, joint):
    masked = joint.clone()
    masked[:, i] = 0
    number = F.one_hot(torch.tensor(i), obs.shape[1]).float().expand(len(obs), -1)
    x = torch.cat([normalised(obs.flatten(1)), masked.flatten(1), number], -1)
    for layer in (critic.fc1, critic.fc2):
        x = F.leaky_relu(_apply(layer, (i, c), x))
    return _apply(critic.fc3, (i, c), x)


def _own(critic, i, c, obs, joint):
    x = obs[:, i]
    for layer in (critic.fc1, critic.fc2):
        x = F.leaky_relu(_apply(layer, (i, c), x))
    return _apply(critic.fc3, (i, c), x)


# -- whole runs ------------------------------------------------------------------------------------
SMALL_RUN = [
    *(
        "env_args.n_pairs=2",
        "env_args.episode_limit=5",
        "seed=3",
        "batch_size_run=4",
        "use_cuda=False",
        "runner=vector",
    ),
    *(
        "policy_hidden_dim=8",
        "critic_hidden_dim=8",
        "test_interval=60",
        "test_nepisode=4",
        "t_max=200",
    ),
    *(
        "learner_log_interval=1",
        "runner_log_interval=1",
        "save_model_interval=100000",
        "updates_per_collection=2",
    ),
]
MODELS_OF_RUN = [
    *("moa_trajectories=4", "moa_character_batch=3", "moa_trajectory_steps=5", "moa_hidden_dim=6"),
    *("moa_prediction_dim=6", "warmup_episodes=4"),
]
# A budget of communication, so that all random streams of the consensus are in use.
BUDGET = [
    "topology=ring",
    "consensus_interval=2.0",
    "consensus_interval_std=1.0",
    "consensus_beta_steps=10",
]
OFF_POLICY = ["batch_size=16", "buffer_size=40"]
RUNS = {
    "f2a2_sac": [*OFF_POLICY, *MODELS_OF_RUN, *BUDGET, "topology_extra_edges=50.0"],
    "f2a2_ddpg": [*OFF_POLICY, *MODELS_OF_RUN, *BUDGET],
    "f2a2_td3": [*OFF_POLICY, *MODELS_OF_RUN, *BUDGET, "moa_common=False"],
    "f2a2_isac": [*OFF_POLICY, *BUDGET, "share_params=False"],  # observations are of different size
    "f2a2_coma": ["batch_size=6", "buffer_size=20", *MODELS_OF_RUN, *BUDGET],
    "coma": ["batch_size=6", "buffer_size=20", "hard_target_interval=5"],
    "ma_ac": ["batch_size=6", "buffer_size=20", *BUDGET[:3]],
}
RECURRENT_RUNS = {
    "f2a2_sac": [
        *RUNS["f2a2_sac"],
        "batch_size=6",
        "agent=rnn",
        "replay=episodes",
        "standardise_rewards=False",
        "policy_logit_penalty=0.0",
    ],
    "f2a2_coma": [*RUNS["f2a2_coma"], "agent=rnn"],
    "f2a2_isac": [
        "batch_size=6",
        "buffer_size=40",
        "agent=rnn",
        "replay=episodes",
    ],  # networks in common
}
