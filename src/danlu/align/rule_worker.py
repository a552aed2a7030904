"""The process in which a user's function gives rewards: what goes wrong in it goes wrong here.

In:  ``module:function`` as an argument; on standard input a JSON line for every batch, ``{"prompts", "answers"}``.
Out: on standard output a JSON line when the function is there, and one for every batch: ``{"scores"}``, in which null
    is a score that is not finite, or ``{"error"}``.
Left out: patience, and what is made of an error (``rules``).

Nothing of danlu is imported, so that it starts at once and takes little memory. What the function prints goes to
standard error, and it may read standard input, in which it finds nothing. When the process that asks is gone, so is
this one, even in the middle of a function that never ends.
"""

from __future__ import annotations

import importlib
import json
import math
import os
import queue
import sys
import threading
from collections.abc import Callable
from typing import IO, Any

_Function = Callable[[list[list[dict[str, str]]], list[str]], Any]


def main() -> None:
    """Load the function, then answer until there is nobody to ask."""
    asked, said = _channels()
    requests: queue.SimpleQueue[bytes] = queue.SimpleQueue()
    threading.Thread(target=_listen, args=(asked, requests), daemon=True).start()
    function, problem = _load(sys.argv[1])
    _say(said, problem or {"ready": True})
    while function is not None:
        _say(said, _score(function, json.loads(requests.get())))


def _channels() -> tuple[IO[bytes], IO[bytes]]:
    """Standard input and output for ourselves; others get nothing to read, and write to standard error."""
    asked, said = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb")
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.dup2(2, 1)
    return asked, said


def _listen(asked: IO[bytes], requests: queue.SimpleQueue[bytes]) -> None:
    for line in asked:
        requests.put(line)
    os._exit(0)


def _load(source: str) -> tuple[_Function | None, dict[str, Any]]:
    """The function, or what is wrong with it."""
    module_name, _, name = source.partition(":")
    sys.path.insert(0, os.getcwd())
    try:
        module = importlib.import_module(module_name)
    except Exception as error:  # whatever the user's module does
        return None, {"error": f"{type(error).__name__}: {error}"}
    function = getattr(module, name, None)
    if not callable(function):
        return None, {"missing": name, "valid": [n for n, value in vars(module).items() if callable(value)]}
    return function, {}


def _score(function: _Function, request: dict[str, Any]) -> dict[str, Any]:
    try:
        scores = [float(score) for score in function(request["prompts"], request["answers"])]
    except Exception as error:  # whatever the user's function does
        return {"error": f"{type(error).__name__}: {error}"}
    return {"scores": [score if math.isfinite(score) else None for score in scores]}


def _say(said: IO[bytes], reply: dict[str, Any]) -> None:
    said.write(json.dumps(reply).encode() + b"\n")
    said.flush()


if __name__ == "__main__":
    main()
