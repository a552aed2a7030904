"""Texts that somebody called safe or unsafe: what a guard learns from.

In:  JSONL with ``text`` or ``messages`` and ``label``; or folders of text files, each folder a label; local, or a
package's.
Out: ``Example``s without repeats, each always in the same one of three parts.
Left out: who labelled them: the review queue of the server writes this JSONL, so may anybody.
"""

from __future__ import annotations

import fnmatch
import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from danlu.console import Console
from danlu.corpus import sources
from danlu.corpus.read import decode
from danlu.errors import UserError
from danlu.files import hash_value

SAFE = "safe"
PARTS = ("train", "calibration", "test")
_PER_MILLE = 1000


@dataclass(frozen=True)
class Example:
    """A text and what it was called: ``"safe"`` or the category of its harm."""

    text: str
    label: str

    @property
    def unsafe(self) -> bool:
        """Whether it is anything but safe."""
        return self.label != SAFE


def read_examples(
    source: str, include: Sequence[str], folders: Mapping[str, str], remove: Sequence[str], console: Console
) -> list[Example]:
    """Labelled texts, each once; of a text that was labelled twice the last word counts.

    Args:
        source: a .jsonl file, a folder, or a package as in ``corpus.source``.
        include: globs of the files wanted; all if empty.
        folders: glob of a file's folder -> label; the folder's own name if empty.
        remove: regular expressions of what is cut out of every text.
        console: told if something is fetched.

    Raises:
        UserError: nothing there, or something that is not a labelled text; names the file and the line.
    """
    found = sources.fetch(source, include, console)
    cuts = [_expression(pattern) for pattern in remove]
    by_text: dict[str, Example] = {}
    for example in _every(found, folders, console):
        text = example.text
        for cut in cuts:
            text = cut.sub("", text)
        if text.strip():
            by_text[" ".join(text.split())] = Example(text, example.label)
    if not by_text:
        raise UserError(f"guard.data {source} holds no text; give JSONL with 'text' and 'label'")
    return list(by_text.values())


def split(examples: Iterable[Example], heldout: float) -> dict[str, list[Example]]:
    """Part -> examples, by hash of the text: half of what is held out sets the threshold, half measures it."""
    parts: dict[str, list[Example]] = {part: [] for part in PARTS}
    for example in examples:
        place = int(hash_value(example.text), 16) % _PER_MILLE / _PER_MILLE
        parts[PARTS[0] if place >= heldout else PARTS[1 + (place >= heldout / 2)]].append(example)
    return parts


def _every(found: sources.Source, folders: Mapping[str, str], console: Console) -> Iterator[Example]:
    """Every labelled text of a source; files of text that cannot be read are left out, and counted aloud."""
    unread = []
    for path in found.files:
        name = path.relative_to(found.folder).as_posix()
        if path.suffix == ".jsonl":
            yield from _lines(path)
        elif (label := _label(name, folders)) is not None:
            try:
                yield Example(decode(path.read_bytes())[0], label)
            except ValueError as error:
                unread.append(f"{name} ({error})")
    if unread:
        console.say(f"left out: {len(unread)} files that are not text, the first {unread[0]}")


def _lines(path: Path) -> Iterator[Example]:
    try:
        text, _ = decode(path.read_bytes())
    except ValueError as error:
        raise UserError(f"{path} is not text: {error}") from None
    for number, line in enumerate(text.split("\n"), 1):
        if line.strip():
            try:
                yield _example(json.loads(line))
            except (ValueError, KeyError, TypeError) as error:
                what = f"it has no {error}" if isinstance(error, KeyError) else str(error)
                raise UserError(
                    f'{path}:{number} is not a labelled text ({what}); write {{"text": "...", "label": "safe"}} or the '
                    "category of its harm"
                ) from None


def _example(row: Any) -> Example:
    if not isinstance(row, dict):
        raise ValueError("it is no JSON object")
    label = row["label"]
    text = "\n".join(m["content"] for m in row["messages"]) if "messages" in row else row["text"]
    if not isinstance(text, str) or not isinstance(label, str) or not label:
        raise ValueError("text and label must be words")
    return Example(text, label)


def _label(name: str, folders: Mapping[str, str]) -> str | None:
    """The label of a file by its folder; None for one that no glob names."""
    folder = name.rpartition("/")[0]
    if not folder:
        raise UserError(f"guard.data: {name} is neither JSONL nor in a folder that is named after its label")
    if not folders:
        return folder.rpartition("/")[2]
    return next((label for glob, label in folders.items() if fnmatch.fnmatchcase(folder, glob)), None)


def _expression(pattern: str) -> re.Pattern[str]:
    try:
        return re.compile(pattern)
    except re.error as error:
        raise UserError(f"guard.remove: '{pattern}' is not a regular expression ({error})") from None
