"""Runners: collect episodes from a batch of environments."""

from runners.collector import Collector
from utils.registry import Registry

REGISTRY = Registry("runner")
register = REGISTRY.register


@register("episode")
class EpisodeRunner(Collector):
    """One environment in this process."""

    backend = "native"


@register("parallel")
class ParallelRunner(Collector):
    """`batch_size_run` environments, one worker process each."""

    backend = "subproc"


@register("vector")
class VectorRunner(Collector):
    """`batch_size_run` environments in this process, natively batched where the environment can."""

    backend = "native"


@register("ray")
class RayRunner(Collector):
    """`batch_size_run` environments, a process each, on the nodes of a Ray cluster."""

    backend = "ray"
