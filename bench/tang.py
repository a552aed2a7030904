"""The recipe ``tang`` on three seeds: does the whole life of a model, and PPO in particular, keep its promises?

In:  nothing but time: each seed is a full run.
Out: ``results/tang-*.json`` and the table; the runs stay in ``runs/bench-tang-SEED``.
Left out: peers; no other project has this chain.

    python bench/tang.py [--note TEXT] [SEED ...]
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from danlu.console import Console
from danlu.errors import UserError
from danlu.pipeline import STAGES, execute, read_recipe
from danlu.report import figures, write_report
from danlu.run import Run, source_hash
from table import row, save

BY_LIFE = ("form_rate", "rhyme_rate", "rhyme_by_chance", "copy_rate", "distinct_2")


def check_source(run: Run) -> None:
    """Refuse a run of which any stage was made by another source than this one.

    Raises:
        UserError: there is such a stage; naming it.
    """
    for spec in STAGES:
        manifest = run.manifest(spec.name)
        if manifest is not None and manifest.get("versions", {}).get("source") != source_hash():
            made = f"{run.stage_dir(spec.name)} was made by another version of danlu's source"
            raise UserError(f"{made}; its figures are not this version's: move {run.dir} away and run again")


def run_seed(seed: int) -> dict[str, Any]:
    """Figures of one whole run, or of what was left to do of it, with the ``day`` on which it was finished."""
    place = Path("runs") / f"bench-tang-{seed}"
    check_source(Run(place))
    run = execute(read_recipe("tang", [f"seed={seed}"]), place, Console())
    write_report(run)
    return {**figures(run), "day": max(manifest["finished"] for manifest in run.stages().values())[:10]}


def rows(results: Mapping[int, Mapping[str, Any]], said: str = "") -> list[dict[str, Any]]:
    """The claims about ``tang``; met only if met on every seed.

    Args:
        results: seed -> figures of its run.
        said: what else a reader should know, for the note of every claim.
    """
    each = list(results.values())
    day = max(result["day"] for result in each)
    note = f"seeds {', '.join(map(str, results))}; {each[0]['prompts']} held-out prompts" + (said and f"; {said}")
    found = []
    for promises in zip(*(result["targets"] for result in each), strict=True):
        what, target, values = promises[0]["what"], promises[0]["target"], [promise["value"] for promise in promises]
        met = all(promise["met"] for promise in promises)
        found.append(row(f"tang: {what}", values, "", target, met, note=note, date=day))
    reported = {"reward accuracy": [(r["reward"]["accuracy"], "") for r in each]}
    reported["KL from chat to aligned model"] = [(r["kl"], "nats per answer") for r in each]
    for life in ("base", "sft", "ppo", "compress"):
        reported |= {f"{key.replace('_', ' ')}, {life}": [(r[key][life], "") for r in each] for key in BY_LIFE}
    for what, measured in reported.items():
        values, units = zip(*measured, strict=True)
        found.append(row(f"tang: {what}", values, units[0], "reported", True, date=day))
    return found


def main() -> None:
    """Run the seeds and write the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("seeds", nargs="*", type=int, metavar="SEED", help="0 1 2 if none is given")
    parser.add_argument("--note", default="", help="what a reader of the table should know about these runs")
    words = parser.parse_args()
    try:
        results = {seed: run_seed(seed) for seed in words.seeds or [0, 1, 2]}
    except UserError as error:
        print(f"bench/tang.py: {error}", file=sys.stderr)
        sys.exit(2)
    print(save("tang", rows(results, words.note)))


if __name__ == "__main__":
    main()
