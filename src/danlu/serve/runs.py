"""Runs as they lie on disk, finished or under way: stages, the funnel of the data, curves, answers at each age.

In:  the folder that holds run directories.
Out: plain data for the page; curves by instalments, so that a page that looks again gets only what is new.
Left out: routes (``operator``), pictures (the page), verdicts on what was reached (``report``).

Runs are found by listing the folder and stages by the run's own list: no name from a request is ever joined to a path.
A run is written while it is read, so what is missing, half-written or damaged is simply not there yet.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from danlu.errors import unknown
from danlu.run import METRICS, RESOLVED, Run

INSTALMENT = 1 << 20  # bytes of metrics.jsonl at a time


class Runs:
    """The runs of a folder, looked up anew each time: one may have begun since.

    Args:
        root: the folder; None has no runs.
    """

    def __init__(self, root: Path | None) -> None:
        self._root = root

    def listing(self) -> list[dict[str, Any]]:
        """Every run in a few words, the one that changed last first."""
        found = [_summary(name, run) for name, run in self._all().items()]
        return sorted(found, key=lambda run: (run["changed"] or "", run["name"]), reverse=True)

    def show(self, name: str) -> dict[str, Any]:
        """A run's stages, funnel and answers.

        Raises:
            UserError: there is no such run.
        """
        run = self._get(name)
        audit = _json(run.dir / "corpus" / "audit.json")
        return {
            **_summary(name, run),
            "stages": _stages(run),
            "funnel": audit.get("funnel", []),
            "dropped": {reason: entry["count"] for reason, entry in audit.get("reasons", {}).items()},
            "unread": audit.get("quarantined", {}),
            "answers": _json(run.dir / "eval" / "answers.json").get("prompts", []),
        }

    def metrics(self, name: str, stage: str, after: str = "") -> dict[str, Any]:
        """Rows of a stage's metrics.jsonl from where the last instalment ended.

        Args:
            name: the run.
            stage: one of its stages.
            after: what the last instalment gave as ``after``; empty for the beginning.

        Returns:
            ``rows``; ``after``; ``more``, whether there is more to have at once; ``anew``, whether these are the first
            rows of another file than before: a stage that is resumed or made again writes its file anew.

        Raises:
            UserError: there is no such run, or it has no such stage.
        """
        run = self._get(name)
        stages = _lives(run)
        if stage not in stages:
            raise unknown("stage", stage, stages, f"run '{name}'")
        try:
            return _instalment(run.stage_dir(stage) / METRICS, after)
        except FileNotFoundError:
            return {"rows": [], "after": "", "more": False, "anew": bool(after)}

    def _all(self) -> dict[str, Run]:
        try:
            folders = sorted(self._root.iterdir()) if self._root else []
        except (FileNotFoundError, NotADirectoryError):  # nobody has made a run here yet
            return {}
        return {folder.name: Run(folder) for folder in folders if (folder / RESOLVED).is_file()}

    def _get(self, name: str) -> Run:
        runs = self._all()
        if name not in runs:
            raise unknown("run", name, runs)
        return runs[name]


def _summary(name: str, run: Run) -> dict[str, Any]:
    manifests = {stage: run.manifest(stage) or {} for stage in _lives(run)}
    working = run.working()
    done = sum(run.finished(stage) for stage in manifests)
    times = [time for manifest in manifests.values() for time in (manifest.get("started"), manifest.get("finished"))]
    return {
        "name": name,
        "recipe": _json(run.dir / RESOLVED).get("recipe", name),
        "state": "running" if working else "done" if done == len(manifests) else "stopped",
        "done": done,
        "of": len(manifests),
        "seconds": round(sum(manifest.get("seconds", 0.0) for manifest in manifests.values()), 1),
        "changed": max((time for time in times if time), default=None),
    }


def _stages(run: Run) -> list[dict[str, Any]]:
    """Every stage in the order of the map: what it is, how far it is, why it was run, what came of it."""
    shown, working = [], run.working()
    for name, life in _lives(run).items():
        manifest = run.manifest(name) or {}
        state = _state(run, name, manifest, working)
        working = working and state != "running"  # stages run one at a time: only the first that has begun
        metrics = run.stage_dir(name) / METRICS
        shown.append({
            "name": name, "life": life, "state": state, "why": manifest.get("why"),
            "started": manifest.get("started"), "finished": manifest.get("finished"),
            "seconds": manifest.get("seconds"), "output": manifest.get("output"),
            "parents": manifest.get("parents", {}), "figures": _scalars(manifest.get("figures", {})),
            "curves": metrics.is_file() and metrics.stat().st_size > 0,
        })  # fmt: skip
    return shown


def _state(run: Run, name: str, manifest: Mapping[str, Any], working: bool) -> str:
    if not manifest:
        return "waiting"
    if manifest.get("state") == "done":
        return "done" if run.finished(name) else "outdated"
    return "running" if working else "interrupted"


def _lives(run: Run) -> dict[str, str]:
    """The run's stages in order, and what each is in the life of a model."""
    resolved = _json(run.dir / RESOLVED)
    older = [name for name in resolved.get("sections", {}) if name != "run"]  # runs that did not list them
    return dict(resolved.get("stages") or dict.fromkeys(older, ""))


def _scalars(figures: Mapping[str, Any]) -> dict[str, int | float | str]:
    """What fits into a line; a figure that is itself a table has its place in the report."""
    return {key: value for key, value in figures.items() if isinstance(value, (int, float, str))}


def _instalment(path: Path, after: str) -> dict[str, Any]:
    """Whole lines from where the last instalment ended, which names the file by its inode."""
    inode, _, offset = after.partition("-")
    rows: list[dict[str, Any]] = []
    with open(path, "rb") as handle:
        facts = os.fstat(handle.fileno())
        same = inode == str(facts.st_ino) and int(offset or 0) <= facts.st_size
        start = end = int(offset) if same else 0
        handle.seek(start)
        while end - start < INSTALMENT and (line := handle.readline()).endswith(b"\n"):
            end += len(line)
            rows += _row(line)
    more = end - start >= INSTALMENT
    return {"rows": rows, "after": f"{facts.st_ino}-{end}", "more": more, "anew": bool(after) and not same}


def _row(line: bytes) -> list[dict[str, Any]]:
    """A line's row, or none if it was cut off when its writer was killed."""
    try:
        row = json.loads(line, parse_constant=lambda _: None)  # NaN, which no other reader of JSON knows
    except ValueError:
        return []
    return [row] if isinstance(row, dict) and isinstance(row.get("step"), int) else []


def _json(path: Path) -> dict[str, Any]:
    """An object in a file, or nothing where there is none."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}
