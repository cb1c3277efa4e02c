"""MAMT's update against plain loops, its variants, the old policies, its files and whole runs."""

import copy
import json
import math

import pytest
import torch
from experiments import mamt_figures
from maac_fixtures import maac_args, maac_learner, transitions
from run_fixtures import StopAt, finish, start_run

from analysis.runs import load_runs
from learners.mamt.mirror_descent import coordination
from learners.mamt.situation import effects_of
from utils.config import CONFIG_DIR, build_config, check_config, load_file
from utils.errors import ConfigError
from utils.observers import Interrupted
from utils.state import capture, restore

VARIANTS = {
    "mamd": {"trust_region_split": "equal"},
    "mamd_op": {"trust_region_split": "known"},
    "mamt_fixed": {"coordination": "fixed"},
    "mamt_random": {"coordination": "random"},
    "mamt_ws": {"divergence": "weighted_sum"},
}


def mamt_args(algorithm="mamt", **overrides):
    """Narrow networks; the trust regions see all of a batch."""
    return maac_args(
        algorithm, **({"trust_region_batch_size": 0, "old_policy_interval": 3} | overrides)
    )


def moved_apart(learner):
    """The old policies differ from the present ones, as in the middle of a training."""
    torch.manual_seed(3)
    with torch.no_grad():
        for old, new in zip(
            learner.old_policy.parameters(), learner.policy.parameters(), strict=True
        ):
            old.add_(0.3 * torch.randn_like(old) * (new != 0))
    learner.updates = 1


def weights_of(learner):
    networks = [learner.policy, learner.target_policy, learner.critic, learner.target_critic]
    return [param.detach().clone() for network in networks for param in network.parameters()]


# -- configuration ---------------------------------------------------------------------------------


def test_variants_differ_from_mamt_in_one_key():
    mamt = load_file(CONFIG_DIR / "algs" / "mamt.yaml")
    for name, own in VARIANTS.items():
        variant = load_file(CONFIG_DIR / "algs" / f"{name}.yaml")
        differing = {key for key in mamt | variant if mamt.get(key) != variant.get(key)}
        assert differing == {*own} | ({"trust_region_members"} if name == "mamd_op" else set()), (
            name
        )
        assert {key: variant[key] for key in own} == own


def test_mamt_is_maac_with_more_keys():
    maac, mamt = (load_file(CONFIG_DIR / "algs" / f"{name}.yaml") for name in ("maac", "mamt"))
    assert {key for key in maac if mamt.get(key) != maac[key]} == {"learner"}
    assert set(mamt) - set(maac) == {
        *(
            "tsallis_q",
            "md_entropy",
            "old_policy_interval",
            "trust_region_split",
            "trust_region_delta",
        ),
        *(
            "trust_region_members",
            "trust_region_penalty",
            "trust_region_batch_size",
            "coordination",
        ),
        *(
            "coordination_sigma",
            "coordination_unit",
            "divergence",
            "divergence_min",
            "divergence_max",
            "trd_steps",
            "trd_grad_norm_clip",
        ),
        *("opponent_weight_decay", "opponent_grad_norm_clip"),
    }


@pytest.mark.parametrize(
    ("map_name", "sizes"),
    [
        ("spread3_sep", [math.inf] * 3),
        ("spread3_mix", [5.0, math.inf, 5.0]),
        ("spread3_ful", [10 / 3] * 3),
    ],
)
def test_split_known_for_the_maps_of_the_dilemma(map_name, sizes):
    config = build_config("mamd_op", map_name, [])
    check_config(config)
    learner, _ = maac_learner(mamt_args("mamd_op", env_args=config["env_args"]))
    assert learner.split.sizes().tolist() == pytest.approx(sizes)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"old_policy_interval": 0}, "old_policy_interval must be at least 1, got 0"),
        ({"trust_region_batch_size": -1}, "trust_region_batch_size must be at least 0, got -1"),
        ({"trust_region_batch_size": 7}, "at least 2 transitions each"),
        ({"trd_steps": 17}, "at least 2 transitions each"),
        ({"trust_region_split": "known"}, "trust_region_members"),
    ],
)
def test_bad_settings(settings, message):
    with pytest.raises(ConfigError, match=message):
        maac_learner(mamt_args(**settings))


