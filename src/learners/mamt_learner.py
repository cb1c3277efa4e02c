"""Where users of PyMARL look for the learner; it lives in `learners/mamt/`."""

from learners.mamt.mamt import MAMTLearner

__all__ = ["MAMTLearner"]
