"""Learners: losses and updates, one file per algorithm family."""

from learners.a2c_learner import A2CLearner
from learners.coma_learner import COMALearner
from learners.dac.learner import DACLearner
from learners.f2a2.learner import F2A2Learner
from learners.i2q_learner import I2QLearner
from learners.lola_learner import LOLALearner
from learners.ma_ac_learner import NetworkedActorCriticLearner
from learners.maddpg_learner import MADDPGLearner
from learners.mamt.maac import MAACLearner
from learners.mamt.mamt import MAMTLearner
from learners.mamt.mamt_ppo import MAMTPPOLearner
from learners.max_q_learner import MaxQLearner
from learners.ppo_learner import AttentionPPOLearner, PPOLearner
from learners.pqn_learner import PQNLearner
from learners.q_learner import QLearner
from learners.qtran_learner import QTranLearner
from learners.s2q.learner import S2QLearner
from utils.registry import Registry

REGISTRY = Registry("learner")
register = REGISTRY.register

register("q_learner")(QLearner)
# PyMARL2's names for what is one family here: the mixer and the returns are set by keys.
register("nq_learner")(QLearner)
register("dmaq_qatten_learner")(QLearner)
register("max_q_learner")(MaxQLearner)
register("qtran_learner")(QTranLearner)
register("s2q_learner")(S2QLearner)
register("pqn_learner")(PQNLearner)
register("dac_learner")(DACLearner)
register("i2q_learner")(I2QLearner)
register("lola_learner")(LOLALearner)
register("maddpg_learner")(MADDPGLearner)
register("ppo_learner")(PPOLearner)
register("a2c_learner")(A2CLearner)
register("ma_ppo_learner")(AttentionPPOLearner)
register("maac_learner")(MAACLearner)
register("mamt_learner")(MAMTLearner)
register("f2a2_learner")(F2A2Learner)
register("mamt_ppo_learner")(MAMTPPOLearner)
register("coma_learner")(COMALearner)
register("ma_ac_learner")(NetworkedActorCriticLearner)
