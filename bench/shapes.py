"""Which shape learns most in equal time: Llama, GPT-2 or DeepSeek style, the three that the recipe ``tang`` offers?

In:  a run of ``tang`` whose corpus, tokenizer and tokens are finished; seconds of training for each shape.
Out: ``results/shapes-*.json`` and the table: held-out bits per byte of each shape, the recipe's default among them.
Left out: tuning each shape's learning rate; all take the recipe's.

    python bench/shapes.py RUN [SECONDS]
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path
from typing import Any

from danlu.console import Console
from danlu.pipeline import execute, read_recipe
from table import row, save

PRESETS = ("llama-tang", "gpt2-tang", "deepseek-tang")
NEEDED = ("corpus", "tokenizer", "tokens")
TRIAL_STEPS = 40


def pretrained(source: Path, preset: str, steps: int, out: Path) -> dict[str, Any]:
    """Figures of the stage ``pretrain`` with that shape, made in a run of its own."""
    shutil.rmtree(out, ignore_errors=True)
    for name in NEEDED:
        shutil.copytree(source / name, out / name)
    options = [f"pretrain.model={{preset: {preset}}}", f"pretrain.steps={steps}"]
    run = execute(read_recipe("tang", options), out, Console(), until="pretrain")
    figures: dict[str, Any] = run.stages()["pretrain"]["figures"]
    return figures


def steps_in(seconds: float, source: Path, preset: str) -> int:
    """How many optimizer steps of that shape fit into the time, by a short trial; evaluations are not counted."""
    trial = pretrained(source, preset, TRIAL_STEPS, Path("runs/bench-shapes") / f"{preset}-trial")
    return round(seconds * trial["tokens_per_second"] / (trial["tokens"] / trial["steps"]))


def main() -> None:
    """Train every shape for equally long and write the results."""
    source, seconds = Path(sys.argv[1]), float(sys.argv[2]) if len(sys.argv) > 2 else 150.0
    found = {}
    for preset in PRESETS:
        steps = steps_in(seconds, source, preset)
        found[preset] = pretrained(source, preset, steps, Path("runs/bench-shapes") / preset)
    default = found[PRESETS[0]]
    rows = []
    for preset, figures in found.items():
        seconds_taken = figures["tokens"] / figures["tokens_per_second"]
        size = f"{figures['parameters_total']:,} parameters, {figures['steps']:,} steps, {figures['tokens']:,} tokens"
        rows.append(row(
            f"tang: held-out bits per byte, {preset}", [figures["bpb"]], "bpb", "default is the least",
            figures["bpb"] >= default["bpb"], peer=default["bpb"], peer_name=PRESETS[0],
            note=f"{size}, {seconds_taken:.0f} s of steps",
        ))  # fmt: skip
    print(save("shapes", rows))


if __name__ == "__main__":
    main()
