"""The dashboard in a real browser: table, filter, live points, a run's page, a narrow screen, the
dark, the token. Skipped where Dash, Playwright or a Chromium is missing.
"""

import json
import os
import re
import subprocess
import sys
import time
from datetime import datetime, timezone
from pathlib import Path

import pytest
from result_fixtures import learning_curve, write_run

pytest.importorskip("dash")
pytest.importorskip("dash_ag_grid")
sync_api = pytest.importorskip("playwright.sync_api")

MAIN = Path(__file__).resolve().parents[2] / "src" / "main.py"
ROWS = "#table .ag-center-cols-container .ag-row"


def make_runs(root):
    """Six finished runs and a live one."""
    now = datetime.now(timezone.utc).replace(tzinfo=None)
    for name in ("qmix", "vdn"):
        for seed in range(3):
            config = {"name": name, "seed": seed, "lr": 0.001 * (1 + seed % 2), "t_max": 30_000}
            timing = [(1000 * k, "seconds", 3.0 * k) for k in range(31)]
            timing += [(1000 * k, "share_learning", 0.6) for k in range(31)]
            curve = learning_curve(30, {"qmix": 0.9, "vdn": 0.5}[name], seed)
            folder = write_run(root / name / "3m" / str(seed), curve, config, timing=timing)
            (folder / "cout.txt").write_text("the console\n")
    live = write_run(
        root / "s2q" / "8m" / "1",
        learning_curve(5, 0.7, 9),
        {"name": "s2q", "seed": 9, "t_max": 50_000, "env_args": {"map_name": "8m"}},
        timing=[(4000, "seconds", 40.0), (4000, "steps_per_second", 100.0)],
    )
    sacred = {
        "status": "RUNNING",
        "start_time": now.isoformat(),
        "heartbeat": now.isoformat(),
        "meta": {"command_line": ["--config=s2q", "--env-config=sc2sim", "with", "seed=9"]},
    }
    (live / "run.json").write_text(json.dumps(sacred))
    (live / "checkpoints" / "4000").mkdir(parents=True)
    return live


class Served:
    """A dashboard in a process of its own.

    Attributes:
        url: where it is, with the token if there is one.
        live: the folder of the run that trains.
    """

    def __init__(self, root, *options):
        self.live = make_runs(root)
        command = [sys.executable, str(MAIN), "dashboard", str(root), "--port", "0", *options]
        environment = {**os.environ, "PYTHONUNBUFFERED": "1"}
        self.process = subprocess.Popen(
            command, stdout=subprocess.PIPE, text=True, env=environment, cwd=root
        )
        said = self.process.stdout.readline()
        self.url = re.search(r"http://\S+", said).group()

    def append(self, key, value, t):
        with open(self.live / "metrics.jsonl", "a") as file:
            file.write(json.dumps({"t": t, "key": key, "value": value}) + "\n")

    def close(self):
        self.process.terminate()
        self.process.wait()
        self.process.stdout.close()


@pytest.fixture
def served(tmp_path):
    made = Served(tmp_path / "results")
    yield made
    made.close()


def row(page, name):
    """The table's row of the first run of an algorithm: its id."""
    cell = page.locator("#table .ag-pinned-left-cols-container .ag-row", has_text=name).first
    cell.wait_for()
    return cell.get_attribute("row-id")


def cell(page, run_id, column):
    return page.locator(f"{ROWS}[row-id='{run_id}'] [col-id='{column}']")


def choose(page, run_id):
    where = f"#table .ag-pinned-left-cols-container .ag-row[row-id='{run_id}']"
    page.locator(f"{where} .ag-checkbox-input").click()


def drawn(page, where="#curves"):
    """Names of the curves in the first panel, and how many points they have."""
    page.wait_for_selector(f"{where} .js-plotly-plot .scatterlayer .trace")
    return page.evaluate(
        "(where) => document.querySelector(where + ' .js-plotly-plot').data"
        ".filter((one) => one.name).map((one) => [one.name, one.x.length])",
        where,
    )


