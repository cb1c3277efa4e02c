"""`python src/main.py dashboard`: a local page with all runs, live while they train.

`tail`, `index` and `table` read and know nothing of the page; `views` and `figures` make the page's
parts from them as plain functions; `page` is the layout, `app` joins all that with Dash, `server`
is the command line, the token and the files.
"""

from __future__ import annotations

from collections.abc import Sequence

from utils.errors import MissingPackage


def main(argv: Sequence[str]) -> int:
    """Serves the dashboard until Ctrl-C.

    Returns:
        0.

    Raises:
        MissingPackage: Dash is not installed.
        UserError: wrong arguments, a path that does not exist, a port that is taken.
    """
    check_packages("the dashboard")
    from analysis.dashboard.server import main as serve

    return serve(argv)


def check_packages(what: str) -> None:
    """Makes sure that the packages of a page are there.

    Raises:
        MissingPackage: Dash is not installed.
    """
    try:
        import dash  # noqa: F401
        import dash_ag_grid  # noqa: F401
    except ModuleNotFoundError as error:
        raise MissingPackage(
            f"{what} needs the package {error.name}: pip install -r requirements-dashboard.txt"
        ) from error