# -- the policies' step ----------------------------------------------------------------------------


def bracket_by_loops(learner, step, old, sizes):
    """[N, A], one row and agent at a time."""
    args, out = learner.args, torch.zeros_like(step.q)
    for n in range(len(step.obs)):
        for i in range(args.n_agents):
            new_log = step.log_prob[n, i].item()
            # what is all but impossible counts as one in a million
            old_log = max(old.log_prob(step.actions)[n, i].item(), math.log(1e-6))
            if args.tsallis_q == 1.0:
                penalty = max(new_log, math.log(1e-6)) - old_log
            else:
                power = args.tsallis_q - 1
                penalty = (math.exp(new_log) ** power - math.exp(old_log) ** power) / power
            out[n, i] = penalty / sizes[i].item() - (step.q[n, i] - step.baseline[n, i]).item()
            if args.md_entropy:
                out[n, i] += args.alpha_entropy * new_log
    return out


@pytest.mark.parametrize("continuous", [False, True])
@pytest.mark.parametrize(
    "settings", [{}, {"tsallis_q": 1.0}, {"md_entropy": False, "alpha_entropy": 0.5}], ids=str
)
def test_bracket_by_loops(settings, continuous):
    args = mamt_args(continuous=continuous, **settings)
    learner, _ = maac_learner(args)
    moved_apart(learner)
    batch = transitions(args)
    step = learner.evaluate_policies(batch)
    old = learner.distribution(learner.old_policy.logits(step.obs), step.avail_actions)
    assert (old.log_prob(step.actions) - step.log_prob).abs().max() > 0.1
    figures = learner.before_policy_step(step, 0)
    sizes = learner.split.sizes()
    assert sizes.std() > 0  # those of this update
    assert torch.equal(figures["trust_region"], sizes)
    found, expected = learner.policy_bracket(step), bracket_by_loops(learner, step, old, sizes)
    assert torch.allclose(found, expected, rtol=1e-3, atol=1e-4)


