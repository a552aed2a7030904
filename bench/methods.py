"""Methods of alignment at equal cost on ``tang``: gold at the same distance from the SFT model, over the seeds.

In:  the runs ``runs/bench-tang-SEED`` (``bench/tang.py``), finished up to their reward models.
Out: arms in every run's ``lab/methods/``; ``results.json`` and ``table.md`` of every seed in ``--out``/SEED, of
several in ``--out``, and of several ``results/methods-*.json`` and the table.
Left out: what is done (``danlu.lab``); peers; nobody else compares methods at equal distance.

    python bench/methods.py [--answers N] [--looks N] [--prompts N] [--kl NATS] [SEED ...] [section.key=value ...]

Whoever is stopped goes on where it was. Seeds can be made by processes of their own and joined afterwards:

    python bench/methods.py 0 & python bench/methods.py 1 & python bench/methods.py 2 & wait
    python bench/methods.py --join 0 1 2
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from danlu.console import Console
from danlu.errors import UserError
from danlu.files import read_json
from danlu.lab.methods import KLS, Question, compare, join, write
from table import row, save

# No poems of people's are mixed in, since not every method could learn from them. The rate of dpo is that at which
# 48 steps went three nats away (docs/log.md); the rest is the recipe's of today, which older runs do not hold.
SAID = ("ppo.mix=0", "dpo.lr=2e-4", "best_of.seq_len=128", "best_of.batch_size=8", "best_of.lr=5e-4")


def rows(results: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Gold of every method at the distance that all reached, at fixed ones, and at the end."""
    budget, sft = results["budget"], [look["judge"] for look in results["sft"]]
    note = (
        f"{', '.join(results['runs'])}; {budget['answers']:,} answers of at most {results['most_tokens']} tokens and "
        f"{budget['steps']} steps each; {results['prompts']} held-out prompts; KL that all reached: "
        f"{', '.join(f'{kl:.2f}' for kl in results['shared_kl'])} nats"
    )
    found = [row("methods: gold, sft", sft, "of the judge", "reported", True, note=note)]
    for name, method in results["methods"].items():
        golds = {"at the KL that all reached": method["at_shared"], "at the end": [e["judge"] for e in method["end"]]}
        golds |= {f"at {kl} nats": values for kl, values in method["at"].items()}
        for where, values in golds.items():
            known = [value for value in values if value is not None]
            missing = f"reached by {len(known)} of {len(values)}" if len(known) < len(values) else ""
            what = f"methods: gold {where}, {name}"
            found.append(row(what, known, "of the judge", "reported", bool(known), note=missing))
        found.append(row(f"methods: made in, {name}", results["seconds"][name], "s", "reported", True))
    return found


def main() -> None:
    """Make the arms that are missing, and write the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("words", nargs="*", metavar="SEED | section.key=value", help="0 1 2 if no seed is given")
    parser.add_argument(
        "--answers", type=int, default=0, help="sampled by each method; as many as the recipe's ppo if 0"
    )
    parser.add_argument("--looks", type=int, default=4)
    parser.add_argument("--prompts", type=int, default=300, help="held out, per look")
    parser.add_argument("--kl", type=float, action="append", help="nats at which gold is read; as often as wanted")
    parser.add_argument("--out", type=Path, default=Path("runs") / "methods")
    parser.add_argument("--join", action="store_true", help="make nothing; join what processes of their own made")
    words = parser.parse_args()
    seeds = list(dict.fromkeys(word for word in words.words if "=" not in word)) or ["0", "1", "2"]
    said = [*SAID, *(word for word in words.words if "=" in word)]
    question = Question(
        answers=words.answers, looks=words.looks, prompts=words.prompts, kls=words.kl or KLS, said=said
    )  # fmt: skip
    try:
        if not words.join:
            for seed in seeds:
                compare([Path("runs") / f"bench-tang-{seed}"], question, words.out / seed, Console())
        if len(seeds) == 1:  # has no spread to be published
            print((words.out / seeds[0] / "table.md").read_text(encoding="utf-8"))
            return
        results = write(join([read_json(_made(words.out, seed)) for seed in seeds], question.kls), words.out)
    except UserError as error:
        print(f"bench/methods.py: {error}", file=sys.stderr)
        sys.exit(2)
    print(save("methods", rows(results)))


def _made(out: Path, seed: str) -> Path:
    """The results of one seed.

    Raises:
        UserError: there are none yet.
    """
    file = out / seed / "results.json"
    if not file.is_file():
        raise UserError(f"{file} is not there: python bench/methods.py {seed} makes it")
    return file


if __name__ == "__main__":
    main()
