"""The form of an experiment: what is read, what is refused and in which words."""

import pytest
from experiments import spec
from experiments.__main__ import main
from experiments.spec import load

from launch.spec import parse_seeds
from utils.errors import ConfigError, UserError

WHOLE = """# What it is about
# and more
methods:
  QMIX: qmix
  VDN: {algorithm: vdn, settings: {lr: 0.1, env_args: {penalty: 2.0}}, optional: true}
tasks:
  hunt:
    environment: predator_prey
    settings: {lr: 0.2, t_max: 200, env_args.penalty: 0.5}
    per_method: {QMIX: {lr: 0.3}}
  game: {environment: matrix_game, methods: [QMIX], seeds: [7], optional: true}
seeds: 1-2
settings: {t_max: 100, gamma: 0.9}
times_per_run: {test_interval: 20, log_interval: 1000}
metrics: {return_mean: Return}
paper: {source: Somebody, values: {QMIX: {hunt: 3}}}
"""


@pytest.fixture
def path(tmp_path):
    path = tmp_path / "whole.yaml"
    path.write_text(WHOLE)
    return path


def test_jobs_of_an_experiment(path):
    experiment = load(str(path))
    assert (experiment.name, experiment.about, experiment.results) == (
        "whole", "What it is about", "whole",
    )  # fmt: skip
    assert [str(job) for job in experiment.jobs()] == [
        "qmix predator_prey t_max=200 gamma=0.9 lr=0.3 env_args.penalty=0.5 test_interval=10 "
        "log_interval=1 seed=1",
        "vdn predator_prey t_max=200 gamma=0.9 lr=0.1 env_args.penalty=2.0 test_interval=10 "
        "log_interval=1 seed=1",
        "qmix matrix_game t_max=100 gamma=0.9 test_interval=5 log_interval=1 seed=7",
        "qmix predator_prey t_max=200 gamma=0.9 lr=0.3 env_args.penalty=0.5 test_interval=10 "
        "log_interval=1 seed=2",
        "vdn predator_prey t_max=200 gamma=0.9 lr=0.1 env_args.penalty=2.0 test_interval=10 "
        "log_interval=1 seed=2",
    ]
    assert experiment.paper.value("QMIX", "hunt") == 3.0
    assert experiment.paper.value("VDN", "hunt") is None
    experiment.check()


def test_a_part_of_an_experiment(path):
    experiment = load(str(path))
    assert (experiment.usual_methods, experiment.usual_tasks) == (["QMIX"], ["hunt"])
    part = experiment.select(methods=["VDN"], seeds=[4], settings={"t_max": 60, "lr": 1.0})
    assert [str(job) for job in part.jobs()] == [
        "vdn predator_prey t_max=60 gamma=0.9 lr=1.0 env_args.penalty=2.0 test_interval=3 "
        "log_interval=1 seed=4"
    ]
    with pytest.raises(UserError, match="whole: none of these methods is trained on these tasks"):
        experiment.select(methods=["VDN"], tasks=["game"])
    with pytest.raises(UserError, match=r"whole has no method 'qmix'; did you mean 'QMIX'\?|known"):
        experiment.select(methods=["qmix"])


def test_a_child_differs_in_what_it_says(path, tmp_path, monkeypatch):
    monkeypatch.setattr(spec, "FOLDER", tmp_path)
    (tmp_path / "_child.yaml").write_text(
        "# Of its own\ninherits: whole\nmethods: {QMIX: {settings: {lr: 0.4}}, IQL: iql}\n"
        "tasks: {hunt: {per_method: {QMIX: {}}}}\nsettings: {gamma: 0.8}\n"
    )
    (tmp_path / "grandchild.yaml").write_text("inherits: _child\ntasks: {game: {seeds: [1]}}\n")
    assert spec.names() == ["grandchild", "whole"]
    child, parent = load("grandchild"), load("whole")
    assert list(child.methods) == ["QMIX", "VDN", "IQL"]
    assert child.methods["QMIX"].algorithm == "qmix"
    assert child.methods["QMIX"].settings == {"lr": 0.4}
    assert child.settings == {"t_max": 100, "gamma": 0.8}
    assert child.tasks["game"].seeds == (1,)
    assert child.tasks["hunt"].per_method == parent.tasks["hunt"].per_method
    (tmp_path / "whole.yaml").write_text("inherits: grandchild")
    with pytest.raises(
        ConfigError, match="must not inherit from itself: whole -> grandchild -> _child -> whole"
    ):
        load("whole")


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("methods:", "method:", "unknown key 'method'; did you mean 'methods'?"),
        ("algorithm: vdn", "algoritm: vdn", "methods.VDN.unknown key"),
        ("optional: true}\ntasks", "optional: 3}\ntasks", "methods.VDN.optional must be True or"),
        ("QMIX: qmix", "QMIX: 3", "methods.QMIX must be a mapping, got 3"),
        ("environment: matrix_game,", "", "tasks.game.environment is missing"),
        ("[QMIX]", "[QMX]", "tasks.game: no method 'QMX'; did you mean 'QMIX'?"),
        ("QMIX: {lr: 0.3}", "QMIX: 3", "tasks.hunt.per_method.QMIX must be a mapping, got 3"),
        ("seeds: 1-2", "seeds: one", "seeds are numbers and ranges such as 11-20, got 'one'"),
        ("seeds: 1-2", "", "seeds is missing"),
        ("{t_max: 100, gamma: 0.9}", "3", "settings must be a mapping, got 3"),
        ("interval: 20", "interval: 0", "times_per_run.test_interval must be at least 1, got 0"),
        ("{hunt: 3}", "{hunt: three}", "paper.values.QMIX.hunt must be a number, got 'three'"),
        ("{hunt: 3}", "{hnt: 3}", "paper.values.QMIX: no task 'hnt'; did you mean 'hunt'?"),
        ("# and more", "figures: shifting_payof", "did you mean 'shifting_payoff'?"),
        ("# and more", "inherits: starcaft", "inherits: unknown file 'starcaft'; did you mean"),
        ("# and more", "seeds: [1", "line"),
    ],
)  # fmt: skip
def test_a_mistake_in_the_file_is_one_line(path, old, new, message):
    assert old in WHOLE
    path.write_text(WHOLE.replace(old, new, 1))
    with pytest.raises(ConfigError) as caught:
        load(str(path))
    assert message in str(caught.value)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["run", "starcaft"], "unknown experiment 'starcaft'; did you mean 'starcraft'?"),
        (["run", "starcraft", "--tasks", "5m_v_6m"], "no task '5m_v_6m'; did you mean '5m_vs_6m'?"),
        (["run", "starcraft", "--jobs", "-1"], "--jobs must be at least 0, got -1"),
        (["run", "starcraft", "--seeds", "a"], "--seeds are numbers and ranges such as 11-20"),
        (["run", "starcraft", "with", "lr"], "cannot read 'lr': expected key=value"),
        (["run", "starcraft", "with", "t_mx=1"], "unknown key 't_mx'; did you mean 't_max'? (qmix"),
        (["run", "starcraft", "--t-max", "x"], "argument --t-max: invalid int value"),
        (["report", "battle"], "battle is a program"),
        ([], "the following arguments are required: command"),
    ],
)
def test_a_mistake_on_the_command_line_is_one_line(arguments, message):
    with pytest.raises(UserError) as caught:
        main(arguments)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_seeds():
    assert parse_seeds([2, "11-13", "2"], "seeds") == (2, 11, 12, 13)
    for wrong in (["3-1"], ["1-"], [-1], []):
        with pytest.raises(ConfigError, match="seeds"):
            parse_seeds(wrong, "seeds")
