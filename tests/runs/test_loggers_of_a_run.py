"""One run with all loggers, their real packages included: interrupted by force, resumed, filmed.

Each package reads back what it has: TensorBoard's own reader, W&B's own file format, MLflow's
client. Nothing leaves this machine.
"""

import json
import shutil

import pytest

import utils.loggers as loggers
from main import main
from utils.elsewhere import recall

pytestmark = pytest.mark.slow  # half a minute: three large packages, four runs

SETTINGS = (
    *("t_max=600", "seed=1", "test_interval=100", "test_nepisode=4", "log_interval=100"),
    *("runner_log_interval=100", "learner_log_interval=100", "batch_size=8", "use_cuda=False"),
    *("save_model_interval=200", "rnn_hidden_dim=8", "env_args.episode_limit=20"),
)
LOGGERS = "loggers=[tensorboard,wandb,mlflow]"


def run(results, *settings):
    words = ["--config=vdn", "--env-config=predator_prey", "with", *SETTINGS]
    return main([*words, f"local_results_path={results}", *settings])


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """The folder of the results; its run 1 has lost its last checkpoint and was resumed."""
    for name in loggers.LOGGERS:
        pytest.importorskip(name)
    with pytest.MonkeyPatch.context() as patch:
        for name in ("WANDB_API_KEY", "WANDB_MODE", "MLFLOW_TRACKING_URI", "WANDB_PROJECT"):
            patch.delenv(name, raising=False)
        patch.setattr(loggers, "_END_WAIT", 120)  # a busy machine takes its time
        results = tmp_path_factory.mktemp("results")
        patch.setenv("HOME", str(results))  # W&B keeps its keys there
        assert run(results, LOGGERS) == 0
        folder = results / "sacred/vdn/predator_prey/1"
        newest = max((folder / "checkpoints").iterdir(), key=lambda path: int(path.name))
        shutil.rmtree(newest)
        # From there on the figures are others, as they are on a GPU.
        assert run(results, LOGGERS, "t_max=700", f"resume={folder}") == 0
        film = ("evaluate=True", "render=True", f"checkpoint_path={folder / 'checkpoints'}")
        assert run(results, LOGGERS, *film) == 0
        assert run(results, "t_max=700") == 0
    return results


def series(results, number, key):
    """(steps, values) in `metrics.jsonl`."""
    file = results / f"sacred/vdn/predator_prey/{number}/metrics.jsonl"
    entries = [json.loads(line) for line in file.read_text().splitlines()]
    return [(entry["t"], entry["value"]) for entry in entries if entry["key"] == key]


def test_the_loggers_do_not_change_the_run(runs):
    for key in ("loss_td", "test_return_mean", "test_returns"):
        assert series(runs, 1, key) == series(runs, 3, key)


@pytest.fixture(scope="module")
def events(runs):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    everything = dict.fromkeys(("scalars", "images", "histograms", "tensors"), 0)

    def read(number):
        folder = runs / f"sacred/vdn/predator_prey/{number}/tb"
        read = EventAccumulator(str(folder), size_guidance=everything)
        return read.Reload()

    return read


def test_tensorboard_has_each_point_once(runs, events):
    for key in ("loss_td", "test_return_mean", "epsilon"):
        points = [(event.step, event.value) for event in events(1).Scalars(key)]
        assert points == [(t, pytest.approx(value)) for t, value in series(runs, 1, key)]
    timing = (runs / "sacred/vdn/predator_prey/1/timing.jsonl").read_text()
    assert len(events(1).Scalars("seconds")) == timing.count('"seconds"')


def test_tensorboard_draws_the_evaluation_returns_as_distributions(runs, events):
    drawn = [(event.step, event.histogram_value) for event in events(1).Histograms("test_returns")]
    wanted = series(runs, 1, "test_returns")
    assert [t for t, _ in drawn] == [t for t, _ in wanted]
    for (_, histogram), (_, values) in zip(drawn, wanted, strict=True):
        assert (histogram.num, histogram.sum) == (len(values), pytest.approx(sum(values)))


