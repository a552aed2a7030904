"""``danlu serve``: the verb with the most to choose.

In:  its options.
Out: a server until it is stopped.
Left out: every other verb (``cli``).
"""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Annotated

import typer

Where = Annotated[
    Path, typer.Argument(help="A run directory, a model directory, a GGUF file, or a name: smollm2, hf:ORG/NAME.")
]
Host = Annotated[str, typer.Option(help="Address to listen on; others than 127.0.0.1 need a key or a user first.")]
Shots = Annotated[
    Path | None, typer.Option(help="JSONL of example conversations that stand before the dialogue (few-shot).")
]
Summarise = Annotated[
    bool,
    typer.Option(
        "--summarise",
        help="Where a conversation is longer than the model can read, the page has it write a note on the oldest "
        "turns, unless somebody chooses otherwise; without it they are left out.",
    ),
]

Guess = Annotated[
    str,
    typer.Option(
        help="Guess what comes next, which changes no answer: lookup, mtp (the model's own layer for it), or the "
        "directory of a smaller model with the same tokenizer."
    ),
]
SecondLook = Annotated[
    float,
    typer.Option(
        min=0.0, max=0.5, help="Share of comparisons of a starter that are somebody's earlier one: do people agree?"
    ),
]
Repeats = Annotated[float, typer.Option(min=0.0, max=0.5, help="Share that are one's own earlier one, turned round.")]
HeldOut = Annotated[float, typer.Option(min=0.0, max=1.0, help="Share of raters whose votes measure and never teach.")]
Engine = Annotated[
    str, typer.Option(help="What writes the answers: danlu, or vllm for models that outgrow it (extra vllm).")
]
Parallel = Annotated[int, typer.Option(min=1, help="GPUs that share each layer's matrices; --engine vllm only.")]


def serve(
    where: Where = Path("runs/tang"),
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port to listen on; 0 takes any free one.")] = 8000,
    host: Host = "127.0.0.1",
    allow_host: Annotated[
        list[str] | None, typer.Option(help="A name that the server is called by, such as its proxy's.")
    ] = None,
    requests: Annotated[int, typer.Option(min=0, help="Requests a minute for a key; 0 is no limit.")] = 120,
    tokens: Annotated[int, typer.Option(min=0, help="Tokens a minute for a key; 0 is no limit.")] = 200_000,
    store: Annotated[
        str | None,
        typer.Option(
            "--store",
            "--db",
            help="Store of votes, conversations and keys, a file or a database's URL; the run's own, or one beside the "
            "model directory, if not given. danlu run learns from it with run.votes=STORE.",
        ),
    ] = None,
    shots: Shots = None,
    summarise: Summarise = False,
    safety: Annotated[
        str, typer.Option(help="block: stop what the rules forbid; review: only note it; off: look at nothing.")
    ] = "block",
    rules: Annotated[Path | None, typer.Option(help="A rules file (YAML) of yours, beside the bundled rules.")] = None,
    guard: Annotated[
        Path | None, typer.Option(help="A trained guard: its directory, or a run of the recipe guard.")
    ] = None,
    streams: Annotated[int, typer.Option(min=1, max=256, help="Answers that are written at the same time.")] = 16,
    guess: Guess = "",
    engine: Engine = "danlu",
    parallel: Parallel = 1,
    second_look: SecondLook = 0.1,
    repeats: Repeats = 0.02,
    heldout_raters: HeldOut = 0.0,
    grace: Annotated[float, typer.Option(min=0.0, help="Seconds that answers get when the server is stopped.")] = 20.0,
) -> None:
    """Serve the chat page and an OpenAI-compatible API; votes go to the preference store."""
    from danlu.infer import read_shots
    from danlu.places import find_guard, run_of, runs_beside, servable_models, starters_of, votes_of
    from danlu.serve import Options, Rates, Reach, Setup, run_server
    from danlu.serve.safety import open_safety

    options = Options(
        starters=tuple(starters_of(where)),
        shots=tuple(read_shots(shots)) if shots else (),
        runs=runs_beside(where),
        reach=Reach(host, tuple(allow_host or ())),
        accounts="" if store else f"--run {shlex.quote(str(where))}",
        rates=Rates(requests, tokens),
        safety=open_safety(safety, rules, find_guard(guard) if guard else None),
        second_look=second_look,
        repeats=repeats,
        heldout_raters=heldout_raters,
        summarise=summarise,
        setup=Setup(rows=streams, guess=guess, engine=engine, parallel=parallel),
        own_process=True,
        follow=run_of(where),
    )
    run_server(servable_models(where), store or votes_of(where), port, options=options, grace=grace)
