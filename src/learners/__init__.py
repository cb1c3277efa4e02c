"""Learners: losses and updates, one file per algorithm family."""

from learners.dac_learner import DACLearner
from learners.i2q_learner import I2QLearner
from learners.max_q_learner import MaxQLearner
from learners.q_learner import QLearner
from learners.qtran_learner import QTranLearner
from learners.s2q_learner import S2QLearner
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
register("dac_learner")(DACLearner)
register("i2q_learner")(I2QLearner)
