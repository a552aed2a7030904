"""What the votes say, in words and columns for a terminal.

In:  the figures of ``align.tally``.
Out: text.
Left out: the same on the operator's page (``web/src/ops/ratings.tsx``).
"""

from __future__ import annotations

from typing import Any

_NOTHING = "-"
_WIDTHS = (7, 14, 13, 6, 6, 7, 7, 10)


def described(figures: dict[str, Any]) -> str:
    """Models with their ratings and intervals, then those who voted."""
    lines = [*_models(figures), "", *_agreement(figures), *_conduct(figures["conduct"])]
    return "\n".join(lines).strip()


def _models(figures: dict[str, Any]) -> list[str]:
    if not figures["models"]:
        return [f"{figures['votes']} votes, and none compares two models"]
    zero, enough = figures["anchor"], figures["enough"]
    rows = [_row("model", "points", "95 %", "equal length", "wins", "ties", "losses", "judged", "verdict")]
    for one in figures["models"]:
        few = one["low"] is None or one["judgements"] < enough  # drawn again, a few that agree always agree
        interval = _NOTHING if few else f"{one['low']:+.0f} to {one['high']:+.0f}"
        rows.append(
            _row(one["model"], _signed(one["points"]), interval, _signed(one["at_equal_length"]), one["wins"],
                 one["ties"], one["losses"], one["judgements"], _verdict(one, zero))
        )  # fmt: skip
    return [*rows, f"Bradley-Terry on Elo's scale, {zero} is 0; decided from {enough} judgements on"]


def _verdict(rating: dict[str, Any], anchor: str) -> str:
    if rating["points"] is None:
        return "never met"
    if rating["model"] == anchor:
        return "anchor"
    return ("better" if rating["points"] > 0 else "worse") if rating["decided"] else "undecided"


def _agreement(figures: dict[str, Any]) -> list[str]:
    found, again, left = figures["agreement"], figures["again"], figures["left"]
    imported = f", and {figures['imported']} imported judgements" if figures["imported"] else ""
    lines = [f"{figures['votes']} votes by {figures['conduct']['raters']} raters{imported}"]
    if found is None:
        lines.append("agreement: no comparison has been judged by two people yet")
    else:
        alpha = "" if found["alpha"] is None else f"; Krippendorff's alpha {found['alpha']:.2f}"
        low, high = found["same_interval"]
        lines.append(
            f"agreement: {found['same']:.0%} ({low:.0%} to {high:.0%}) of verdicts on {found['comparisons']} "
            f"comparisons judged by more than one of {found['raters']} people{alpha}"
        )
    if again is not None:
        lines.append(
            f"shown again with sides exchanged: {again['same']} of {again['comparisons']} verdicts the same, "
            f"{again['same_place']} for the same place"
        )
    if left["of"]:
        interval = f"{left['low']:.0%} to {left['high']:.0%}"
        lines.append(f"place: the left one won {left['times']} of {left['of']} ({interval})")
    return lines


def _conduct(conduct: dict[str, Any]) -> list[str]:
    counts = f"repeated votes: {conduct['duplicates']}; contradictory: {conduct['contradictions']}"
    return [f"{counts}; raters who flood: {conduct['flooding']}", *map(_rater, conduct["most"])]


def _rater(one: dict[str, Any]) -> str:
    flood = ": more than anybody can read" if one["flooding"] else ""
    name = one["rater"] or "(no name)"
    return f"  {name:<36} {one['judgements']:>6} votes {one['share']:>5.0%}  {one['busiest']} in a minute{flood}"


def _signed(points: float | None) -> str:
    return _NOTHING if points is None else f"{points:+.0f}"


def _row(model: object, *cells: object) -> str:
    padded = (f"{cell!s:>{width}}" for cell, width in zip(cells, _WIDTHS, strict=True))
    return "  ".join([f"{model!s:<14}", *padded]).rstrip()
