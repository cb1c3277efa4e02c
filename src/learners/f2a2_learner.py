"""Where users of PyMARL look for the learner; it lives in `learners/f2a2/`."""

from learners.f2a2.learner import F2A2Learner

__all__ = ["F2A2Learner"]
