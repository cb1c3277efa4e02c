"""What Sacred's observer for MongoDB writes, as Omniboard reads it (Omniboard 2.16: server/models/
runs.js, server/models/metrics.js, server/runs.response.js, web/src/components/MetricsPlotView).
"""

from datetime import datetime, timedelta

import pytest

pymongo = pytest.importorskip("pymongo")
pytest.importorskip("mongomock")

from mongo_stand_in import serving  # noqa: E402

from utils.elsewhere import recall  # noqa: E402
from utils.observers import RunFolder, make_observers  # noqa: E402

BEGAN = datetime(2026, 11, 30, 12, 0, 0)


@pytest.fixture
def server():
    with serving() as served:
        yield served


@pytest.fixture
def database(server):
    with pymongo.MongoClient(*server.server_address) as client:
        yield client["sacred"]


def begin(server, folder, run_dir=None, at=BEGAN):
    """A run that has begun, in its folder and in the database; (folder's observer, database's)."""
    host, port = server.server_address
    options = {"mongo": {"url": f"mongodb://{host}:{port}", "db_name": "sacred"}}
    files = RunFolder(folder, run_dir)
    (observer,) = make_observers({"observers": options, "local_results_path": folder}, files)
    event = {
        "ex_info": {"name": "murmuration", "base_dir": str(folder), "sources": []},
        "command": "train",
        "host_info": {"hostname": "here"},
        "start_time": at,
        "config": {"name": "qmix", "env_args": {"map_name": "3m"}, "seed": 1},
        "meta_info": {"options": {}},
    }
    run_id = files.started_event(**event, _id=None)
    observer.started_event(**event, _id=run_id)
    return files, observer


def beat(observer, info, seconds=10):
    at = BEGAN + timedelta(seconds=seconds)
    observer.heartbeat_event(info=info, captured_out="said", beat_time=at, result=None)


def end(observer):
    observer.completed_event(stop_time=BEGAN + timedelta(minutes=1), result=7.5)


def curves(database, run_id=1):
    """What Omniboard draws: it finds metrics by the run's number, or by `info.metrics`."""
    run = database.runs.find_one({"_id": run_id})
    links = {link["name"]: link["id"] for link in run["info"]["metrics"]}
    found = {}
    for metric in database.metrics.find({"run_id": run_id}):
        assert links.pop(metric["name"]) == str(metric["_id"])
        found[metric["name"]] = (metric["steps"], metric["values"])
        assert [type(time) for time in metric["timestamps"]] == [datetime] * len(metric["steps"])
    assert not links, "links to metrics that are not there"
    return found


def test_a_run_has_the_fields_that_omniboard_reads(server, database, tmp_path):
    _, observer = begin(server, tmp_path)
    beat(observer, {"a": [1.0], "a_T": [10]})
    end(observer)
    (run,) = database.runs.find()
    assert (run["_id"], type(run["_id"])) == (1, int)  # its model wants a number
    assert run["experiment"]["name"] == "murmuration"
    assert run["host"]["hostname"] == "here"
    assert (run["command"], run["status"], run["result"]) == ("train", "COMPLETED", 7.5)
    assert run["heartbeat"] - run["start_time"] == timedelta(seconds=10)
    assert run["config"]["env_args"]["map_name"] == "3m"
    assert (run["captured_out"], run["format"]) == ("said", "MongoObserver-0.7.0")
    assert run["artifacts"] == []


def test_curves_grow_with_each_heartbeat(server, database, tmp_path):
    _, observer = begin(server, tmp_path)
    info = {"a": [1.0], "a_T": [10], "note": "not a series", "b": [2.0]}
    beat(observer, info)
    info["a"].append(None)  # was NaN
    info["a_T"].append(20)
    info.update(c=[3.0], c_T=[20])
    beat(observer, info)
    beat(observer, info)
    end(observer)
    assert curves(database) == {"a": ([10, 20], [1.0, None]), "c": ([20], [3.0])}


def test_a_run_shorter_than_a_heartbeat_has_its_curves(server, database, tmp_path):
    _, observer = begin(server, tmp_path)
    beat(observer, {"a": [1.0, 2.0], "a_T": [10, 20]})
    end(observer)
    assert curves(database) == {"a": ([10, 20], [1.0, 2.0])}


def test_what_a_plug_in_logs_with_sacred_is_a_curve_too(server, database, tmp_path):
    _, observer = begin(server, tmp_path)
    own = {"mine": {"values": [1.5], "steps": [3], "timestamps": [BEGAN]}}
    observer.log_metrics(metrics_by_name=own, info={})
    beat(observer, {"a": [1.0], "a_T": [10]})
    end(observer)
    assert curves(database) == {"mine": ([3], [1.5]), "a": ([10], [1.0])}


def test_a_resumed_run_goes_on_under_its_number_without_doubled_points(server, database, tmp_path):
    files, observer = begin(server, tmp_path)
    own = {"mine": {"values": [1.5], "steps": [3], "timestamps": [BEGAN]}}
    observer.log_metrics(metrics_by_name=own, info={})
    beat(observer, {"a": [1.0, 2.0, 3.0], "a_T": [10, 20, 30], "b": [5.0], "b_T": [10]})
    observer.failed_event(fail_time=BEGAN + timedelta(seconds=30), fail_trace=["gone"])
    begin(server, tmp_path)[1].completed_event(stop_time=BEGAN, result=None)  # another run
    assert recall(files.path, "mongo") == {"id": 1}

    later = BEGAN + timedelta(hours=1)
    _, again = begin(server, tmp_path, files.path, later)
    (before,) = database.runs.find({"_id": 1})
    assert (before["status"], before["stop_time"], before["fail_trace"]) == ("RUNNING", None, None)
    info = {"a": [1.0, 2.5], "a_T": [10, 20], "b": [5.0], "b_T": [10]}
    beat(again, info, seconds=3700)
    info["a"].append(3.5)
    info["a_T"].append(30)
    beat(again, info)
    end(again)
    assert curves(database) == {
        "mine": ([3], [1.5]),
        "a": ([10, 20, 30], [1.0, 2.5, 3.5]),
        "b": ([10], [5.0]),
    }
    (run,) = database.runs.find({"_id": 1})
    assert (run["start_time"], run["status"]) == (BEGAN, "COMPLETED")
    assert database.runs.count_documents({}) == 2


def test_a_run_that_the_database_has_lost_is_recorded_anew(server, database, tmp_path):
    files, observer = begin(server, tmp_path)
    end(observer)
    database.runs.delete_many({})
    database.runs.insert_one({"_id": 6})
    _, again = begin(server, tmp_path, files.path)
    beat(again, {"a": [1.0], "a_T": [10]})
    end(again)
    assert recall(files.path, "mongo") == {"id": 7}
    assert curves(database, 7) == {"a": ([10], [1.0])}


def test_the_stand_in_refuses_what_it_does_not_know(server, database):
    with pytest.raises(pymongo.errors.OperationFailure, match="Refused"):
        database.command("mapReduce", "runs")
    assert ("mapReduce", False) in server.commands
