"""Policies on the disk without training: networks with random weights in the folder of a run."""

import json
from types import SimpleNamespace

import torch

from assembly import build_learner, describe_env
from envs import make_vector_env
from utils.config import build_config
from utils.logging import Logger, get_logger

SMALL = ("seed=3", "rnn_hidden_dim=8", "use_cuda=False", "test_nepisode=4")


def write_policy(folder, algorithm, environment, *settings, step=700, seed=0):
    """The folder of a run with one checkpoint; its learner."""
    config = build_config(algorithm, environment, [*SMALL, *settings])
    args = SimpleNamespace(**config, device="cpu")
    with make_vector_env(config["env"], config["env_args"], 1, 0, "native", "test_env") as env:
        describe_env(args, env.get_env_info())
    torch.manual_seed(seed)
    mac, learner = build_learner(args, Logger(get_logger()))
    with torch.no_grad():
        for param in mac.parameters():  # as they are, all actions are worth about the same
            param.mul_(2)
    models = folder / "checkpoints" / str(step)
    models.mkdir(parents=True)
    learner.save_models(str(models))
    (folder / "config.json").write_text(json.dumps(config))
    return learner
