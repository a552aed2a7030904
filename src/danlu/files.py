"""Files that are whole or not there: atomic writes, JSON, hashes, free space.

In:  paths and values.
Out: files on disk that no power cut leaves half-written, and digests of them.
Left out: what the files mean (``records``, ``run``).
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from safetensors import SafetensorError

from danlu.errors import UserError

_SMALL_FILE = 64 << 20
_OS_ERROR = re.compile(r"\(os error (\d+)\)")  # as Rust spells errno


@contextlib.contextmanager
def atomic_write(path: Path, mode: str = "w") -> Iterator[IO[Any]]:
    """Write a file beside its place, sync it, then rename: readers see the old file or the new one, whole.

    Args:
        path: the final place; its parent is created.
        mode: ``"w"`` for UTF-8 text or ``"wb"`` for bytes.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.exists() and not (path.is_file() or path.is_dir()):  # a pipe or /dev/stdout: to be written to, not replaced
        with open(path, mode, encoding=None if "b" in mode else "utf-8") as handle:
            yield handle
        return
    beside = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with open(beside, mode, encoding=None if "b" in mode else "utf-8") as handle:
            yield handle
            handle.flush()
            os.fsync(handle.fileno())
        os.replace(beside, path)
    finally:
        beside.unlink(missing_ok=True)


@contextlib.contextmanager
def atomic_directory(path: Path) -> Iterator[Path]:
    """Fill a directory beside its place, sync every file, then swap it in; an earlier directory is replaced.

    Raises:
        OSError: what the disk said, naming ``path`` where safetensors said it: it has an error type of its own.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    shutil.rmtree(beside, ignore_errors=True)
    beside.mkdir()
    try:
        yield beside
        for file in beside.rglob("*"):
            if file.is_file():
                _sync(file)
        if path.exists():
            doomed = path.with_name(f".{path.name}.{os.getpid()}.old")
            os.replace(path, doomed)
            os.replace(beside, path)
            shutil.rmtree(doomed)
        else:
            os.replace(beside, path)
    except SafetensorError as error:
        found = _OS_ERROR.search(str(error))
        if found is None:
            raise
        raise OSError(int(found[1]), os.strerror(int(found[1])), str(path)) from error
    finally:
        shutil.rmtree(beside, ignore_errors=True)


def write_json(path: Path, value: Any) -> None:
    """Write ``value`` as readable JSON, atomically; NaN is refused because no JSON reader knows it."""
    with atomic_write(path) as handle:
        json.dump(value, handle, ensure_ascii=False, indent=2, sort_keys=False, allow_nan=False)
        handle.write("\n")


def read_lines(path: Path, encoding: str = "utf-8", errors: str = "strict") -> list[str]:
    """The lines of a text file, without their ends. U+2028 and its like, at which ``str.splitlines`` cuts, end none."""
    with open(path, encoding=encoding, errors=errors) as handle:
        return [line.rstrip("\n") for line in handle]


def read_json(path: Path) -> Any:
    """Read a JSON file of ours.

    Raises:
        UserError: the file is missing or damaged, naming it.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{path} does not exist; run the stage that makes it first") from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"{path} is damaged ({error}); delete its directory and run again") from None


def hash_value(value: Any) -> str:
    """SHA-256 of a JSON value in canonical form, 16 hexadecimal digits."""
    text = json.dumps(value, sort_keys=True, ensure_ascii=False, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def hash_file(path: Path) -> str:
    """SHA-256 of a file's bytes, as hexadecimal digits."""
    with open(path, "rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


def hash_paths(root: Path, names: tuple[str, ...]) -> str:
    """One hash over the bytes of everything below ``root/name`` for each name, independent of time and place."""
    digests = {}
    for name in names:
        place = root / name
        files = sorted(place.rglob("*")) if place.is_dir() else [place]
        for file in files:
            if file.is_file() and not file.name.endswith(".tmp"):  # half-written by a process that was killed
                digests[file.relative_to(root).as_posix()] = hash_file(file)
    return hash_value(digests)


def hash_place(path: Path) -> str:
    """Hash of a file or folder that is not ours; big files and folders by names, sizes and times, which is quick.

    Raises:
        UserError: there is none.
    """
    if path.is_file() and path.stat().st_size <= _SMALL_FILE:
        return hash_file(path)
    if not path.exists():
        raise UserError(f"{path} does not exist")
    files = sorted(path.rglob("*")) if path.is_dir() else [path]
    facts = [(f.relative_to(path).as_posix(), f.stat().st_size, f.stat().st_mtime_ns) for f in files if f.is_file()]
    return hash_value(facts)


def free_space(path: Path, needed: int) -> None:
    """Refuse to start work that cannot be stored.

    Args:
        path: a directory, made or not, on the disk in question.
        needed: bytes that will be written.

    Raises:
        UserError: less than ``needed`` bytes are free there.
    """
    place = path
    while not place.exists():
        place = place.parent
    free = shutil.disk_usage(place).free
    if free < needed:
        raise UserError(f"{place} has {free / 1e6:.0f} MB free and this needs {needed / 1e6:.0f} MB; free some space")


def _sync(path: Path) -> None:
    with open(path, "rb") as handle:
        os.fsync(handle.fileno())
