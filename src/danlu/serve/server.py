"""``danlu serve``: the application on a socket of this machine.

In:  model directories by name, the preference store's place, a port.
Out: a server until Ctrl-C.
Left out: other addresses than 127.0.0.1: they need accounts first.
"""

from __future__ import annotations

import socket
from collections.abc import Mapping, Sequence
from pathlib import Path

import uvicorn

from danlu.align.preferences import PreferenceStore
from danlu.console import Console
from danlu.errors import UserError
from danlu.serve import page
from danlu.serve.api import create_app
from danlu.serve.safety import Safety

ADDRESS = "127.0.0.1"
PORT = 8000
_LAST_WORDS_SECONDS = 5


def run_server(
    models: Mapping[str, Path], store: Path | str, port: int = PORT, console: Console | None = None,
    starters: Sequence[str] = (), safety: Safety | None = None,
) -> None:  # fmt: skip
    """Serve until the process is told to stop.

    Args:
        models: model directories by the name clients use.
        store: the preference store: a file, or a database's URL.
        port: 0 takes any free one.
        console: where the address and the store's place are told.
        starters: things to try, which the page offers.
        safety: the gates before and after the models.

    Raises:
        UserError: the port is taken, a model cannot be served, the store cannot be opened.
    """
    console = console or Console()
    listening = listen(port)  # before the models are loaded, so that a taken port is known at once
    preferences = PreferenceStore(store)
    try:
        app = create_app(models, preferences, starters=starters, safety=safety)
        if not page.built():
            console.say("the chat page is not built: run 'python hatch_build.py'; the API works without it")
        address = f"http://{ADDRESS}:{listening.getsockname()[1]}"
        console.say(f"serving {', '.join(models)} at {address}, votes go to {preferences.place} (Ctrl-C stops)")
        config = uvicorn.Config(
            app, log_level="warning", access_log=False, server_header=False,
            timeout_graceful_shutdown=_LAST_WORDS_SECONDS,
        )  # fmt: skip
        uvicorn.Server(config).run(sockets=[listening])
    finally:
        listening.close()
        preferences.close()


def listen(port: int) -> socket.socket:
    """A socket on 127.0.0.1.

    Raises:
        UserError: another program has the port.
    """
    listening = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listening.bind((ADDRESS, port))
    except (OSError, OverflowError) as error:
        listening.close()
        raise UserError(f"cannot listen on {ADDRESS}:{port} ({error}); choose another --port") from None
    return listening
