"""The worker in a process of its own.

In:  standard input: which models and how, then commands, a line of JSON each.
Out: standard output: whether it is ready, with the hashes of its models, then events, a line each.
Left out: what a command does (``worker``), who starts it and starts it again (``engine``).

It ends when its input does: a server that was killed leaves no worker behind.
"""

from __future__ import annotations

import json
import logging
import os
import sys
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from danlu import hub
from danlu.errors import UserError
from danlu.serve import jobs
from danlu.serve.worker import Setup, Worker, Writer, load

_LOG = logging.getLogger("danlu.serve")


def _load_all(
    places: Mapping[str, str], setup: Setup, hashes: Mapping[str, str], expected: Mapping[str, str]
) -> dict[str, Writer]:  # fmt: skip
    """Models by name. Of those that are known, what is gone or is another model by now is passed over: a stage may be
    made again while it is served, and nobody's words may come from other weights than it is told.

    Raises:
        UserError: one that is not known yet cannot be loaded, or nothing is left.
    """
    there = {name: Path(place) for name, place in places.items() if expected.get(name) in (None, hashes[name])}
    for name in places.keys() - there.keys():
        _LOG.error("%s: %s is gone or holds another model by now; it is not served", name, places[name])
    if not there:
        raise UserError(f"of the models that were served none is left: {', '.join(places.values())}")
    return {name: load(place, setup, len(there)) for name, place in there.items()}


def main() -> None:
    """A worker that is told on standard input what to do: first how to set up, then jobs."""
    logging.basicConfig(level=logging.WARNING, stream=sys.stderr)
    out = os.fdopen(os.dup(sys.stdout.fileno()), "wb")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # whatever else prints must not end up between the events
    first = json.loads(sys.stdin.buffer.readline())

    def say(line: bytes) -> None:
        out.write(line)
        out.flush()

    def tell(number: int, event: jobs.Event) -> None:
        say(b"%d " % number + jobs.write_event(event))

    try:
        setup = Setup(**first["setup"])
        hashes = {name: hub.model_hash(Path(place)) for name, place in first["places"].items()}
        writers = _load_all(first["places"], setup, hashes, first["hashes"])
        worker = Worker(writers, setup, tell)
    except UserError as error:
        say(json.dumps({"refused": str(error)}).encode() + b"\n")
        sys.exit(2)
    say(json.dumps({"ready": {name: hashes[name] for name in writers}}).encode() + b"\n")
    threading.Thread(target=_listen, args=(worker,), daemon=True).start()
    worker.run()


def _listen(worker: Worker) -> None:
    for line in sys.stdin.buffer:
        command: dict[str, Any] = json.loads(line)
        if "submit" in command:
            worker.submit(command["submit"], jobs.read_job(command["job"]))
        elif "load" in command:
            worker.load(command["load"], command["key"], command["place"])
        elif "drop" in command:
            worker.drop(command["drop"])
        else:
            worker.cancel(command["cancel"])
    worker.close()
