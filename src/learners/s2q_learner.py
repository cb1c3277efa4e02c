"""Where users of PyMARL look for the learner; it lives in `learners/s2q/`."""

from learners.s2q.learner import S2QLearner

__all__ = ["S2QLearner"]
