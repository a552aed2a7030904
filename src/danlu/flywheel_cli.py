"""``danlu flywheel``: turn it, look at it, give a round up, or go back to the former champion.

In:  a run, a word, settings.
Out: progress on standard error; where it is on standard output.
Left out: what is done (``flywheel``).
"""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Annotated, Any

import typer

from danlu.console import Console
from danlu.errors import UserError, unknown

_ACTIONS = ("status", "rollback", "abandon")

Run = Annotated[Path, typer.Argument(help="A run directory with a finished model.")]
Words = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="[status|rollback|abandon] [KEY=VALUE]...",
        help="status: say where it is; rollback: the former champion serves again; abandon: give up the round that is "
        "under way, its votes go into the next; settings such as votes=100.",
    ),
]


def flywheel(
    run: Run,
    words: Words = None,
    once: Annotated[bool, typer.Option("--once", help="Go as far as it can be gone now, and return.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Where it is as one JSON object.")] = False,
) -> None:
    """Turn votes into a better model: train a candidate, try it on people, promote it if it proves itself."""
    from danlu.train.parallel import refuse

    refuse("danlu flywheel")
    from danlu.align.champion import Registry
    from danlu.align.rounds import SETTINGS
    from danlu.flywheel import Flywheel, FlywheelSettings
    from danlu.recipe import load_section

    action, said = _read(words or [])
    if action == "rollback":
        before = Registry(run).standing()
        standing = Registry(run).roll_back("by hand: danlu flywheel rollback")
        stays = before is not None and before.champion == standing.champion
        typer.echo(f"{standing.champion} {'stays the champion; no candidate' if stays else 'is the champion again'}")
        return
    settings = load_section(run / SETTINGS, said, "flywheel", FlywheelSettings)
    wheel = Flywheel(run, settings, Console())
    if action == "abandon":
        round_ = wheel.abandon()
        typer.echo(f"round {round_.number} ended: {(round_.result('verdict') or {})['said']}")
        return
    if action != "status":
        _turn(wheel, once)
    look = wheel.look()
    typer.echo(json.dumps(look, ensure_ascii=False, indent=2) if as_json else describe(look))


def describe(look: dict[str, Any]) -> str:
    """Where a flywheel is, for a person."""
    standing = look["standing"]
    waits = f": waits for {look['waits_for']}" if look["waits_for"] else ""
    if look["state"] == "collect":
        waits = f": {look['new_votes']} of {look['votes_wanted']} new votes"
    since = f" since {look['since'][:19]}" if look["since"] else ""
    lines = [f"round {look['round']}, {look['state']}{since}{waits}"]
    if standing:
        lines.append(f"champion  {standing['champion']} since {standing['since'][:19]}: {standing['why']}")
        if standing["candidate"]:
            lines.append(f"candidate {standing['candidate']} in {standing['share']:.0%} of the comparisons")
    for row in look["conditions"]:
        found = "nothing to tell it from" if row["value"] is None else f"{row['value']:g}"
        note = f" ({row['note']})" if row["note"] else ""
        lines.append(f"  {'met    ' if row['met'] else 'not met'} {row['what']}: {found}, needed {row['needed']}{note}")
    lines += [f"round {one['round']} ended: {one['said']}" for one in look["rounds"]]
    return "\n".join(lines)


def _turn(wheel: Any, once: bool) -> None:
    """Until Ctrl-C, or once."""
    console, told = Console(), ""
    while True:
        waiting = wheel.go()
        if waiting.what != told:
            told = waiting.what
            console.say(f"waits for {told}")
        if once:
            return
        time.sleep(wheel.settings.poll)


def _read(words: list[str]) -> tuple[str, list[str]]:
    """The action, if there is one, and the settings."""
    said = [word for word in words if "=" in word]
    actions = [word for word in words if "=" not in word]
    for word in actions:
        if word not in _ACTIONS:
            raise unknown("action", word, _ACTIONS)
    if len(actions) > 1:
        raise UserError(f"{' and '.join(actions)} are {len(actions)} actions; name one of {', '.join(_ACTIONS)}")
    return (actions[0] if actions else ""), said
