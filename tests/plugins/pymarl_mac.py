"""Controllers as PyMARL2 users write them: one from nothing, two on top of BasicMAC."""

import torch as th

from components.action_selectors import REGISTRY as action_REGISTRY
from controllers.basic_controller import BasicMAC
from modules.agents import REGISTRY as agent_REGISTRY


class ScratchMAC:
    """Shares no code with the laboratory's controllers; agents are fed as in PyMARL, one row per
    agent.
    """

    def __init__(self, scheme, groups, args):
        self.n_agents = args.n_agents
        self.args = args
        input_shape = self._get_input_shape(scheme)
        self._build_agents(input_shape)
        self.agent_output_type = args.agent_output_type
        self.action_selector = action_REGISTRY[args.action_selector](args)
        self.save_probs = getattr(args, "save_probs", False)
        self.hidden_states = None

    def select_actions(self, ep_batch, t_ep, t_env, bs=slice(None), test_mode=False):
        avail_actions = ep_batch["avail_actions"][:, t_ep]
        agent_outputs = self.forward(ep_batch, t_ep, test_mode=test_mode)
        return self.action_selector.select_action(
            agent_outputs[bs], avail_actions[bs], t_env, test_mode=test_mode
        )

    def forward(self, ep_batch, t, test_mode=False):
        if test_mode:
            self.agent.eval()
        agent_inputs = self._build_inputs(ep_batch, t)
        agent_outs, self.hidden_states = self.agent(agent_inputs, self.hidden_states)
        return agent_outs.view(ep_batch.batch_size, self.n_agents, -1)

    def init_hidden(self, batch_size):
        self.hidden_states = (
            self.agent.init_hidden().unsqueeze(0).expand(batch_size, self.n_agents, -1)
        )

    def parameters(self):
        return self.agent.parameters()

    def load_state(self, other_mac):
        self.agent.load_state_dict(other_mac.agent.state_dict())

    def cuda(self):
        self.agent.cuda()

    def save_models(self, path):
        th.save(self.agent.state_dict(), f"{path}/agent.th")

    def load_models(self, path):
        self.agent.load_state_dict(
            th.load(f"{path}/agent.th", map_location=lambda storage, loc: storage)
        )

    def _build_agents(self, input_shape):
        self.agent = agent_REGISTRY[self.args.agent](input_shape, self.args)

    def _build_inputs(self, batch, t):
        bs = batch.batch_size
        inputs = [batch["obs"][:, t]]
        if self.args.obs_last_action:
            if t == 0:
                inputs.append(th.zeros_like(batch["actions_onehot"][:, t]))
            else:
                inputs.append(batch["actions_onehot"][:, t - 1])
        if self.args.obs_agent_id:
            inputs.append(
                th.eye(self.n_agents, device=batch.device).unsqueeze(0).expand(bs, -1, -1)
            )
        return th.cat([x.reshape(bs, self.n_agents, -1) for x in inputs], dim=-1)

    def _get_input_shape(self, scheme):
        input_shape = scheme["obs"]["vshape"]
        if self.args.obs_last_action:
            input_shape += scheme["actions_onehot"]["vshape"][0]
        if self.args.obs_agent_id:
            input_shape += self.n_agents
        return input_shape


class ReversedInputMAC(BasicMAC):
    """Overrides what the agents see and nothing else: [id, time left, last action, observation]."""

    def _build_inputs(self, batch, t):
        bs = batch.batch_size
        inputs = []
        inputs.append(th.eye(self.n_agents, device=batch.device).unsqueeze(0).expand(bs, -1, -1))
        left = 1.0 - t / self.args.episode_limit
        inputs.append(th.full((bs, self.n_agents, 1), left, device=batch.device))
        if t == 0:
            inputs.append(th.zeros_like(batch["actions_onehot"][:, t]))
        else:
            inputs.append(batch["actions_onehot"][:, t - 1])
        inputs.append(batch["obs"][:, t])
        return th.cat([x.reshape(bs, self.n_agents, -1) for x in inputs], dim=-1)

    def _get_input_shape(self, scheme):
        return self.n_agents + 1 + scheme["actions_onehot"]["vshape"][0] + scheme["obs"]["vshape"]


class CentredMAC(BasicMAC):
    """Overrides forward with PyMARL's signature: values are centred over the available actions."""

    def forward(self, ep_batch, t, test_mode=False):
        agent_inputs = self._build_inputs(ep_batch, t)
        avail_actions = ep_batch["avail_actions"][:, t].float()
        agent_outs, self.hidden_states = self.agent(agent_inputs, self.hidden_states)
        agent_outs = agent_outs.view(ep_batch.batch_size, self.n_agents, -1)
        mean = (agent_outs * avail_actions).sum(-1, keepdim=True) / avail_actions.sum(
            -1, keepdim=True
        ).clamp(min=1)
        return agent_outs - mean
