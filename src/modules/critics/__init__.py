"""Critics: networks that value states or joint actions for actor-critic learners."""

from utils.registry import Registry

REGISTRY = Registry("critic")
register = REGISTRY.register