def test_tensorboard_has_the_settings_as_hyper_parameters(events):
    from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData

    plugins = events(1).PluginTagToContent("hparams")
    read = {tag: HParamsPluginData.FromString(content) for tag, content in plugins.items()}
    started = read["_hparams_/session_start_info"].session_start_info.hparams
    assert started["lr"].number_value == 0.001
    assert started["env_args.episode_limit"].number_value == 20
    assert started["mixer"].string_value == "vdn"
    shown = read["_hparams_/experiment"].experiment.metric_infos
    assert "test_return_mean" in [metric.name.tag for metric in shown]
    assert "_hparams_/session_end_info" in read


def test_tensorboard_shows_the_film(runs, events):
    (image,) = events(2).Images("evaluation")
    film = (runs / "sacred/vdn/predator_prey/2/evaluation.gif").read_bytes()
    assert image.encoded_image_string == film
    assert (image.width, image.height) > (10, 10)


def wandb_files(folder):
    """(id, settings of the run, [(step, row)]) of every offline folder, oldest first."""
    from wandb.proto import wandb_internal_pb2
    from wandb.sdk.internal.datastore import DataStore

    for file in sorted(folder.glob("wandb/offline-run-*/run-*.wandb")):
        store, run, rows = DataStore(), None, []
        store.open_for_scan(str(file))
        while (data := store.scan_data()) is not None:
            record = wandb_internal_pb2.Record.FromString(data)
            if record.WhichOneof("record_type") == "run":
                run = record.run
            elif record.WhichOneof("record_type") == "history":
                row = {
                    item.key or ".".join(item.nested_key): json.loads(item.value_json)
                    for item in record.history.item
                }
                rows.append((record.history.step.num, row))
        yield run, rows


def test_the_newest_folder_of_wandb_has_the_whole_run(runs):
    folder = runs / "sacred/vdn/predator_prey/1"
    (first, _), (second, rows) = wandb_files(folder)
    assert first.run_id == second.run_id == recall(folder, "wandb")["id"]
    names = (second.display_name, second.run_group, second.project)
    assert names == ("vdn/predator_prey/1", "vdn/predator_prey", "murmuration")
    for key in ("loss_td", "test_return_mean", "episode"):
        got = [(step, row[key]) for step, row in rows if key in row]
        assert got == [(t, pytest.approx(value)) for t, value in series(runs, 1, key)]
    drawn = [step for step, row in rows if "test_returns._type" in row]
    assert drawn == [t for t, _ in series(runs, 1, "test_returns")]


def test_wandb_has_the_film(runs):
    ((_, rows),) = wandb_files(runs / "sacred/vdn/predator_prey/2")
    assert any(row.get("evaluation._type") == "video-file" for _, row in rows)


def test_mlflow_has_the_run_once_and_each_point_once(runs):
    from mlflow import MlflowClient

    client = MlflowClient(f"sqlite:///{runs / 'mlflow.db'}")
    experiment = client.get_experiment_by_name("murmuration")
    found = {run.info.run_name: run for run in client.search_runs([experiment.experiment_id])}
    assert sorted(found) == ["vdn/predator_prey/1", "vdn/predator_prey/2"]
    run = found["vdn/predator_prey/1"]
    assert run.info.run_id == recall(runs / "sacred/vdn/predator_prey/1", "mlflow")["id"]
    assert run.info.status == "FINISHED"
    assert run.data.params["env_args.episode_limit"] == "20"
    for key in ("loss_td", "test_return_mean"):
        points = [(one.step, one.value) for one in client.get_metric_history(run.info.run_id, key)]
        steps = [t for t, _ in points]
        assert sorted(set(steps)) == steps
        assert set(points) >= set(series(runs, 1, key))
    (film,) = client.list_artifacts(found["vdn/predator_prey/2"].info.run_id)
    assert film.path == "evaluation.gif"