def test_table_filter_and_search(served, visit):
    page = visit(served.url)
    page.wait_for_selector(ROWS)
    assert page.locator(ROWS).count() == 7
    vdn = row(page, "vdn")
    assert cell(page, vdn, "map").inner_text() == "3m"
    assert cell(page, vdn, "status").inner_text() == "COMPLETED"
    assert re.fullmatch(r"\d+\.\d %", cell(page, vdn, "win_best").inner_text())
    sync_api.expect(page.locator("#counts")).to_contain_text("7 runs: 6 completed, 1 running")

    page.fill("#search", "s2q")
    sync_api.expect(page.locator(ROWS)).to_have_count(1)
    page.fill("#search", "")
    sync_api.expect(page.locator(ROWS)).to_have_count(7)
    page.locator("#table .ag-floating-filter input").nth(0).fill("vd")  # algorithm
    sync_api.expect(page.locator(ROWS)).to_have_count(3)
    page.locator("#table .ag-floating-filter input").nth(2).fill("2")  # seed
    sync_api.expect(page.locator(ROWS)).to_have_count(1)
    page.locator("#table .ag-floating-filter input").nth(0).fill("")
    page.locator("#table .ag-floating-filter input").nth(2).fill("")

    page.locator("#table .ag-header-cell[col-id='seed'] .ag-header-cell-label").click()
    page.locator("#table .ag-header-cell[col-id='seed'] .ag-header-cell-label").click()
    sync_api.expect(page.locator(f"{ROWS}[row-index='0'] [col-id='seed']")).to_have_text("9")

    page.locator("#columns").click()
    page.get_by_role("option", name="lr", exact=True).click()
    page.keyboard.press("Escape")
    sync_api.expect(page.get_by_role("columnheader", name="lr", exact=True)).to_be_visible()
    assert cell(page, vdn, "config:lr").inner_text() == "0.001"


def test_live_points_appear_within_five_seconds(served, visit):
    page = visit(served.url)
    run_id = row(page, "s2q")
    choose(page, run_id)
    page.locator("#search").fill("s2")  # what was typed and chosen stays
    ((name, before),) = drawn(page)
    assert name.startswith("s2q, seed 9")
    assert cell(page, run_id, "eta").inner_text() != ""
    served.append("test_battle_won_mean", 1.0, 30_000)
    start = time.monotonic()
    sync_api.expect(cell(page, run_id, "steps")).to_have_text("30,000", timeout=10_000)
    page.wait_for_function(
        "(n) => document.querySelector('#curves .js-plotly-plot').data[0].x.length === n",
        arg=before + 1,
        timeout=10_000,
    )
    assert time.monotonic() - start < 5
    assert cell(page, run_id, "win_best").inner_text() == "100.0 %"
    assert page.locator("#search").input_value() == "s2"
    assert page.locator(ROWS).count() == 1


def test_curves_and_differences_of_chosen_runs(served, visit):
    page = visit(served.url)
    page.wait_for_selector(ROWS)
    page.fill("#search", "3m")
    sync_api.expect(page.locator(ROWS)).to_have_count(6)
    page.locator("#table .ag-header-select-all .ag-checkbox-input").click()
    sync_api.expect(page.locator("#differences .ag-pinned-left-cols-container")).to_contain_text(
        "lr"
    )
    assert len(drawn(page)) == 6
    page.locator("#mode label").nth(1).click()
    page.wait_for_function(
        "() => document.querySelector('#curves .js-plotly-plot').data"
        ".some((one) => one.name === 'qmix (3 runs)')"
    )
    assert {name for name, _ in drawn(page)} == {"qmix (3 runs)", "vdn (3 runs)"}


