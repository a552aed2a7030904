"""``danlu lab``: experiments on finished runs.

In:  runs, methods, a budget, differences from the runs' recipes.
Out: progress on standard error; a table, or where the figure is, on standard output.
Left out: what is done (``lab``).
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from danlu.console import Console
from danlu.errors import UserError

lab = typer.Typer(help="Experiments on finished runs.", no_args_is_help=True)

Methods = Annotated[
    list[str] | None, typer.Option("--method", help="ppo, grpo, rloo, reinforce, best_of, dpo, kto, ...")
]
Answers = Annotated[
    int, typer.Option(min=0, help="Answers that each method may sample; 0: as many as the recipe's ppo.")
]
Prompts = Annotated[int, typer.Option(min=1, help="Held-out prompts per look.")]
Out = Annotated[Path | None, typer.Option("--out", help="Where the results go; lab/ in the (first) run if not given.")]


@lab.command()
def methods(
    words: Annotated[
        list[str], typer.Argument(metavar="RUN... [section.key=value]...", help="Finished runs, one a seed; settings.")
    ],
    method: Methods = None,
    answers: Answers = 0,
    looks: Annotated[int, typer.Option(min=1, help="Looks at each method on its way.")] = 4,
    prompts: Prompts = 300,
    kl: Annotated[list[float] | None, typer.Option(min=0.0, help="Nats at which gold is read; 1, 2 and 3.")] = None,
    out: Out = None,
) -> None:
    """Compare methods at equal cost and at equal distance from the SFT model."""
    from danlu.train.parallel import refuse

    refuse("danlu lab")
    from danlu.lab.methods import KLS, USUAL, Question, compare

    runs, said = _read(words)
    question = Question(
        methods=tuple(method or USUAL), answers=answers, looks=looks, prompts=prompts, kls=tuple(kl or KLS), said=said
    )
    place = out or runs[0] / "lab" / "methods"
    compare(runs, question, place, Console())
    typer.echo((place / "table.md").read_text(encoding="utf-8"), nl=False)
    typer.echo(f"results: {place / 'results.json'}")


@lab.command()
def goodhart(
    words: Annotated[list[str], typer.Argument(metavar="RUN [section.key=value]...", help="A finished run; settings.")],
    n: Annotated[list[int] | None, typer.Option("--n", min=2, help="Rankings a reward model learns from.")] = None,
    method: Methods = None,
    answers: Answers = 0,
    looks: Annotated[int, typer.Option(min=2, help="Looks at each method on its way.")] = 8,
    prompts: Prompts = 300,
    among: Annotated[int, typer.Option(min=2, help="Answers a prompt from which best_of takes the best.")] = 64,
    out: Out = None,
) -> None:
    """Drive policies too far: proxy and gold against the distance, for reward models of more and less data."""
    from danlu.train.parallel import refuse

    refuse("danlu lab")
    from danlu.lab.goodhart import METHODS, SIZES, Goodhart, Question, describe

    runs, said = _read(words)
    if len(runs) > 1:
        raise UserError(f"lab goodhart takes one run, and these are {len(runs)}: {', '.join(map(str, runs))}")
    question = Question(
        sizes=tuple(n or SIZES), methods=tuple(method or METHODS), answers=answers, looks=looks, prompts=prompts,
        among=among, said=said,
    )  # fmt: skip
    place = out or runs[0] / "lab" / "goodhart"
    typer.echo(describe(Goodhart(runs[0], question, place, Console()).go()))
    typer.echo(f"figure: {place / 'goodhart.svg'}")


def _read(words: list[str]) -> tuple[list[Path], list[str]]:
    """Runs, and differences from their recipes.

    Raises:
        UserError: no run, or one twice: its arms would be one and the same.
    """
    runs = [Path(word) for word in words if "=" not in word]
    if not runs:
        raise UserError("name a run, such as runs/tang")
    for run in runs:
        if runs.count(run) > 1:
            raise UserError(f"{run} is named twice; each run counts once")
    return runs, [word for word in words if "=" in word]
