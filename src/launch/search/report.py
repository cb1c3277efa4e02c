"""What a search has found, as pictures and tables: importance, parallel coordinates, history."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
import optuna
from matplotlib import pyplot as plt
from matplotlib.figure import Figure
from optuna.importance import get_param_importances
from optuna.trial import FrozenTrial, TrialState
from optuna.visualization import matplotlib as drawings

from launch.search.study import ASKED, counted, load_study, summary
from utils.errors import UserError

_LISTED = 20  # trials in the table
_DPI = 150

# file, heading, what it shows
_PICTURES = (
    ("history", "History", "The value of every complete trial, and the best one so far."),
    (
        "importance",
        "Importance",
        "How much of what distinguishes good trials from bad ones each setting explains "
        "(PED-ANOVA); the shares sum to 1.",
    ),
    (
        "parallel",
        "Parallel coordinates",
        "Each line is a complete trial; the darker, the better.",
    ),
    (
        "evaluations",
        "Evaluations",
        "Each line is a trial while it trained; lines that end early were pruned.",
    ),
)


def best_first(trials: Sequence[FrozenTrial], maximize: bool) -> list[FrozenTrial]:
    """The complete trials."""
    complete = [trial for trial in trials if trial.state is TrialState.COMPLETE]
    return sorted(complete, key=lambda trial: trial.value or 0.0, reverse=maximize)


def trial_cells(trial: FrozenTrial, keys: Sequence[str] = ()) -> list[str]:
    """A row of a table: number, state, evaluations, value, and settings."""
    state = "failed" if trial.state is TrialState.FAIL else trial.state.name.lower()
    evaluations = "" if trial.last_step is None else str(trial.last_step)
    value = "" if trial.value is None else f"{trial.value:.6g}"
    return [
        str(trial.number),
        state,
        evaluations,
        value,
        *(shown_value(trial, key) for key in keys),
    ]


def shown_value(trial: FrozenTrial, key: str) -> str:
    """The value of a setting in a few digits."""
    if key not in trial.params:
        return "-"
    value = trial.params[key]
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def write_report(folder: Path, out: Path) -> Path:
    """Draws what is in the storage.

    Args:
        folder: of the search's results.
        out: takes `report.md` and the pictures.

    Returns:
        `report.md`.

    Raises:
        UserError: there is no such search, no trial of it is complete, or `out` cannot be written.
    """
    study = load_study(folder)
    trials = study.get_trials(deepcopy=False)
    asked = study.user_attrs[ASKED]
    ranked = best_first(trials, asked["goal"] == "maximize")
    if not ranked:
        raise UserError(f"no trial of {folder} is complete: {summary(trials)}")
    keys = [key for key in asked["space"] if any(key in trial.params for trial in ranked)]
    importances = _importances(study, ranked, keys)
    pictures = {
        "history": lambda: drawings.plot_optimization_history(study, target_name=asked["metric"])
    }
    if any(trial.intermediate_values for trial in trials):
        pictures["evaluations"] = lambda: _evaluations(study, asked["metric"])
    if importances:
        pictures["importance"] = lambda: drawings.plot_param_importances(
            study, target_name=asked["metric"]
        )
        pictures["parallel"] = lambda: drawings.plot_parallel_coordinate(
            study, target_name=asked["metric"]
        )
    try:
        out.mkdir(parents=True, exist_ok=True)
        for name, draw in pictures.items():
            _save(draw, out / f"{name}.png", name)
        file = out / "report.md"
        text = _markdown(folder, trials, ranked, asked, importances, list(pictures))
        file.write_text(text, encoding="utf-8")
    except OSError as exc:
        raise UserError(f"the report cannot be written to {out}: {exc.strerror or exc}") from exc
    return file


def _importances(
    study: optuna.Study, ranked: Sequence[FrozenTrial], keys: Sequence[str]
) -> dict[str, float]:
    """Setting -> share; none where the trials are too few or all alike."""
    varied = [key for key in keys if len({trial.params.get(key) for trial in ranked}) > 1]
    if len(ranked) < 2 or not varied or len({trial.value for trial in ranked}) < 2:
        return {}
    return get_param_importances(study)


# --- Pictures ---


def _save(draw: Callable[[], Any], file: Path, name: str) -> None:
    with mpl.rc_context(), plt.ioff():
        mpl.use("Agg")
        axes = draw()
        figure: Figure = (axes.flat[0] if hasattr(axes, "flat") else axes).figure
        _tidy(figure, name)
        figure.savefig(file, dpi=_DPI, bbox_inches="tight", metadata={"Software": None})
        plt.close(figure)


def _tidy(figure: Figure, name: str) -> None:
    """Optuna's pictures on white, without grids that cross each other."""
    figure.set_size_inches(8, 4.5)
    legend = figure.axes[0].get_legend()
    if legend is not None and name != "history":
        legend.remove()  # one entry, or one for each of a hundred trials
    for axes in figure.axes:
        axes.set_facecolor("white")
        for place in ("left", "center"):
            axes.set_title("", loc=place)
        axes.tick_params(colors="black")
        axes.xaxis.label.set_color("black")
        axes.yaxis.label.set_color("black")
        axes.grid(False, which="both")
        if name in ("history", "evaluations"):
            axes.grid(True, color="#e4e4e4")
        for spine in axes.spines.values():
            spine.set_color("#999999")


def _evaluations(study: optuna.Study, metric: str) -> Any:
    axes = drawings.plot_intermediate_values(study)
    axes.set_xlabel("evaluation")
    axes.set_ylabel(metric)
    return axes


# --- Text ---


def _markdown(
    folder: Path,
    trials: Sequence[FrozenTrial],
    ranked: Sequence[FrozenTrial],
    asked: dict[str, Any],
    importances: dict[str, float],
    pictures: Sequence[str],
) -> str:
    best = ranked[0]
    parts = [
        f"# Search {folder.name}\n",
        f"{summary(list(trials)).capitalize()}. Each trial trains "
        f"`{asked['method']}` once for every task and seed ({len(asked['runs'])} in all). The goal "
        f"is to {asked['goal']} `{asked['metric']}`, of which the last {asked['last']} values of "
        "every run are averaged.\n",
        f"The best one is trial {best.number} with {best.value:.6g}:\n",
        _table(
            ("setting", "best value", "searched"),
            [(key, shown_value(best, key), asked["space"][key]) for key in asked["space"]],
        ),
    ]
    for name, heading, text in _PICTURES:
        if name not in pictures:
            continue
        parts.append(f"## {heading}\n")
        parts.append(f"{text}\n")
        parts.append(f"![{heading}]({name}.png)\n")
        if name == "importance":
            rows = [(key, f"{share:.3f}") for key, share in importances.items()]
            parts.append(_table(("setting", "importance"), rows))
    keys = list(asked["space"])
    parts.append("## Trials\n")
    if len(ranked) > _LISTED:
        parts.append(f"The best {_LISTED} of {len(ranked)} complete trials.\n")
    listed = [trial_cells(trial, keys) for trial in ranked[:_LISTED]]
    parts.append(_table(("trial", "state", "evaluations", "value", *keys), listed))
    failed = [trial for trial in counted(list(trials)) if "error" in trial.user_attrs]
    if failed:
        parts.append("## Trials that failed\n")
        rows = [(str(trial.number), trial.user_attrs["error"]) for trial in failed]
        parts.append(_table(("trial", "error"), rows))
    return "\n".join(parts)


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    cells = ([str(cell).replace("|", "\\|") for cell in line] for line in lines)
    return "".join(f"| {' | '.join(line)} |\n" for line in cells)
