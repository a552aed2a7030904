"""The built page, read once: a fixed list of files, so no path of a request is ever joined to a folder.

In:  ``static/``, made of web/ by the build hook.
Out: one route per file.
Left out: what the page does (``web/src``).
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from importlib import resources

from fastapi import APIRouter
from starlette.responses import PlainTextResponse, Response

_TYPES = {"html": "text/html; charset=utf-8", "js": "text/javascript; charset=utf-8", "css": "text/css; charset=utf-8",
          "svg": "image/svg+xml", "woff2": "font/woff2"}  # fmt: skip
_UNBUILT = "The chat page is not built; run 'python hatch_build.py' in the source tree, or install a wheel.\n"


def built() -> bool:
    """Whether there is a page to show."""
    return bool(_files())


def routes() -> APIRouter:
    """GET for ``/`` and everything that it needs."""
    router = APIRouter(include_in_schema=False)
    files = _files()
    if not files:
        router.add_api_route("/", _always(PlainTextResponse(_UNBUILT, 503)))
    for path, content in files.items():
        router.add_api_route("/" if path == "/index.html" else path, _always(_response(path, content)))
    return router


def _always(response: Response) -> Callable[[], Awaitable[Response]]:
    async def answer() -> Response:
        return response

    return answer


def _response(path: str, content: bytes) -> Response:
    # Names below assets/ carry a hash of their content; the others stay the same when the content changes.
    keep = "public, max-age=31536000, immutable" if path.startswith("/assets/") else "no-cache"
    return Response(content, media_type=_TYPES[path.rpartition(".")[2]], headers={"cache-control": keep})


def _files() -> dict[str, bytes]:
    root = resources.files("danlu.serve") / "static"
    if not (root / "index.html").is_file():
        return {}
    found = [("", root), ("/assets", root / "assets")]
    return {
        f"{prefix}/{file.name}": file.read_bytes()
        for prefix, folder in found
        for file in folder.iterdir()
        if file.is_file() and file.name.rpartition(".")[2] in _TYPES
    }
