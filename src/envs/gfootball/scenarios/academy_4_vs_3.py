"""Four attackers against two defenders and the keeper: the package's academy_3_vs_1_with_keeper
with one more of each.

S2Q's academy_4_vs_3 (appendix E.2: 4 central midfielders against 1 keeper and 2 centre backs);
where they start is not told there. Here the fourth attacker waits behind the ball, and the
defenders stand between the wings and the goal. Coordinates are those of the own half at -1, so the
right team's are turned round.
"""

from __future__ import annotations

from gfootball.env.scenario_builder import Scenario
from gfootball.scenarios import Team, e_PlayerRole_CB, e_PlayerRole_CM, e_PlayerRole_GK


def build_scenario(builder: Scenario) -> None:
    """Called by the package before every episode."""
    builder.config().game_duration = 400
    builder.config().deterministic = False
    builder.config().offsides = False
    builder.config().end_episode_on_score = True
    builder.config().end_episode_on_out_of_play = True
    builder.config().end_episode_on_possession_change = True
    builder.SetBallPosition(0.62, 0.0)

    builder.SetTeam(Team.e_Left)
    builder.AddPlayer(-1.0, 0.0, e_PlayerRole_GK)
    builder.AddPlayer(0.6, 0.0, e_PlayerRole_CM)
    builder.AddPlayer(0.7, 0.2, e_PlayerRole_CM)
    builder.AddPlayer(0.7, -0.2, e_PlayerRole_CM)
    builder.AddPlayer(0.5, 0.0, e_PlayerRole_CM)

    builder.SetTeam(Team.e_Right)
    builder.AddPlayer(-1.0, 0.0, e_PlayerRole_GK)
    builder.AddPlayer(-0.75, 0.1, e_PlayerRole_CB)
    builder.AddPlayer(-0.75, -0.1, e_PlayerRole_CB)
