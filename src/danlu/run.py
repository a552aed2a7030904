"""The run directory: what is on disk while a model is being made, and why it can be believed.

In:  a directory, stage names, settings and the hashes of what a stage depends on.
Out: ``Stage`` (what a stage function receives), manifests with parents by hash, metrics.jsonl, a lock.
Left out: which stages exist and what they do (``pipeline``); training checkpoints (``train.checkpoint``).
"""

from __future__ import annotations

import contextlib
import fcntl
import functools
import importlib.metadata
import json
import math
import os
import platform
import shutil
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from danlu.console import Console
from danlu.errors import UserError
from danlu.files import atomic_write, hash_file, hash_value, read_lines, write_json
from danlu.recipe import Settings

RESOLVED = "resolved.json"  # every run directory has one
MANIFEST = "manifest.json"
METRICS = "metrics.jsonl"
REPLACED = ".replaced"
_VERSIONED = ("danlu", "torch", "numpy", "tokenizers", "pyarrow", "safetensors")


class Metrics:
    """A stage's metrics.jsonl: one JSON object per line, each with a ``step``; rewound when a run resumes."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def log(self, step: int, **numbers: float | int | str | None) -> None:
        """Append one line; NaN and infinity, which JSON does not know, become null."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        numbers = {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in numbers.items()}
        with open(self.path, "a", encoding="utf-8") as handle:
            handle.write(json.dumps({"step": step, **numbers}, ensure_ascii=False) + "\n")

    def rewind(self, step: int) -> None:
        """Forget lines after ``step`` and any half-written last line: they will be made again."""
        kept = [row for row in self.read() if row["step"] <= step]
        with atomic_write(self.path) as handle:
            handle.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in kept)

    def read(self) -> list[dict[str, Any]]:
        """Every whole line, oldest first; empty if nothing was logged."""
        if not self.path.exists():
            return []
        rows = []
        for line in read_lines(self.path):
            with contextlib.suppress(json.JSONDecodeError):
                rows.append(json.loads(line))
        return rows


@dataclass(frozen=True)
class Stage:
    """What a stage function receives: where to write, what to read, and how to say how far it is.

    Attributes:
        name: the stage's name in the map.
        dir: its own directory; it writes here and nowhere else. What is already here belongs to the same
            settings and parents (a checkpoint to resume from), because anything else was moved away.
        settings: its typed section of the recipe.
        inputs: name of each stage it needs -> that stage's finished directory; the model that the recipe chose among
            those that learned from preferences is called "aligned", its directory after its stage.
        outside: things beside the run that it depends on (the preference store), by name.
        seed: the run's seed; derive streams with ``stream_seed(seed, stage, ...)``.
        metrics: its metrics.jsonl.
        console: progress and messages for a person.
    """

    name: str
    dir: Path
    settings: Settings
    inputs: Mapping[str, Path]
    outside: Mapping[str, Path]
    seed: int
    metrics: Metrics
    console: Console


