"""``danlu serve``: the application on a socket of this machine.

In:  model directories by name, the store's place, where to listen.
Out: a server until Ctrl-C or SIGTERM, which lets answers that are being written come to their end.
Left out: TLS: a proxy in front has it. Other addresses than this machine's are refused as long as nobody has a key.
"""

from __future__ import annotations

import shlex
import socket
from collections.abc import Mapping
from pathlib import Path

import uvicorn

from danlu.align.preferences import PreferenceStore
from danlu.console import Console
from danlu.errors import UserError
from danlu.serve import page
from danlu.serve.api import create_app
from danlu.serve.options import Options
from danlu.serve.shutdown import GRACE_SECONDS, PatientServer
from danlu.serve.store import ServeStore
from danlu.serve.succession import with_champion

ADDRESS = "127.0.0.1"
PORT = 8000


def run_server(
    models: Mapping[str, Path], store: Path | str, port: int = PORT, console: Console | None = None,
    options: Options | None = None, grace: float = GRACE_SECONDS,
) -> None:  # fmt: skip
    """Serve until the process is told to stop.

    Args:
        models: model directories by the name clients use.
        store: the preference store: a file, or a database's URL.
        port: 0 takes any free one.
        console: where the address and the store's place are told.
        options: what is served, and to whom.
        grace: seconds that answers under way get when the process is told to stop.

    Raises:
        UserError: the port is taken, a model cannot be served, the store cannot be opened; or others could reach the
            server, and nobody has a key.
    """
    console, options = console or Console(), options or Options(own_process=True)
    reach = options.reach
    listening = listen(port, reach.address)  # before the models are loaded, so that a taken port is known at once
    preferences = PreferenceStore(store, options.heldout_raters)
    try:
        if reach.elsewhere and not ServeStore(preferences.database).people.any():
            whose = options.accounts or f"--db {shlex.quote(preferences.place)}"
            raise UserError(
                f"{', '.join((reach.address, *reach.names))} would be open to others, and nobody has a key; make one "
                f"first: danlu keys add NAME {whose}, or danlu users add NAME {whose}"
            )
        app = create_app(models, preferences, options)
        if not page.built():
            console.say("the chat page is not built: run 'python hatch_build.py'; the API works without it")
        shown = f"[{reach.address}]" if ":" in reach.address else reach.address
        address = f"http://{shown}:{listening.getsockname()[1]}"
        names = ", ".join(with_champion(models, options.follow))
        console.say(f"serving {names} at {address}, votes go to {preferences.place} (Ctrl-C stops)")
        config = uvicorn.Config(app, log_level="warning", access_log=False, server_header=False)
        PatientServer(config, app.state.leaving, grace).run(sockets=[listening])
    finally:
        listening.close()
        preferences.close()


def listen(port: int, address: str = ADDRESS) -> socket.socket:
    """A socket on an address of this machine.

    Raises:
        UserError: another program has the port, or the address is none of this machine's.
    """
    listening = socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET, socket.SOCK_STREAM)
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listening.bind((address, port))
    except (OSError, OverflowError) as error:
        listening.close()
        raise UserError(f"cannot listen on {address}:{port} ({error}); choose another --port or --host") from None
    return listening
