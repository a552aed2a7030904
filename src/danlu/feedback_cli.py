"""``danlu feedback`` and ``danlu reviews``: what people said, taken in and out, counted up, and forgotten.

In:  a command line.
Out: rows of a preference store; JSONL; figures of the models and of those who voted.
Left out: what each of these does (``align``, ``lineage``, ``serve.store``).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from danlu.accounts_cli import Run, Store, opened
from danlu.errors import UserError, beside, unknown
from danlu.run import REPLACED

if TYPE_CHECKING:
    from danlu.align.preferences import PreferenceStore
    from danlu.lineage import Learned

feedback = typer.Typer(help="Votes of the people who talk to the model.", no_args_is_help=True)
reviews = typer.Typer(help="What operators decided about what the gates found.", no_args_is_help=True)

_BAD_SHOWN = 5
_WHERE = "A run or model directory, or a preference store: a file or a database's URL."
Where = Annotated[str, typer.Argument(help=_WHERE)]
_TANG = "runs/tang"


@feedback.command("export")
def feedback_export(
    where: Where,
    out: Annotated[Path, typer.Argument(help="The JSONL file to write.")] = Path("preferences.jsonl"),
    form: Annotated[
        str,
        typer.Option(
            help="dpo: prompt, chosen, rejected of every pair; kto: prompt, completion, good or bad; danlu: every vote "
            "whole, for danlu feedback import."
        ),
    ] = "dpo",
) -> None:
    """Write the votes as JSONL in a form that TRL reads, or in our own."""
    if form not in ("dpo", "kto", "danlu"):
        raise unknown("form", form, ("dpo", "kto", "danlu"), "--form")
    with _votes(where) as store:
        write, what = {
            "dpo": (store.export_trl, "pairs"), "kto": (store.export_kto, "answers"), "danlu": (store.export, "votes"),
        }[form]  # fmt: skip
        typer.echo(f"{write(out)} {what} written to {out}")


@feedback.command("import")
def feedback_import(
    file: Annotated[Path, typer.Argument(help="JSONL, gzipped or not.")],
    where: Where = _TANG,
    form: Annotated[
        str,
        typer.Option(
            "--format",
            help="trl (pairs, or KTO's completion and label), hh, ultrafeedback, danlu; auto goes by each line's keys.",
        ),
    ] = "auto",
    source: Annotated[
        str,
        typer.Option(help="What to call them, for danlu feedback forget import:SOURCE; the form's name if not given."),
    ] = "",
) -> None:
    """Take in judgements that were made elsewhere. The same file twice adds nothing."""
    from danlu.align.intake import take_in

    with _votes(where, make=True) as store:
        found = take_in(store, file, form, source)
        typer.echo(
            f"{found.added} judgements added to {store.place}; {found.known} were there, {found.repeated} repeated, "
            f"{found.contradictory} contradict another, {len(found.bad)} lines left out"
        )
    for sentence in found.bad[:_BAD_SHOWN]:
        typer.echo(sentence, err=True)
    if len(found.bad) > _BAD_SHOWN:
        typer.echo(f"... and {len(found.bad) - _BAD_SHOWN} more", err=True)


@feedback.command("forget")
def feedback_forget(
    rater: Annotated[str, typer.Argument(help="As danlu feedback rate and the operator's page show it.")],
    where: Where = _TANG,
    words: Annotated[bool, typer.Option("--words", help="Erase this rater's conversations, too.")] = False,
) -> None:
    """Erase all that a rater judged, for good, and say what was learned from it and has to be made again."""
    from danlu.lineage import learned_from, strip
    from danlu.serve.store import ServeStore

    with _votes(where) as store:
        learned = learned_from(rater, _place(where), _runs(where))
        for one in learned:  # told first: once a snapshot is clean, nobody knows what it held
            typer.echo(_consequences(one))
            strip(one, rater)
        talks = ServeStore(store.database).forget(rater, store.conversations_of(rater)) if words else 0
        gone = store.forget(rater, words)
        told = f"{gone.votes} votes, {gone.reasons} reasons, {gone.thumbs} thumbs"
        if not learned:
            typer.echo("no run has learned from them")
        typer.echo(f"gone from {store.place}: {told}{f', {talks} conversations' if words else ''}")


@feedback.command("rate")
def feedback_rate(
    where: Where = _TANG, as_json: Annotated[bool, typer.Option("--json", help="As one JSON object.")] = False
) -> None:
    """Rate the models by people's votes, and the votes: do people agree with each other, and with themselves?"""
    from danlu.align.tally import tally
    from danlu.poll import described

    name_of, anchor = _names(where)
    with _votes(where) as store:
        figures = tally(store, name_of, anchor)
    typer.echo(json.dumps(figures, ensure_ascii=False, indent=2) if as_json else described(figures))


@reviews.command("export")
def reviews_export(
    out: Annotated[Path, typer.Argument(help="The JSONL file to write.")] = Path("labels.jsonl"),
    run: Run = Path(_TANG),
    store: Store = None,
) -> None:
    """Write what was approved or labelled as JSONL that teaches a guard: danlu run guard guard.data=FILE."""
    from danlu.align.forms import write_rows
    from danlu.serve.reviews import labelled_examples

    with opened(run, store) as kept:
        typer.echo(f"{write_rows(out, labelled_examples(kept))} labels written to {out}")


def _consequences(learned: Learned) -> str:
    """What a person has to know of a run, and do about it."""
    lines = [f"{learned.run} had learned from {learned.judgements} of them; its snapshot is rewritten."]
    if learned.stages:
        again = f"danlu run {learned.run / 'recipe.yaml'} --out {learned.run}"
        lines.append(f"  out of date: {', '.join(learned.stages)}; make them again: {again}")
    if learned.models:
        lines.append(f"  models that learned from them: {', '.join(map(str, learned.models))}")
        lines.append(f"  what is made again is set aside, not deleted: delete {learned.run / REPLACED} afterwards")
    return "\n".join(lines)


def _place(where: str) -> str:
    from danlu.align.database import is_url
    from danlu.places import votes_of

    return where if is_url(where) or Path(where).is_file() else str(votes_of(Path(where)))


@contextmanager
def _votes(where: str, make: bool = False) -> Iterator[PreferenceStore]:
    """The preference store meant by a place; one that is not there is made only for what exists, and if ``make``."""
    from danlu import hub
    from danlu.align.database import is_url
    from danlu.align.preferences import PreferenceStore

    store, path = _place(where), Path(where)
    if not is_url(store) and not Path(store).is_file():
        if not make:
            raise UserError(f"no votes at {store}; serve the model and vote first: danlu serve {where}")
        if not (path.exists() or hub.is_named(path)):
            raise UserError(f"{where} does not exist{beside(path)}; name a run, a model or a preference store")
    votes = PreferenceStore(store)
    try:
        yield votes
    finally:
        votes.close()


def _runs(where: str) -> list[Path]:
    """Runs that may have learned from a store: those beside it."""
    from danlu.lineage import runs_in
    from danlu.places import runs_beside

    return runs_in(runs_beside(Path(where)))


def _names(where: str) -> tuple[Callable[[str], str], str]:
    """What models are called by their hash, and the hash of the earliest that is served; of a store alone, unknown."""
    from danlu import hub
    from danlu.places import servable_models

    path = Path(where)
    served: dict[str, Any] = servable_models(path) if path.is_dir() else {}
    names = {hub.model_hash(model): name for name, model in served.items()}
    return lambda hash: names.get(hash, hash[:12]), list(names)[-1] if names else ""
