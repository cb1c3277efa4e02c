"""Where users of PyMARL look for the learner; it lives in `learners/dac/`."""

from learners.dac.learner import DACLearner

__all__ = ["DACLearner"]