def test_the_page_of_a_run(served, visit):
    page = visit(served.url)
    run_id = row(page, "s2q")
    page.locator("#table a", has_text="s2q").click()
    page.wait_for_url(f"**/run/{run_id}")
    page.wait_for_selector("#run-head h2")
    assert "s2q on 8m" in page.locator("#run-head").inner_text()
    page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    page.locator("#run-commands .copy").first.click()
    copied = ""
    end = time.monotonic() + 5
    while not copied and time.monotonic() < end:
        page.wait_for_timeout(50)
        copied = page.evaluate("navigator.clipboard.readText()")
    start = "python src/main.py --config=s2q --env-config=sc2sim with seed=9"
    assert copied == f"{start} resume={served.live}"
    assert "4,000" in page.locator("#checkpoints").inner_text()
    assert drawn(page, "#run-curves")
    (served.live / "cout.txt").write_text("a new line of output\n")
    served.append("test_battle_won_mean", 0.5, 20_000)
    sync_api.expect(page.locator("#console")).to_contain_text("a new line", timeout=10_000)
    sync_api.expect(page.locator("#run-head")).to_contain_text("20,000", timeout=10_000)
    page.locator("#settings").scroll_into_view_if_needed()
    sync_api.expect(page.locator("#settings")).to_contain_text("env_args.map_name")
    page.get_by_text("← All runs").click()
    page.wait_for_selector(ROWS)
    assert page.locator(ROWS).count() == 7


def test_a_run_s_page_opens_by_its_address(served, visit):
    run_id = row(visit(served.url), "vdn")
    page = visit(f"{served.url}run/{run_id}")
    page.wait_for_selector("#run-head h2")
    assert "vdn on 3m" in page.locator("#run-head").inner_text()
    assert drawn(page, "#run-curves")
    assert not page.locator("#runs").is_visible()


@pytest.mark.parametrize("path", ["", "run/"])
def test_a_phone_s_width(served, visit, path):
    run_id = row(visit(served.url), "qmix")
    url = f"{served.url}{path}{run_id if path else ''}"
    page = visit(url, viewport={"width": 390, "height": 844})
    if path:
        drawn(page, "#run-curves")
    else:
        choose(page, run_id)
        drawn(page)
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    wide = page.evaluate(
        "[...document.querySelectorAll('main:not([style*=none]) > *, .graph')]"
        ".filter((one) => one.getBoundingClientRect().right > 390.5).length"
    )
    assert wide == 0


def test_dark_and_light(served, visit):
    page = visit(served.url, color_scheme="dark")
    run_id = row(page, "qmix")
    choose(page, run_id)
    drawn(page)

    def look():
        return page.evaluate(
            "[getComputedStyle(document.body).backgroundColor,"
            " getComputedStyle(document.querySelector('#table .ag-row')).color,"
            " document.querySelector('#curves .js-plotly-plot').layout.font.color]"
        )

    assert look()[0] == "rgb(22, 27, 34)"
    assert brightness(look()[1]) > 0.6
    assert look()[2] == "#e4e7eb"
    page.locator("#theme-button").click()
    page.wait_for_function(
        "() => document.querySelector('#curves .js-plotly-plot').layout.font.color === '#1f2933'"
    )
    assert look()[0] == "rgb(255, 255, 255)"
    assert brightness(look()[1]) < 0.4
    page.reload()
    row(page, "qmix")
    assert page.evaluate("document.documentElement.dataset.theme") == "light"


def brightness(colour):
    numbers = [float(x) for x in re.findall(r"[\d.]+", colour)[:3]]
    return sum(numbers) / 3 / (1 if max(numbers) <= 1 else 255)


def test_the_token_opens_the_page_once_for_all(tmp_path, visit):
    served = Served(tmp_path / "results", "--token", "a-long-token")
    try:
        page = visit(served.url)
        page.wait_for_selector(ROWS)
        assert "token" not in page.url
        page.reload()
        page.wait_for_selector(ROWS)
    finally:
        served.close()
