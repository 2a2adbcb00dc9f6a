"""Write the pages of runs, open them in a browser, or serve them while the runs go on.

Decisions:
    - The server listens on this machine alone, under a path that nobody can guess, and answers only requests to its own
      address: a page of the pool's texts is not for other users, or for other sites in the browser.
    - The browser is told to ask again by a header, so the page itself needs no code for it, and stays one file.
"""

from __future__ import annotations

import secrets
import webbrowser
from collections.abc import Sequence
from functools import partial
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from clusterucb.errors import ClusterUCBError, RunError, warn
from clusterucb.report.run_page.content import page_of, write_page
from clusterucb.report.run_page.found import is_complete, selection_manifest

_SECONDS = 5  # until a browser asks again


def report(runs: Sequence[Path], *, opened: bool = False) -> list[Path]:
    """Write the page of each run, and return the pages' paths.

    Args:
        runs: run folders of `select`, finished or not.
        opened: whether to open the pages in a browser.

    Raises:
        RunError: a folder holds no selection, or nothing was scored yet; or a file is damaged or cannot be written.
    """
    pages = [write_page(run) for run in runs]
    if opened:
        for page in pages:
            _open(page.absolute().as_uri())
    return pages


class Served:
    """A server of the pages of runs, which makes a page anew at each request.

    Args:
        runs: run folders of `select`.

    Attributes:
        address: the address of the first page; others have the number of the run at its end.

    Raises:
        RunError: a folder holds no selection, or no port is free.
    """

    def __init__(self, runs: Sequence[Path]) -> None:
        for run in runs:
            selection_manifest(run)
        self._path = f"/{secrets.token_urlsafe(16)}/"
        try:
            self._server = _Server(
                ("127.0.0.1", 0),
                partial(_Handler, {f"{self._path}{at}": run for at, run in enumerate(runs, start=1)}),
            )
        except OSError as error:
            raise RunError(
                f"cannot serve pages on this machine: {error.strerror or error}; leave out --watch"
            ) from error
        self.address = f"http://127.0.0.1:{self._server.server_port}{self._path}1"

    def open(self) -> None:
        """Open the first page in a browser."""
        _open(self.address)

    def serve(self) -> None:
        """Answer requests until the process is interrupted."""
        try:
            self._server.serve_forever()
        finally:
            self._server.server_close()


class _Server(ThreadingHTTPServer):
    """A server that says nothing of browsers that are closed while they are answered."""

    def handle_error(self, *_: object) -> None:
        """Say nothing; the browser asks again."""


class _Handler(BaseHTTPRequestHandler):
    """Answers with the page of a run."""

    def __init__(self, runs: dict[str, Path], *arguments: object) -> None:
        self._runs = runs
        super().__init__(*arguments)  # type: ignore[arg-type]

    def do_GET(self) -> None:
        """Answer a request for a page."""
        run, host = self._runs.get(self.path), self.headers.get("Host", "")
        if run is None or host.partition(":")[0] not in ("127.0.0.1", "localhost"):
            self.send_error(HTTPStatus.NOT_FOUND)
            return
        try:
            content, kind = page_of(run).encode(), "text/html"
            again = not is_complete(run)
        except (ClusterUCBError, OSError) as error:
            content, kind, again = f"{error}\n".encode(errors="replace"), "text/plain", True
        self.send_response(HTTPStatus.OK)
        self.send_header("Content-Type", f"{kind}; charset=utf-8")
        self.send_header("Content-Length", str(len(content)))
        self.send_header("Cache-Control", "no-store")
        if again:
            self.send_header("Refresh", str(_SECONDS))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_: object) -> None:
        """Log nothing."""


def _open(address: str) -> None:
    if not webbrowser.open(address):
        warn(f"no browser was found; open {address}")
