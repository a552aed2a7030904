"""The recipe ``tang`` on three seeds: does the whole life of a model, and PPO in particular, keep its promises?

In:  nothing but time: each seed is a full run (corpus and tokenizer are the same for all and shared).
Out: ``results/tang-*.json`` and the table; the runs stay in ``runs/bench-tang-SEED``.
Left out: peers; no other project has this chain.

    python bench/tang.py [SEED ...]
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path
from typing import Any

from danlu.console import Console
from danlu.pipeline import execute, read_recipe
from danlu.report import figures, write_report
from table import row, save

SHARED = ("corpus",)


def run_seed(seed: int, first: Path | None) -> tuple[Path, dict[str, Any]]:
    """One whole run; the corpus does not depend on luck, so later seeds take over the first one's."""
    out = Path("runs") / f"bench-tang-{seed}"
    if first is not None and not out.exists():
        for name in SHARED:
            shutil.copytree(first / name, out / name)
    run = execute(read_recipe("tang", [f"seed={seed}"]), out, Console())
    write_report(run)
    return out, figures(run)


def rows(results: dict[int, dict[str, Any]]) -> list[dict[str, Any]]:
    """The claims about ``tang``; met only if met on every seed."""
    each = list(results.values())

    def ratio(key: str, after: str, before: str) -> list[float]:
        return [round(r[key][after] / max(r[key][before], 1e-9), 4) for r in each]

    minutes = [r["minutes_total"] for r in each]
    forms, rhymes, variety = (
        [r["form_rate"]["ppo"] for r in each],
        ratio("rhyme_rate", "ppo", "sft"),
        ratio("distinct_2", "ppo", "sft"),
    )
    copies = [r["copy_rate"]["ppo"] - r["copy_rate"]["sft"] for r in each]
    lead = [r["reward"]["accuracy"] - max(r["reward"]["baselines"].values()) for r in each]
    int8 = [r["compression"]["int8"] / r["compression"]["dense"] - 1 for r in each]
    sparse = [r["compression"]["sparsegpt"] / r["compression"]["magnitude"] for r in each]
    seeds = f"seeds {', '.join(map(str, results))}; {each[0]['prompts']} held-out prompts"
    found = [
        row("tang: minutes, all stages", minutes, "min", "<= 12", max(minutes) <= 12),
        row("tang: form rate after PPO", forms, "", ">= 0.90", min(forms) >= 0.9, note=seeds),
        row("tang: rhyme rate after PPO / SFT", rhymes, "x", ">= 2", min(rhymes) >= 2, note=seeds),
        row("tang: distinct-2 after PPO / SFT", variety, "x", ">= 0.9", min(variety) >= 0.9, note=seeds),
        row("tang: copy rate after PPO - SFT", copies, "", "<= 0", max(copies) <= 0, note=seeds),
        row("tang: reward accuracy - best baseline", lead, "", "> 0", min(lead) > 0),
        row("tang: INT8, bits per byte against dense", int8, "", "< 0.01", max(int8) < 0.01),
        row("tang: SparseGPT 50 % / magnitude 50 %, bits per byte", sparse, "x", "< 1", max(sparse) < 1),
    ]
    for life in ("base", "sft", "ppo", "compress"):
        for key in ("form_rate", "rhyme_rate"):
            found.append(
                row(f"tang: {key.replace('_', ' ')}, {life}", [r[key][life] for r in each], "", "reported", True)
            )
    return found


def main() -> None:
    """Run the seeds and write the results."""
    seeds = [int(word) for word in sys.argv[1:]] or [0, 1, 2]
    results: dict[int, dict[str, Any]] = {}
    first = None
    for seed in seeds:
        out, results[seed] = run_seed(seed, first)
        first = first or out
    print(save("tang", rows(results)))


if __name__ == "__main__":
    main()
