"""`python src/main.py dashboard`: serves the page to this machine, or to those with the token."""

from __future__ import annotations

import argparse
import hmac
import ipaddress
import logging
import re
import secrets
import socket
import sys
from collections.abc import Sequence
from urllib.parse import urlencode

from flask import Flask, Response, redirect, request, send_file
from werkzeug.serving import BaseWSGIServer, make_server
from werkzeug.wrappers import Response as AnyResponse

from analysis.dashboard.app import make_app
from analysis.dashboard.files import is_picture, served
from analysis.dashboard.index import Index, Watcher
from analysis.dashboard.options import add_address_options
from utils.errors import UserError
from utils.parsing import Parser

# Everything the page loads comes from this server.
_POLICY = (
    "default-src 'self' 'unsafe-inline' 'unsafe-eval' data: blob:; frame-ancestors 'none'; "
    "object-src 'none'"
)
_TOKEN = re.compile(r"[A-Za-z0-9_.~-]{8,}")


def _parser() -> Parser:
    parser = Parser(
        "dashboard",
        description="A local page with all runs below some folders, live while they train: ours, "
        "and those of PyMARL, PyMARL2 and EPyMARL. It only reads.",
    )
    parser.add_argument(
        "paths",
        nargs="*",
        default=["results"],
        metavar="PATH",
        help="a run, a folder above runs, or a glob pattern (default: results)",
    )
    add_address_options(parser)
    return parser


def main(argv: Sequence[str]) -> int:
    """Serves the dashboard until Ctrl-C.

    Returns:
        0.

    Raises:
        UserError: wrong arguments, a path that does not exist, a port that is taken.
    """
    args = _parser().parse_args(argv)
    with Address.of(args) as place:
        index = Index(args.paths)
        index.scan()
        app = make_app(index).server
        add_files(app, index)
        found = len(index.entries())
        runs = f"{found:,} {'run' if found == 1 else 'runs'}"
        watcher = Watcher(index)
        watcher.start()
        try:
            place.serve(app, f"{runs}; the dashboard is")
        finally:
            watcher.stop()
    return 0


class Address:
    """Where a page is served, and to whom; taken before the page is made.

    Args:
        host, port: to listen on; port 0: a free one.
        token: what requests must bring; None: nothing, on this machine, else a random one.

    Raises:
        UserError: the port is taken, the address is none of this machine's, or the token is short.
    """

    def __init__(self, host: str, port: int, token: str | None) -> None:
        self.host, self.local = host, is_loopback(host)
        self.token = token if token is not None or self.local else secrets.token_urlsafe(24)
        if self.token is not None and not _TOKEN.fullmatch(self.token):
            raise UserError("--token takes at least 8 letters, digits and characters of _ . ~ -")
        self._listener = listen(host, port)

    @classmethod
    def of(cls, args: argparse.Namespace) -> Address:
        """The address that the options of `add_address_options` name."""
        return cls(args.host, args.port, args.token)

    def serve(self, app: Flask, what: str) -> None:
        """Hands out the page until Ctrl-C, once the terminal has been told where it is.

        Args:
            what: the beginning of that sentence, e.g. "the dashboard is".
        """
        server = self.server(app)
        sys.stdout.write(f"{what} at {self.url} (Ctrl-C ends it)\n")
        sys.stdout.flush()
        try:
            server.serve_forever()
        except KeyboardInterrupt:
            pass
        finally:
            server.server_close()

    def server(self, app: Flask) -> BaseWSGIServer:
        """Of the page, guarded, not at work yet."""
        protect(app, self.token, local=self.local)
        return serve(app, self._listener)

    @property
    def url(self) -> str:
        """What to type into a browser."""
        return address(self.host, self._listener.getsockname()[1], self.token)

    def __enter__(self) -> Address:
        return self

    def __exit__(self, *exc: object) -> None:
        self._listener.close()


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach the address."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def listen(host: str, port: int) -> socket.socket:
    """A socket that listens.

    Raises:
        UserError: the port is taken, or the address is none of this machine's.
    """
    if not 0 <= port <= 65535:
        raise UserError(f"a port lies between 0 and 65535, not at {port}")
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        return socket.create_server((host, port), family=family)
    except OSError as error:
        raise UserError(
            f"cannot listen on {host}, port {port} ({error.strerror}): choose "
            "another one with --port or --host"
        ) from error


def address(host: str, port: int, token: str | None) -> str:
    """What to type into a browser."""
    name = socket.gethostname() if host in ("0.0.0.0", "::", "") else host
    name = f"[{name}]" if ":" in name else name
    return f"http://{name}:{port}/" + (f"?token={token}" if token else "")


def serve(app: Flask, listener: socket.socket) -> BaseWSGIServer:
    """A server with a thread for each request, on a socket that listens already."""
    logging.getLogger("werkzeug").setLevel(logging.ERROR)  # else a line for every request
    host, port = listener.getsockname()[:2]
    return make_server(host, port, app, threaded=True, fd=listener.fileno())


def protect(app: Flask, token: str | None, *, local: bool) -> None:
    """Refuses what is not allowed to see the page.

    Without a token only addresses of this machine are answered: a foreign page in the same browser
    could else reach the server under a name of its own.
    """

    @app.before_request
    def check() -> AnyResponse | None:
        if token is None:
            if local and not is_loopback(_host_name(request.host)):
                return _plain("This address is not served.", 403)
            return None
        cookie = f"murmuration_{request.host.rpartition(':')[2]}"
        given = request.args.get("token")
        if given is not None and _same(given, token):
            rest = {key: value for key, value in request.args.items() if key != "token"}
            answer = redirect(request.path + (f"?{urlencode(rest)}" if rest else ""))
            answer.set_cookie(cookie, token, httponly=True, samesite="Lax")
            return answer
        bearer = request.headers.get("Authorization", "").removeprefix("Bearer ")
        if _same(request.cookies.get(cookie, ""), token) or _same(bearer, token):
            return None
        return _plain("Open the address with ?token=... that the dashboard printed.", 401)

    @app.after_request
    def harden(response: Response) -> Response:
        response.headers["Content-Security-Policy"] = _POLICY
        response.headers["X-Content-Type-Options"] = "nosniff"
        response.headers["Referrer-Policy"] = "no-referrer"
        return response


def _plain(text: str, code: int) -> Response:
    return Response(f"{text}\n", code, mimetype="text/plain")


def _same(given: str, token: str) -> bool:
    return hmac.compare_digest(given.encode(), token.encode())


def _host_name(host: str) -> str:
    """The name in a Host header, without the port."""
    if host.startswith("["):
        return host[1:].partition("]")[0]
    return host.partition(":")[0]


def add_files(app: Flask, index: Index) -> None:
    """Hands out films, replays and text files of the runs, and nothing else."""

    @app.get("/files/<run_id>/<path:name>")
    def file(run_id: str, name: str) -> AnyResponse:
        entry = index.entry(run_id)
        path = served(index, entry, name) if entry else None
        if path is None:
            return _plain("There is no such file.", 404)
        if name.endswith((".txt", ".json")):
            return send_file(path, mimetype="text/plain")
        return send_file(path, as_attachment=not is_picture(name), download_name=path.name)
