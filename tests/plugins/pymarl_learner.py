"""A value-decomposition learner as a PyMARL2 user writes one: a time loop over the controller,
PyMARL's names only.
"""

import copy

import torch as th
from torch.optim import Adam, RMSprop

from components.episode_buffer import EpisodeBatch
from modules.mixers.nmix import Mixer
from modules.mixers.qmix import QMixer
from modules.mixers.vdn import VDNMixer
from utils.rl_utils import build_td_lambda_targets
from utils.th_utils import get_parameters_num


class PluginQLearner:
    def __init__(self, mac, scheme, logger, args):
        self.args = args
        self.mac = mac
        self.logger = logger
        self.scheme = scheme
        self.device = th.device("cuda" if args.use_cuda else "cpu")
        self.params = list(mac.parameters())
        self.last_target_update_episode = 0
        self.log_stats_t = -args.learner_log_interval - 1
        self.train_t = 0
        self.target_scale = th.zeros(1, device=self.device)  # a running mean, logged only

        self.mixer = None
        if args.mixer is not None:
            if args.mixer == "vdn":
                self.mixer = VDNMixer()
            elif args.mixer == "qmix":
                self.mixer = QMixer(args)
            elif args.mixer == "nmix":
                self.mixer = Mixer(args)
            else:
                raise ValueError(f"Mixer {args.mixer} not recognised.")
            self.params += list(self.mixer.parameters())
            self.target_mixer = copy.deepcopy(self.mixer)
            logger.console_logger.info(f"Mixer size: {get_parameters_num(self.mixer.parameters())}")

        if getattr(args, "optimizer", "rmsprop") == "adam":
            self.optimiser = Adam(
                params=self.params, lr=args.lr, weight_decay=getattr(args, "weight_decay", 0)
            )
        else:
            self.optimiser = RMSprop(
                params=self.params, lr=args.lr, alpha=args.optim_alpha, eps=args.optim_eps
            )

        # A target controller of its own: the copy owns its networks and its hidden states.
        self.target_mac = copy.deepcopy(mac)

    def train(self, batch: EpisodeBatch, t_env: int, episode_num: int, per_weight=None):
        rewards = batch["reward"][:, :-1]
        actions = batch["actions"][:, :-1]
        terminated = batch["terminated"][:, :-1].float()
        mask = batch["filled"][:, :-1].float()
        mask[:, 1:] = mask[:, 1:] * (1 - terminated[:, :-1])
        avail_actions = batch["avail_actions"]

        self.mac.agent.train()
        mac_out = self.unroll(self.mac, batch)
        # A loss over all actions is written with the one-hot actions, the rest of PyMARL gathers:
        # both must agree.
        chosen_action_qvals = (mac_out[:, :-1] * batch["actions_onehot"][:, :-1]).sum(dim=3)
        gathered = th.gather(mac_out[:, :-1], dim=3, index=actions).squeeze(3)
        onehot_error = ((chosen_action_qvals - gathered).detach() * mask).abs().max()

        with th.no_grad():
            self.target_mac.agent.train()
            target_mac_out = self.unroll(self.target_mac, batch)
            if self.args.double_q:
                online = mac_out.clone().detach()
                online[avail_actions == 0] = -9999999
                best = online.max(dim=3, keepdim=True)[1]
                target_max_qvals = th.gather(target_mac_out, 3, best).squeeze(3)
            else:
                target_mac_out[avail_actions == 0] = -9999999
                target_max_qvals = target_mac_out.max(dim=3)[0]
            if self.mixer is not None:
                target_max_qvals = self.target_mixer(target_max_qvals, batch["state"])
            targets = build_td_lambda_targets(
                rewards,
                terminated,
                mask,
                target_max_qvals,
                self.args.n_agents,
                self.args.gamma,
                self.args.td_lambda,
            )

        if self.mixer is not None:
            chosen_action_qvals = self.mixer(chosen_action_qvals, batch["state"][:, :-1])

        td_error = chosen_action_qvals - targets.detach()
        squared = 0.5 * td_error.pow(2)
        if per_weight is not None:
            squared = squared * per_weight.view(-1, 1, 1).to(self.device)
        mask = mask.expand_as(squared)
        masked_td_error = squared * mask
        loss = masked_td_error.sum() / mask.sum()

        self.optimiser.zero_grad()
        loss.backward()
        grad_norm = th.nn.utils.clip_grad_norm_(self.params, self.args.grad_norm_clip)
        self.optimiser.step()
        self.train_t += 1
        self.target_scale = 0.9 * self.target_scale + 0.1 * targets.abs().mean().to(self.device)

        if (
            episode_num - self.last_target_update_episode
        ) / self.args.target_update_interval >= 1.0:
            self._update_targets()
            self.last_target_update_episode = episode_num

        if t_env - self.log_stats_t >= self.args.learner_log_interval:
            mask_elems = mask.sum().item()
            self.logger.log_stat("loss", loss.item(), t_env)
            self.logger.log_stat("grad_norm", grad_norm, t_env)  # a tensor, as PyMARL logs it
            self.logger.log_stat(
                "td_error_abs", (td_error * mask).abs().sum().item() / mask_elems, t_env
            )
            self.logger.log_stat("target_mean", (targets * mask).sum().item() / mask_elems, t_env)
            self.logger.log_stat("onehot_error", onehot_error.item(), t_env)
            self.logger.log_stat("target_scale", self.target_scale, t_env)
            self.logger.log_stat(
                "scaled_return",
                batch["reward"].sum().item() * getattr(self.args, "report_scale", 1.0),
                t_env,
            )
            self.log_stats_t = t_env

        info = {"td_errors_abs": (td_error.abs() * mask).detach().sum(1) / mask.sum(1)}
        return info

    def unroll(self, mac, batch):
        out = []
        mac.init_hidden(batch.batch_size)
        for t in range(batch.max_seq_length):
            out.append(mac.forward(batch, t=t))
        return th.stack(out, dim=1)

    def _update_targets(self):
        self.target_mac.load_state(self.mac)
        if self.mixer is not None:
            self.target_mixer.load_state_dict(self.mixer.state_dict())
        self.logger.console_logger.info("Updated target network")

    def cuda(self):
        self.mac.cuda()
        self.target_mac.cuda()
        if self.mixer is not None:
            self.mixer.cuda()
            self.target_mixer.cuda()

    def save_models(self, path):
        self.mac.save_models(path)
        if self.mixer is not None:
            th.save(self.mixer.state_dict(), f"{path}/mixer.th")
        th.save(self.optimiser.state_dict(), f"{path}/opt.th")

    def load_models(self, path):
        self.mac.load_models(path)
        self.target_mac.load_models(path)
        if self.mixer is not None:
            self.mixer.load_state_dict(
                th.load(f"{path}/mixer.th", map_location=lambda storage, loc: storage)
            )
        self.optimiser.load_state_dict(
            th.load(f"{path}/opt.th", map_location=lambda storage, loc: storage)
        )
