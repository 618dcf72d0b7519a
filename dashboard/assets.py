"""What the page is made of: our own files, and the chart library that the package nicegui brings.

Nothing is copied and nothing comes from another host. Files are read once, at the start.
"""

from __future__ import annotations

import gzip
import hashlib
import importlib.util
from collections.abc import Iterable
from pathlib import Path

from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response

from config import ConfigError

_PAGE = Path(__file__).parent / "page"
_KINDS = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
    ".json": "application/manifest+json",
}
_ECHARTS = Path("elements/echart/dist")
ENTRY = "index.js"  # the module that exports `echarts`


def echarts() -> Path:
    """The folder of the chart library. Raises `ConfigError` where the package has it no more."""
    found = importlib.util.find_spec("nicegui")
    folder = Path(found.origin).parent / _ECHARTS if found and found.origin else None
    if folder is None or not (folder / ENTRY).is_file():
        raise ConfigError(
            "the package nicegui, which brings the chart library, has none where it is expected; the"
            " dashboard needs pip install --require-hashes -r requirements/dashboard.txt"
        )
    return folder


class Asset:
    """One file, ready to be sent, packed too where that makes it smaller."""

    def __init__(self, path: Path) -> None:
        self._content = path.read_bytes()
        packed = gzip.compress(self._content, 6, mtime=0)
        self._packed = packed if len(packed) < 0.9 * len(self._content) else None
        self._kind = _KINDS[path.suffix]
        self._tag = f'"{hashlib.sha256(self._content).hexdigest()[:20]}"'

    def answer(self, request: Request) -> Response:
        headers = {"ETag": self._tag, "Cache-Control": "no-cache", "Vary": "Accept-Encoding"}
        if request.headers.get("if-none-match") == self._tag:
            return Response(status_code=304, headers=headers)
        content = self._content
        if self._packed is not None and "gzip" in request.headers.get("accept-encoding", ""):
            headers["Content-Encoding"] = "gzip"
            content = self._packed
        return Response(content, media_type=self._kind, headers=headers)


class Assets:
    """All files by their path in the address: `/page/…` ours, `/assets/…` the library's."""

    def __init__(self) -> None:
        self._by_path = {
            **_under("/page/", _PAGE.rglob("*")),
            **_under("/assets/", echarts().glob("*.js")),
        }

    def __getitem__(self, path: str) -> Asset:
        return self._by_path[path]

    async def serve(self, request: Request) -> Response:
        found = self._by_path.get(request.url.path)
        return found.answer(request) if found else PlainTextResponse("there is no such file\n", 404)


def _under(prefix: str, files: Iterable[Path]) -> dict[str, Asset]:
    return {f"{prefix}{path.name}": Asset(path) for path in files if path.suffix in _KINDS}
