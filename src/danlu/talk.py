"""``danlu.Chat``: the conversation of ``infer``, for a run as well as for a model directory.

In:  a path.
Out: ``Chat``.
Left out: everything about talking (``infer.chat``).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from danlu.infer import chat
from danlu.places import find_model


class Chat(chat.Chat):
    """A model one can talk to: ``Chat("runs/tang").say("续写：春眠不觉晓，")``.

    Args:
        path: a model directory, or a run directory.
        stage: for a run, which stage's model; the last of its life if None.
        options: as for ``infer.chat.Chat``: ``temperature``, ``seed``, ``system``, ``max_new_tokens``.
    """

    def __init__(self, path: Path | str, stage: str | None = None, **options: Any) -> None:
        super().__init__(find_model(Path(path), stage), **options)
