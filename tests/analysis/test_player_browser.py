"""The player in a real browser: step, seek, play, pause, speed, agents, another episode, a phone's
width, the dark. Skipped where Dash, Playwright or a Chromium is missing.
"""

import re
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from policy_fixtures import write_policy

from analysis.dashboard.player import make_app
from analysis.dashboard.server import Address
from playing import Player
from policies import find_policy

pytest.importorskip("dash")
pytest.importorskip("dash_ag_grid")
sync_api = pytest.importorskip("playwright.sync_api")
MAIN = Path(__file__).resolve().parents[2] / "src" / "main.py"
STEPS = 12


@pytest.fixture(scope="module")
def policy(tmp_path_factory):
    folder = tmp_path_factory.mktemp("policy") / "run"
    settings = (f"env_args.episode_limit={STEPS}", "env_args.n_predators=3", "encoder_hidden_dim=8")
    write_policy(folder, "s2q", "predator_prey", *settings)
    return folder


@pytest.fixture(scope="module")
def episodes(policy):
    """The first two episodes, played here."""
    with Player(find_policy(policy)) as player:
        return [player.record(number) for number in (0, 1)]


@pytest.fixture(scope="module")
def url(policy):
    """The page, served by a thread of this process."""
    with Player(find_policy(policy)) as player, Address("127.0.0.1", 0, None) as place:
        server = place.server(make_app(player.record).server)
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield place.url
        server.shutdown()
        thread.join()
        server.server_close()


def opened(visit, url, **look):
    page = visit(url, **look)
    page.wait_for_selector("#actions table")
    page.wait_for_selector("#curves .scatterlayer .trace")
    return page


def step(page, number):
    sync_api.expect(page.locator("#counts")).to_have_text(f"step {number} of {STEPS}")


def taken(page):
    """The action that is marked as done."""
    return page.locator("#actions tr.taken th").inner_text().removeprefix("● ")


def test_steps_are_those_of_the_episode(url, visit, episodes):
    page, episode = opened(visit, url), episodes[0]
    assert "s2q on predator_prey" in page.locator("header").inner_text()
    names = episode.actions[0]
    q = episode.inner["action values"].values
    for t in range(4):
        step(page, t)
        sync_api.expect(page.locator("#picture")).to_have_attribute("src", f"/picture/0/{t}.png")
        assert taken(page) == names[episode.taken[t, 0]]
        cells = page.locator("#actions table.actions tbody tr").nth(2).locator("td")
        assert cells.count() == 3  # Q_0, Q_1, Q_2
        for k in range(3):
            assert float(cells.nth(k).inner_text()) == pytest.approx(q[t, k, 0, 2], rel=6e-3)
        text = page.locator("#observation .group", has_text="self").inner_text()
        x = float(re.search(r"x\s+([\d.e-]+)", text).group(1))
        assert x == pytest.approx(episode.obs[t, 0, 0], abs=1e-3)
        page.click("#forward")
    shown = page.evaluate("document.querySelector('#picture').naturalWidth")
    assert shown > 100
    so_far = episode.rewards[:4].sum()
    sync_api.expect(page.locator("#now")).to_contain_text(f"{so_far:.3g}")


def test_the_team_s_values(url, visit, episodes):
    page, episode = opened(visit, url), episodes[0]
    joint = page.locator("#team .scrolled", has_text="best joint action a_k*")
    greedy = episode.inner["best joint action a_k*"].values[0]
    rows = joint.locator("tbody tr")
    assert rows.count() == 3
    for agent in range(3):
        names = [episode.actions[agent][greedy[k, agent]] for k in range(3)]
        assert rows.nth(agent).locator("td").all_inner_texts() == names
    choice = page.locator("#team .scrolled", has_text="P_t, from Q*").locator("td")
    percents = [float(text.removesuffix(" %")) for text in choice.all_inner_texts()]
    assert percents == pytest.approx(100 * episode.inner["P_t, from Q*"].values[0], abs=0.6)


def test_buttons_and_keys_move_through_the_episode(url, visit):
    page = opened(visit, url)
    page.click("#last")
    step(page, STEPS)
    assert "The episode is over." in page.locator("#actions").inner_text()
    page.click("#forward")
    step(page, STEPS)
    page.click("#back")
    step(page, STEPS - 1)
    page.click("#first")
    step(page, 0)
    page.locator("h3").first.click()  # out of the buttons
    page.keyboard.press("ArrowRight")
    step(page, 1)
    page.keyboard.press("End")
    step(page, STEPS)


