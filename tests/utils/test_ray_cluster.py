"""What work asks of a node of a Ray cluster, and what is said where Ray is missing."""

import socket
import sys
from types import SimpleNamespace

import pytest

import nodes
from envs import make_vector_env
from utils.config import build_config
from utils.errors import ConfigError, MissingPackage, UserError
from utils.ray_cluster import Demand, connect

WHERE = {"address": "", "envs_per_actor": 2, "resources": {}, "patience": 1.0}


def test_a_missing_package_is_one_line(monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(MissingPackage) as caught:
        make_vector_env("predator_prey", {}, 2, 0, "ray", "train_env", ray=WHERE)
    assert str(caught.value) == "runner=ray needs Ray: pip install -r requirements-ray.txt"
    with pytest.raises(MissingPackage, match="doctor --cluster needs Ray: pip install -r"):
        nodes.main(["--cluster"])


@pytest.mark.parametrize("address", ["127.0.0.1:{port}", "127.0.0.1:99999", "no.such.host:6379"])
def test_an_address_where_nobody_listens_is_one_line(address, monkeypatch):
    package = SimpleNamespace(is_initialized=lambda: False, init=lambda **options: 1 / 0)
    monkeypatch.setitem(sys.modules, "ray", package)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = address.format(port=free.getsockname()[1])
        with pytest.raises(UserError, match=f"no Ray cluster at {address}: "):
            connect("runner: ray", address)


@pytest.mark.parametrize(("mode", "said"), [(None, True), ("disabled", True), ("token", False)])
def test_a_cluster_that_refuses_may_ask_for_a_token(mode, said, monkeypatch):
    def init(**options):
        raise ConnectionError("Failed to connect\nand more")

    package = SimpleNamespace(is_initialized=lambda: False, init=init)
    monkeypatch.setitem(sys.modules, "ray", package)
    monkeypatch.delenv("RAY_AUTH_MODE", raising=False)
    if mode is not None:
        monkeypatch.setenv("RAY_AUTH_MODE", mode)
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        listening.listen()
        with pytest.raises(UserError) as caught:
            connect("runner: ray", f"127.0.0.1:{listening.getsockname()[1]}")
    assert "Failed to connect" in str(caught.value)
    assert "and more" not in str(caught.value)
    assert ("set RAY_AUTH_MODE=token" in str(caught.value)) is said


def test_what_several_environments_ask():
    demand = Demand(cores=0.5, memory=2.0, named={"sc2": 1.0}).times(4)
    assert demand.amounts() == {"CPU": 2.0, "memory": 8e9, "sc2": 4.0}
    assert str(demand) == "CPU 2, memory 8 GB, sc2 4"
    options = demand.options()
    assert (options["num_cpus"], options["num_gpus"], options["memory"]) == (2.0, 0.0, 8e9)
    assert options["resources"] == {"sc2": 4.0}
    assert Demand().amounts() == {}
    assert "memory" not in Demand().options()


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("ray.resources.sc2=0", "ray.resources must be a number above 0 for each name"),
        ("ray.resources.sc2=many", "ray.resources must be a number above 0 for each name"),
        ("ray.envs_per_actor=0", "ray.envs_per_actor must be at least 1"),
        ("ray.patience=0", "ray.patience must be greater than 0"),
        ("ray.adress=auto", "unknown key 'ray.adress'; did you mean 'ray.address'"),
    ],
)
def test_a_mistake_in_the_settings_is_one_line(setting, message):
    with pytest.raises(ConfigError) as caught:
        build_config("qmix", "matrix_game", [setting])
    assert message in str(caught.value)


def test_settings_from_the_command_line():
    settings = ["ray.resources.sc2=1", "ray.resources.cores=0.5", "ray.address=auto"]
    config = build_config("qmix", "matrix_game", settings)
    assert config["ray"]["resources"] == {"sc2": 1, "cores": 0.5}
    assert config["ray"]["address"] == "auto"
