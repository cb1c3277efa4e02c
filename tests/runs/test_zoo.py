"""The policies in zoo/: small, whole, listed with their results, and as good as they say."""

import json
from pathlib import Path

import pytest

from playing import Player
from policies import CARD, evaluate, find_policy

ZOO = Path(__file__).resolve().parents[2] / "zoo"
NAMES = sorted(card.parent.name for card in ZOO.glob(f"*/{CARD}"))
LARGEST = 200_000  # bytes of a policy
QUICK = ("mappo_lbf", "mamt_spread")  # of the default tests: nothing is compiled for long


def card_of(name):
    return json.loads((ZOO / name / CARD).read_text())


def test_every_folder_has_a_card():
    folders = [path.name for path in ZOO.iterdir() if path.is_dir()]
    assert sorted(folders) == NAMES
    assert set(QUICK) < set(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_a_policy_is_small_and_its_card_is_that_of_its_configuration(name):
    files = [path for path in (ZOO / name).rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) <= LARGEST
    policy, card = find_policy(ZOO / name), card_of(name)
    assert policy.step == card["steps"]
    for key, value in (
        ("name", card["algorithm"]),
        ("env_config", card["environment"]),
        ("seed", card["seed"]),
        ("test_nepisode", card["episodes"]),
    ):
        assert policy.config[key] == value
    assert policy.title.endswith(f" on {card['map']}")
    assert "/tmp" not in (ZOO / name / "config.json").read_text()


def test_the_list_says_what_the_cards_say():
    lines = (ZOO / "README.md").read_text().splitlines()
    rows = [line.strip("| ").split(" | ") for line in lines if line.startswith("| `")]
    expected = []
    for name in NAMES:
        card = card_of(name)
        won = card.get("test_win_rate")
        expected.append(
            [
                f"`{name}`",
                card["algorithm"],
                f"`{card['environment']}`",
                card["map"],
                f"{card['steps']:,}",
                "-" if won is None else f"{100 * won:.0f} %",
                f"{card['test_return_mean']:.2f}",
            ]
        )
    assert rows == expected


def check(name):
    """Evaluates a policy on the episodes of its card. Numbers may round in another way elsewhere,
    and a few episodes then take another course.
    """
    card, found = card_of(name), evaluate(find_policy(ZOO / name))
    if "test_win_rate" in card:
        assert found["test_win_rate"] == pytest.approx(card["test_win_rate"], abs=0.1)
    size = abs(card["test_return_mean"])
    assert found["test_return_mean"] == pytest.approx(
        card["test_return_mean"], abs=0.1 * max(1.0, size)
    )


@pytest.mark.parametrize("name", QUICK)
def test_a_policy_is_as_good_as_its_card_says(name):
    check(name)


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in NAMES if name not in QUICK])
def test_every_policy_is_as_good_as_its_card_says(name):
    check(name)


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_every_policy_plays(name):
    with Player(find_policy(ZOO / name)) as player:
        episode = player.record(0)
    assert len(episode.pictures) == len(episode.obs) > 1
    assert episode.notes == []
    shown = {"action values", "probabilities"} & set(episode.inner)
    assert len(shown) == 1