def test_the_slider_and_the_curve_seek(url, visit):
    page = opened(visit, url)
    page.locator("#at [role=slider]").focus()
    for _ in range(5):
        page.keyboard.press("ArrowRight")
    step(page, 5)
    page.wait_for_function(
        "(document.querySelector('#curves .js-plotly-plot')?.layout?.shapes ?? [])[0]?.x0 === 5"
    )
    box = page.locator("#curves .nsewdrag").bounding_box()
    page.mouse.move(box["x"] + box["width"] - 2, box["y"] + box["height"] / 2)
    page.wait_for_selector("#curves .hoverlayer .legend, #curves .hoverlayer .hovertext")
    page.mouse.click(box["x"] + box["width"] - 2, box["y"] + box["height"] / 2)
    step(page, STEPS)


def test_play_pause_and_speed(url, visit):
    page = opened(visit, url)
    page.locator("#speed").click()
    page.get_by_role("option", name="16 steps/s").click()
    page.click("#play")
    sync_api.expect(page.locator("#play")).to_have_text("⏸ Pause")
    step(page, STEPS)  # it ends by itself
    sync_api.expect(page.locator("#play")).to_have_text("▶ Play")
    page.locator("#speed").click()
    page.get_by_role("option", name="1 steps/s").click()
    page.click("#play")  # from the start again
    step(page, 1)
    page.click("#play")
    sync_api.expect(page.locator("#play")).to_have_text("▶ Play")
    page.wait_for_timeout(1300)
    step(page, 1)


def test_agents_and_another_episode(url, visit, episodes):
    page = opened(visit, url)
    page.locator("#agent").click()
    page.get_by_role("option", name="predator 2").click()
    sync_api.expect(page.locator("#observation")).to_contain_text("is 2 1")
    page.click("#another")
    sync_api.expect(page.locator("#picture")).to_have_attribute("src", "/picture/1/0.png")
    sync_api.expect(page.locator("#agent")).to_contain_text("predator 2")  # stays chosen
    assert taken(page) == episodes[1].actions[2][episodes[1].taken[0, 2]]
    page.locator("#curve").click()
    page.get_by_role("option", name="Q* of a_k*").click()
    page.wait_for_function(
        "() => document.querySelector('#curves .js-plotly-plot').data.length === 3"
    )
    drawn = page.evaluate("[...document.querySelector('#curves .js-plotly-plot').data[2].y]")
    assert drawn == pytest.approx(episodes[1].inner["Q* of a_k*"].values[:, 2].tolist(), rel=1e-4)


def test_a_phone_s_width(url, visit):
    page = opened(visit, url, viewport={"width": 390, "height": 844})
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    wide = page.evaluate(
        "[...document.querySelectorAll('.player > * > *, .buttons > *, .scrolled, .graph')]"
        ".filter((one) => one.getBoundingClientRect().right > 390.5).length"
    )
    assert wide == 0


def test_dark_and_light(url, visit):
    page = opened(visit, url, color_scheme="dark")

    def look():
        return page.evaluate(
            "[getComputedStyle(document.body).backgroundColor,"
            " document.querySelector('#curves .js-plotly-plot').layout.font.color]"
        )

    page.wait_for_function(
        "() => document.querySelector('#curves .js-plotly-plot').layout.font.color === '#e4e7eb'"
    )
    assert look()[0] == "rgb(22, 27, 34)"
    page.click("#theme-button")
    page.wait_for_function(
        "() => document.querySelector('#curves .js-plotly-plot').layout.font.color === '#1f2933'"
    )
    assert look()[0] == "rgb(255, 255, 255)"


def test_the_command_says_where_the_page_is(policy, visit):
    command = [sys.executable, "-u", str(MAIN), "play", str(policy), "--port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        said = process.stdout.readline()
        found = re.fullmatch(
            r"s2q on predator_prey; the player is at (http://\S+) \(Ctrl-C ends it\)\n",
            said,
        )
        opened(visit, found.group(1))
        process.terminate()
