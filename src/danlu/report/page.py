"""report.html: one self-contained page, pictures first.

In:  a run directory.
Out: the path of the page.
Left out: scripts and anything fetched from elsewhere; the page works from a disk, for ever.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jinja2

from danlu.files import atomic_write, read_json
from danlu.report import pictures
from danlu.report.figures import BY_LIFE, figures
from danlu.run import Metrics, Run

# The stages of the training loop, and what each one's loss is a mean over.
TRAINED = {
    "pretrain": "nats per token",
    "sft": "nats per answer token",
    "reward": "nats per comparison",
    "best_of": "nats per answer token",
    "dpo": "per comparison",
    "guard": "nats per text",
}
_RATES = {
    "form_rate": "form",
    "rhyme_rate": "form and rhyme",
    "rhyme_by_chance": "rhyme by chance",
    "distinct_2": "distinct-2",
    "copy_rate": "copied",
}


def write_report(run: Run) -> Path:
    """Write ``report.html`` into the run directory and return its path."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("danlu.report", "."), autoescape=True, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters["commas"] = lambda value: f"{value:,}"
    environment.filters["figure"] = lambda value: "–" if value is None else f"{value:.3f}"
    page = environment.get_template("page.html.j2").render(**_content(run))
    path = run.dir / "report.html"
    with atomic_write(path) as handle:
        handle.write(page)
    return path


def _content(run: Run) -> dict[str, Any]:
    """Everything the template shows."""
    result = figures(run)
    monitor = _json(run, result["aligned"], "monitor.json") or {}
    table = (_json(run, "compress", "table.json") or {}).get("rows", [])
    audit = _json(run, "corpus", "audit.json") or {}
    rates = {label: result[key] for key, label in _RATES.items() if result.get(key)}
    return {
        "figures": result,
        "lives": [*result.get("bpb", {})],
        "by_life": {key: result[key] for key in BY_LIFE if result.get(key)},
        "funnel": pictures.funnel([(step["step"], step["documents"]) for step in audit.get("funnel", [])]),
        "reasons": audit.get("reasons", {}),
        "unread": audit.get("quarantined", {}),
        "licences": audit.get("licences", {}),
        "losses": [*filter(None, (_loss(run, stage, unit) for stage, unit in TRAINED.items()))],
        "alignment": pictures.alignment(monitor.get("looks", []), _hidden(monitor.get("looks", []))),
        "alarms": monitor.get("alarms", []),
        "rates": pictures.bars(rates, "share of answers"),
        "sizes": pictures.sizes(table),
        "table": table,
        "notes": (_json(run, "compress", "table.json") or {}).get("notes", []),
        "answers": (_json(run, "eval", "answers.json") or {}).get("prompts", []),
        "lineage": _lineage(run),
    }


def _loss(run: Run, stage: str, unit: str) -> str:
    return pictures.loss(stage, Metrics(run.dir / stage / "metrics.jsonl").read(), unit)


def _hidden(looks: list[dict[str, Any]]) -> str:
    """What to draw of the hidden judge: rhyme where it knows of rhyme, its total elsewhere."""
    return "rhyme" if looks and "rhyme" in looks[0] else "judge"


def _json(run: Run, stage: str, name: str) -> Any:
    path = run.dir / stage / name
    return read_json(path) if run.finished(stage) and path.is_file() else None


def _lineage(run: Run) -> list[dict[str, Any]]:
    """Every finished stage with its output hash and the hashes it was made from."""
    return [
        {
            "stage": name,
            "output": manifest["output"],
            "parents": manifest["parents"],
            "minutes": manifest["seconds"] / 60,
            "finished": manifest["finished"],
            "versions": manifest["versions"],
        }
        for name, manifest in run.stages().items()
    ]
