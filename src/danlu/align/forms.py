"""Judgements in the forms that other trainers read.

In:  preferences, thumbs.
Out: TRL's rows: ``prompt`` / ``chosen`` / ``rejected`` (DPO), ``prompt`` / ``completion`` / ``label`` (KTO); JSONL.
Left out: reading them (``foreign``).
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from danlu.align.tables import Thumb
from danlu.files import atomic_write
from danlu.records import Answer, Message, Preference


def trl_rows(preference: Preference) -> list[dict[str, Any]]:
    """TRL's ``prompt`` / ``chosen`` / ``rejected`` rows of a preference, one per strict pair."""
    prompt = _turns(preference.prompt)
    texts = [_completion(answer) for answer in preference.answers]
    return [{"prompt": prompt, "chosen": texts[i], "rejected": texts[j]} for i, j in preference.pairs()]


def kto_rows(judged: Preference | Thumb) -> list[dict[str, Any]]:
    """TRL's ``prompt`` / ``completion`` / ``label`` rows of what was called good or bad by itself.

    A thumb is one; a comparison of which all answers were called bad is one for each of them. An order says nothing of
    the kind: the best of a bad lot is no good answer.
    """
    prompt = _turns(judged.prompt)
    if isinstance(judged, Thumb):
        return [{"prompt": prompt, "completion": _completion(judged.answer), "label": judged.up}]
    if judged.ranks:
        return []
    return [{"prompt": prompt, "completion": _completion(answer), "label": False} for answer in judged.answers]


def write_rows(path: Path, rows: Iterable[dict[str, Any]]) -> int:
    """Write rows as JSONL; returns how many."""
    count = 0
    with atomic_write(path) as handle:
        for row in rows:
            handle.write(json.dumps(row, ensure_ascii=False) + "\n")
            count += 1
    return count


def _turns(messages: tuple[Message, ...]) -> list[dict[str, str]]:
    return [{"role": m.role, "content": m.content} for m in messages]


def _completion(answer: Answer) -> list[dict[str, str]]:
    return [{"role": "assistant", "content": answer.text}]
