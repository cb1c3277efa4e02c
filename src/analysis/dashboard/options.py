"""Options of the commands that serve a page."""

from __future__ import annotations

from utils.parsing import Parser


def add_address_options(parser: Parser) -> None:
    """--port, --host and --token, which `server.Address` reads."""
    parser.add_argument(
        "--port", type=int, default=8050, help="default: %(default)s; 0: a free one"
    )
    parser.add_argument(
        "--host",
        default="127.0.0.1",
        help="address to listen on (default: %(default)s, this machine alone); any other one "
        "needs the token that is printed",
    )
    parser.add_argument(
        "--token",
        help="refuse requests without this token (default: a random one, where --host is not this "
        "machine alone)",
    )
