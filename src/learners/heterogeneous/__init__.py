"""Learners of agents that share no weights and learn one after the other: HAPPO, HATRPO, HASAC."""