def test_policies_move_by_the_gradient_of_their_loss():
    args = mamt_args(
        "mamd", policy_grad_norm_clip=1e6, policy_logit_penalty=0.0, trust_region_delta=0.3
    )
    learner, _ = maac_learner(args)
    moved_apart(learner)
    step = learner.evaluate_policies(transitions(args))
    old = learner.distribution(learner.old_policy.logits(step.obs), step.avail_actions)
    bracket = bracket_by_loops(learner, step, old, torch.full((3,), 0.1))
    gradients = torch.autograd.grad(
        (step.log_prob * bracket).mean(0).sum(), learner.params, retain_graph=True
    )
    learner.before_policy_step(step, 0)
    learner.policy_step(step, 0)
    for param, gradient in zip(learner.params, gradients, strict=True):
        assert torch.allclose(param.grad, gradient, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("continuous", [False, True])
def test_without_a_trust_region_it_is_maac(continuous):
    learners = [
        maac_learner(maac_args("maac", continuous=continuous))[0],
        maac_learner(mamt_args("mamd", continuous=continuous, trust_region_split="none"))[0],
    ]
    for learner in learners:
        torch.manual_seed(5)
        for seed in range(5):
            learner.train(transitions(learner.args, seed=seed), seed, 0)
    for maac, mamt in zip(*map(weights_of, learners), strict=True):
        assert torch.equal(maac, mamt)
    assert learners[1].consecutive_kl is not None


@pytest.mark.parametrize("continuous", [False, True])
def test_effects_by_valuing_every_other_action(continuous):
    args = mamt_args(continuous=continuous)
    learner, _ = maac_learner(args)
    step = learner.evaluate_policies(transitions(args))
    found = effects_of(learner.critic, step.obs, step.actions, step.policy, step.samples)
    n, a = step.q.shape
    norm = learner.critic.norm
    mean, scale = norm.statistics(learner.critic._inputs(step.obs, step.actions))
    norm.running_mean.copy_(mean.squeeze(1))
    norm.running_var.copy_((scale.squeeze(1) ** -2) - norm.eps)
    learner.critic.eval()  # now with the statistics of the actions taken, whatever else is valued
    for i in range(a):
        for j in range(a):
            if i == j:
                continue
            averaged = torch.zeros(n)
            choices = (
                range(args.mc_actions) if continuous else range(args.env_info["action_sizes"][j])
            )
            for choice in choices:
                other = step.actions.clone()
                other[:, j] = step.samples[:, j, choice] if continuous else choice
                with torch.no_grad():
                    value = learner.critic.taken(
                        learner.critic(step.obs, other).all_q, step.actions
                    )[:, i]
                prob = (
                    1 / args.mc_actions if continuous else step.policy.probs[:, j, choice].detach()
                )
                averaged += prob * value
            with torch.no_grad():
                taken = learner.critic.taken(
                    learner.critic(step.obs, step.actions).all_q, step.actions
                )[:, i]
            assert torch.allclose(found[:, i, j], (averaged - taken).abs(), atol=1e-5), (i, j)
    assert found[:, ~torch.eye(a, dtype=torch.bool)].max() > 1e-2


@pytest.mark.parametrize("continuous", [False, True])
def test_trust_regions_learn_from_the_first_rows(continuous):
    args = mamt_args(continuous=continuous, trust_region_batch_size=8)
    learner, _ = maac_learner(args)
    moved_apart(learner)
    seen = []
    learner.split.learn = lambda situation, t_env: seen.append(situation) or {}
    batch = transitions(args, n=20)
    step = learner.evaluate_policies(batch)
    learner.before_policy_step(step, 0)
    (s,) = seen
    old = learner.distribution(learner.old_policy.logits(batch["obs"]), batch["avail_actions"])
    assert torch.equal(s.obs, batch["obs"][:8])
    assert torch.equal(s.replayed, batch["actions"][:8])
    assert torch.equal(s.actions, step.actions[:8])
    assert torch.equal(s.values, step.all_q[:8])
    assert torch.allclose(s.kl, step.policy.kl(old)[:8].detach())
    if continuous:
        weights = (old.log_prob(step.samples) - step.policy.log_prob(step.samples))[:8]
        assert s.values.shape == (8, 3, args.mc_actions)
    else:
        weights = old.log_probs[:8]
    assert torch.allclose(s.log_weights, weights.detach(), atol=1e-5)
    assert not any(x.requires_grad for x in s if isinstance(x, torch.Tensor))
    assert s.effects().shape == (8, 3, 3)


@pytest.mark.parametrize("continuous", [False, True])
@pytest.mark.parametrize("algorithm", ["mamt", "mamt_fixed", "mamt_random", "mamt_ws"])
def test_an_update_moves_everything_that_learns(algorithm, continuous):
    args = mamt_args(algorithm, continuous=continuous, coordination_sigma=0.0)
    learner, log = maac_learner(args)
    modules = {"policy": learner.policy, "critic": learner.critic, **learner.split.modules}
    assert ("opponents" in modules) == (algorithm != "mamt_ws")
    before = {
        name: [p.detach().clone() for p in module.parameters()] for name, module in modules.items()
    }
    padding = {
        "opponents": lambda p: p.fc1.weight[0, :, 5:],
        "trd_net": lambda p: torch.cat(
            [p.obs.weight[1, :, 3:].flatten(), p.action.weight[2, :, 2:].flatten()]
        ),
    }
    for seed in range(5):
        learner.train(transitions(args, seed=seed), seed, 0)
    for name, module in modules.items():
        moved = [
            not torch.equal(old, new)
            for old, new in zip(before[name], module.parameters(), strict=True)
        ]
        assert all(moved), name
        if name in padding and not continuous:
            assert not padding[name](module).any(), name
    lists = {
        **dict.fromkeys(
            ("consecutive_kl", "non_stationarity", "trust_region", "attention_entropy"),
            (3, "agent"),
        ),
        **dict.fromkeys(("coordination", "coordination_variance"), (9, "pair")),
    }
    for name, (size, whose) in lists.items():
        values, _ = log.lists[f"{name}_by_{whose}"][-1]
        assert len(values) == size, name
        assert all(math.isfinite(value) for value in values)
    assert {"loss_trd", "trust_region_objective", "loss_policy"} <= set(log.stats)


def test_coefficients_are_those_of_the_counterfactual_values():
    args = mamt_args(coordination_sigma=0.4)
    learner, _ = maac_learner(args)
    step = learner.evaluate_policies(transitions(args))
    expected = coordination(
        effects_of(learner.critic, step.obs, step.actions, step.policy, None), 0.4
    )
    figures = learner.before_policy_step(step, 0)
    assert torch.allclose(figures["coordination"], expected.mean(0))


# -- old policies ----------------------------------------------------------------------------------


def test_old_policies_are_refreshed_every_m_updates():
    args = mamt_args("mamd", old_policy_interval=4, lr=0.01)
    learner, log = maac_learner(args)
    snapshots, penalties, bracket = [], [], learner.policy_bracket

    def watched(step):
        penalties.append(learner._penalty)
        return bracket(step)

    learner.policy_bracket = watched
    for update in range(10):
        snapshots.append([param.detach().clone() for param in learner.policy.parameters()])
        batch = transitions(args, seed=update)
        learner.policy.train()
        with torch.no_grad():
            new, old = (
                learner.distribution(network.logits(batch["obs"]), batch["avail_actions"])
                for network in (learner.policy, learner.old_policy)
            )
        learner.train(batch, update, 0)
        since = snapshots[update // 4 * 4]
        assert all(
            torch.equal(a, b) for a, b in zip(since, learner.old_policy.parameters(), strict=True)
        ), update
        if update in (4, 8):
            by_hand = torch.zeros(3)
            for i in range(3):
                for n in range(16):
                    for u in range(args.env_info["action_sizes"][i]):
                        p, q = new.probs[n, i, u], old.probs[n, i, u]
                        by_hand[i] += p * (p.log() - q.log()) / 16 if p > 0 else 0
            assert torch.allclose(learner.consecutive_kl, by_hand, rtol=1e-4)
            assert by_hand.min() > 0
        if update % 4 == 0:
            assert not penalties[-1].any()  # at a refresh nothing has moved
        else:
            assert penalties[-1].any()
    assert [t for _, t in log.lists["consecutive_kl_by_agent"]] == [4, 5, 6, 7, 8, 9]


@pytest.mark.parametrize("continuous", [False, True])
def test_a_small_trust_region_keeps_the_policies_together(continuous):
    """The constraint is real: on the same batches the policies move less in a small region than in
    a large one.
    """
    moved = {}
    for delta in (0.03, 30.0):
        args = mamt_args(
            "mamd",
            continuous=continuous,
            trust_region_delta=delta,
            old_policy_interval=20,
            lr=0.003,
        )
        learner, _ = maac_learner(args)
        torch.manual_seed(1)
        distances = []
        for update in range(101):
            learner.train(transitions(args, seed=update % 4, n=32), update, 0)
            if update and update % 20 == 0:
                distances.append(learner.consecutive_kl)
        moved[delta] = torch.stack(distances).mean(0)
    assert (moved[0.03] < 0.5 * moved[30.0]).all(), moved


# -- files and state -------------------------------------------------------------------------------


def test_model_files(tmp_path):
    args = mamt_args()
    learner, _ = maac_learner(args)
    learner.train(transitions(args), 0, 0)
    learner.save_models(str(tmp_path))
    models = {"agent", "critic", "regions", "trd_net", "opponents"}
    optimisers = {"opt", "critic_opt", "regions_opt", "trd_net_opt", "opponents_opt"}
    assert {file.name for file in tmp_path.iterdir()} == {
        f"{name}.th" for name in models | optimisers
    }
    other, _ = maac_learner(args, seed=5)
    other.load_models(str(tmp_path))
    for name, module in learner.modules.items():
        for key, value in module.state_dict().items():
            assert torch.equal(other.modules[name].state_dict()[key], value), (name, key)
    for old, new in zip(other.old_policy.parameters(), learner.policy.parameters(), strict=True):
        assert torch.equal(old, new)


@pytest.mark.parametrize("algorithm", ["mamt", "mamd_op"])
def test_a_captured_learner_goes_on_bit_for_bit(algorithm):
    args = mamt_args(algorithm, env_args={"map_name": "spread3_mix"})
    learner, _ = maac_learner(args)
    for seed in range(4):
        learner.train(transitions(args, seed=seed), seed, 0)
    state = copy.deepcopy(capture(learner, shared=(args, learner.logger)))
    other, _ = maac_learner(args, seed=9)
    restore(other, state)
    for each in (learner, other):
        torch.manual_seed(2)
        for seed in range(4):
            each.train(transitions(args, seed=seed), 10 + seed, 0)
    for a, b in zip(weights_of(learner), weights_of(other), strict=True):
        assert torch.equal(a, b)
    assert torch.equal(learner.split.sizes(), other.split.sizes())
    assert torch.equal(learner.consecutive_kl, other.consecutive_kl)


# -- whole runs ------------------------------------------------------------------------------------

RUN = [
    *(
        "batch_size_run=4",
        "batch_size=16",
        "buffer_size=30",
        "env_args.episode_limit=6",
        "steps_per_update=10",
    ),
    *(
        "updates_per_step=2",
        "critic_hidden_dim=8",
        "policy_hidden_dim=8",
        "test_interval=72",
        "test_nepisode=4",
    ),
    *("use_cuda=False", "t_max=240", "seed=3", "learner_log_interval=1", "runner_log_interval=1"),
    *("old_policy_interval=3", "trust_region_batch_size=12"),
]


def start(run_dir, algorithm, env, *settings):
    """A run in this process, without Sacred."""
    return start_run(algorithm, env, run_dir, [*RUN, *settings])


def test_resumed_run_equals_the_uninterrupted_one(tmp_path):
    finish(start(tmp_path / "whole", "mamt", "spread"))
    half = start(tmp_path / "parts", "mamt", "spread")
    half.stop = StopAt(half.runner, 100)
    with pytest.raises(Interrupted):
        finish(half)
    rest = start(tmp_path / "parts", "mamt", "spread")
    torch.manual_seed(99)  # whatever happened in between
    rest.load(tmp_path / "parts" / "checkpoints" / str(half.runner.t_env))
    finish(rest)
    whole, parts = (tmp_path / name / "metrics.jsonl" for name in ("whole", "parts"))
    assert parts.read_bytes() == whole.read_bytes()


@pytest.mark.parametrize(
    ("algorithm", "env"),
    [("mamt", "rover_tower"), ("mamt_ws", "spread3_ful"), ("mamd_op", "spread3_mix")],
)
def test_figures_of_a_run(algorithm, env, tmp_path):
    finish(start(tmp_path, algorithm, env, "t_max=96"))
    (tmp_path / "config.json").write_text(json.dumps({"name": algorithm, "env": env, "seed": 3}))
    figures = mamt_figures.figures_of(load_runs([tmp_path], mamt_figures.KEYS))
    learned = {"non_stationarity", "coordination"} if algorithm != "mamd_op" else set()
    assert set(figures) == {"kl", "regions"} | learned
