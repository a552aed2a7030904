"""What was fetched once, kept on this disk and checked whenever it is used again.

In:  an entry's place, and how to fill it.
Out: a directory whose bytes are those that were put there.
Left out: throwing old entries away; the cache is a plain folder that a person may delete.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

from danlu.errors import UserError
from danlu.files import atomic_directory, hash_file, read_json, write_json

CHECKSUMS = ".checksums.json"


def cache_root() -> Path:
    """Where fetched things are kept: ``DANLU_CACHE``, or ``~/.cache/danlu``."""
    return Path(os.environ.get("DANLU_CACHE") or Path.home() / ".cache" / "danlu")


def cached(folder: Path, fill: Callable[[Path], None]) -> Path:
    """A directory in the cache, filled once, its files checked against their recorded SHA-256 on every later use.

    Args:
        folder: the entry.
        fill: writes the entry's files into the directory it is given.
    """
    if not _intact(folder):
        _writable(folder.parent)
        with atomic_directory(folder) as beside:
            fill(beside)
            sums = {name: hash_file(beside / name) for name in names_below(beside)}
            write_json(beside / CHECKSUMS, sums)
    return folder


def names_below(folder: Path) -> list[str]:
    """Files below a folder as sorted posix paths; hidden files and folders are nobody's text."""
    files = (p.relative_to(folder) for p in folder.rglob("*") if p.is_file())
    return sorted(f.as_posix() for f in files if not any(part.startswith(".") for part in f.parts))


def _writable(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"cannot keep fetched text in {folder} ({error.strerror}); set DANLU_CACHE") from None


def _intact(folder: Path) -> bool:
    """Whether an entry is there and holds exactly the bytes that were put into it."""
    try:
        sums = read_json(folder / CHECKSUMS)
        return set(sums) == set(names_below(folder)) and all(hash_file(folder / name) == sums[name] for name in sums)
    except (UserError, OSError, TypeError):
        return False
