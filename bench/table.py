"""Results of benches: rows in one form, JSON files, and the table of bench/README.md.

In:  rows from the programs of this directory.
Out: ``results/[what]-[hardware]-[date].json`` and ``README.md``.
Left out: measuring.
"""

from __future__ import annotations

import datetime
import json
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from danlu.device import cpu_flags
from danlu.files import write_json
from danlu.run import provenance

HERE = Path(__file__).parent
RESULTS = HERE / "results"


def hardware() -> str:
    """This machine's class: its GPU, or cores and the widest vector instructions that training uses."""
    if torch.cuda.is_available():
        name = torch.cuda.get_device_name().lower().removeprefix("nvidia ").split()[0]
        return f"{torch.cuda.device_count()}x{name}"
    flags = cpu_flags()
    vector = "amx" if "amx_bf16" in flags else "avx512bf16" if "avx512_bf16" in flags else "avx2"
    return f"{provenance()['hardware']['cores']}core-{vector}"


def row(
    what: str, values: Sequence[float], unit: str, target: str, met: bool, peer: float | None = None,
    peer_name: str = "", note: str = "", date: str = "",
) -> dict[str, Any]:  # fmt: skip
    """One claim: the median of ``values``, their spread, what it is compared with, and whether the target was met.

    Args:
        date: when it was measured, if that was not today.
    """
    ours = statistics.median(values) if values else None
    return {
        "what": what, "hardware": hardware(), "ours": ours, "peer": peer, "peer_name": peer_name, "unit": unit,
        "ratio": round(ours / peer, 3) if ours is not None and peer else None,
        "spread": [min(values), max(values)] if values else None, "target": target, "met": met,
        "date": date or datetime.date.today().isoformat(), "versions": provenance()["versions"], "note": note,
    }  # fmt: skip


def save(name: str, rows: list[dict[str, Any]]) -> Path:
    """Write the rows as JSON, named after the day of the newest, and make the table again."""
    path = RESULTS / f"{name}-{hardware()}-{max(item['date'] for item in rows)}.json"
    write_json(path, rows)
    write_table()
    return path


def write_table() -> None:
    """Regenerate README.md from every results file, the newest of each program and hardware."""
    lines = [
        "# Measured", "",
        "Made by `bench/table.py` from `results/`; medians, with the least and the most in brackets.", "",
        "| what | hardware | ours | peer | ratio | target | met | date |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
    ]  # fmt: skip
    newest = {path.name.rsplit("-", 3)[0]: path for path in sorted(RESULTS.glob("*.json"))}
    for path in newest.values():
        for item in json.loads(path.read_text(encoding="utf-8")):
            lines.append(_line(item))
    (HERE / "README.md").write_text("\n".join(lines) + "\n", encoding="utf-8")


def _line(item: dict[str, Any]) -> str:
    ours = "not measured" if item["ours"] is None else f"{item['ours']:.4g} {item['unit']}"
    if item["spread"]:
        ours += f" [{item['spread'][0]:.4g}..{item['spread'][1]:.4g}]"
    peer = f"{item['peer']:.4g} ({item['peer_name']})" if item["peer"] is not None else item["peer_name"]
    ratio = "" if item["ratio"] is None else f"{item['ratio']:.3g}"
    met = "yes" if item["met"] else "**no**"
    note = f"<br>{item['note']}" if item.get("note") else ""
    cells = (item["what"] + note, item["hardware"], ours, peer, ratio, item["target"], met, item["date"])
    return f"| {' | '.join(cells)} |"


if __name__ == "__main__":
    write_table()