@dataclass(frozen=True)
class Run:
    """A run directory, locked while somebody works in it.

    Attributes:
        dir: the directory that holds one directory per stage.
    """

    dir: Path

    @contextlib.contextmanager
    def locked(self) -> Iterator[Run]:
        """Hold the run against a second process; the kernel lets go even after kill -9.

        Raises:
            UserError: another process works in this directory.
        """
        self.dir.mkdir(parents=True, exist_ok=True)
        with open(self.dir / ".lock", "a+", encoding="utf-8") as handle:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                handle.seek(0)
                owner = handle.read().strip() or "unknown"
                sentence = f"{self.dir} is in use by process {owner}; wait for it or choose another --out"
                raise UserError(sentence) from None
            handle.truncate(0)
            handle.write(str(os.getpid()))
            handle.flush()
            yield self

    def working(self) -> bool:
        """Whether a process works in the directory now.

        The lock is tried only if the process that it names lives: a try would be in the way of one that begins.
        """
        try:
            with open(self.dir / ".lock", encoding="utf-8") as handle:
                if _lives(int(handle.read())):
                    fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        except (FileNotFoundError, ValueError):  # nobody has ever worked here, or is about to write its number
            pass
        return False

    def stage_dir(self, name: str) -> Path:
        """The directory of a stage, made or not."""
        return self.dir / name

    def manifest(self, name: str) -> dict[str, Any] | None:
        """A stage's manifest, or None if it was never started (or its manifest is damaged)."""
        try:
            return cast(dict[str, Any], json.loads((self.dir / name / MANIFEST).read_text(encoding="utf-8")))
        except (FileNotFoundError, json.JSONDecodeError, UnicodeDecodeError):
            return None

    def stages(self) -> dict[str, dict[str, Any]]:
        """Manifest of every finished stage, by name, in the order in which the stages depend on each other."""
        found = {path.parent.name: self.manifest(path.parent.name) for path in sorted(self.dir.glob(f"*/{MANIFEST}"))}
        waiting = {name: manifest for name, manifest in found.items() if manifest and self.finished(name)}
        ordered: dict[str, dict[str, Any]] = {}
        while ready := [name for name, made in waiting.items() if not made["parents"].keys() & waiting.keys()]:
            ordered |= {name: waiting.pop(name) for name in ready}
        return ordered

    def finished(self, name: str) -> bool:
        """Whether a stage is done, and made from what the stages before it hold now.

        A run that was stopped after an early stage was made again still has its old later stages on disk: they are not
        finished. A parent that was deleted, to save space, is taken at its child's word.
        """
        manifest = self.manifest(name)
        if manifest is None or manifest["state"] != "done":
            return False
        for parent, output in manifest["parents"].items():
            made = self.manifest(parent)
            if made is not None and not (made.get("output") == output and self.finished(parent)):
                return False
        return True

    def set_aside(self, name: str) -> None:
        """Move a stage's directory out of the way; the one replaced before it goes for good."""
        place, aside = self.dir / name, self.dir / REPLACED / name
        if place.exists():
            aside.parent.mkdir(parents=True, exist_ok=True)
            if aside.is_symlink():  # of an arm of an experiment, which linked it
                aside.unlink()
            shutil.rmtree(aside, ignore_errors=True)
            os.replace(place, aside)

    def begin(self, name: str, manifest: dict[str, Any]) -> None:
        """Record that a stage has started."""
        write_json(self.dir / name / MANIFEST, {**manifest, "state": "running", "started": _now(), **provenance()})

    def finish(self, name: str, output: str, figures: Mapping[str, Any], seconds: float) -> None:
        """Record that a stage is done; written last, so a manifest that says done can be believed."""
        manifest = self.manifest(name) or {}
        done = {"state": "done", "output": output, "figures": dict(figures), "finished": _now()}
        earlier = float(manifest.get("seconds", 0.0))
        write_json(self.dir / name / MANIFEST, {**manifest, **done, "seconds": round(earlier + seconds, 2)})

    def recover_seconds(self, name: str) -> None:
        """Count the time of a session that was killed: from its last word in the manifest to its last file."""
        place = self.dir / name
        noted = (place / MANIFEST).stat().st_mtime
        self.add_seconds(name, max(0.0, max(file.stat().st_mtime for file in place.rglob("*")) - noted))

    def add_seconds(self, name: str, seconds: float) -> None:
        """Count time spent by a session that did not finish the stage, so that minutes stay true after a resume."""
        manifest = self.manifest(name)
        if manifest is not None:
            earlier = float(manifest.get("seconds", 0.0))
            write_json(self.dir / name / MANIFEST, {**manifest, "seconds": round(earlier + seconds, 2)})


@functools.cache
def source_hash() -> str:
    """Identity of danlu's own code and recipes: between two releases, one version number stands for many sources."""
    root = Path(__file__).parent
    files = sorted(path for path in root.rglob("*") if path.suffix in (".py", ".yaml"))
    return hash_value({path.relative_to(root).as_posix(): hash_file(path) for path in files})


def provenance() -> dict[str, Any]:
    """Versions and hardware, as written into every manifest."""
    versions = {"python": platform.python_version(), "source": source_hash()}
    for package in _VERSIONED:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            versions[package] = importlib.metadata.version(package)
    hardware = {"machine": platform.machine(), "system": platform.system(), "cores": len(os.sched_getaffinity(0))}
    return {"versions": versions, "hardware": hardware}


def _lives(pid: int) -> bool:
    """Whether there is a process of that number, anybody's."""
    try:
        os.kill(pid, 0)
    except PermissionError:
        return True
    except (ProcessLookupError, OverflowError):
        return False
    return True


def _now() -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
