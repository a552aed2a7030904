"""Pictures of a run, as SVG text to stand in a page.

In:  metrics and figures that the stages wrote.
Out: SVG markup, one picture per function; an empty string when a stage has nothing to show. A picture is as wide as a
    phone, so that its words can be read there; a page gives it more room where there is more.
Left out: numbers that are better read in a table (``page``).
"""

from __future__ import annotations

import io
import itertools
import re
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib

matplotlib.use("svg")
import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure

WIDTH = 4.4  # inches
INK, CINNABAR, JADE, GOLD, MIST = "#2b2a28", "#b5382a", "#3c7a5e", "#c08a2d", "#9a948a"
_STYLE: Any = {  # matplotlib types this by every key it knows
    "font.size": 10,
    "axes.edgecolor": MIST,
    "axes.labelcolor": INK,
    "text.color": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "figure.facecolor": "none",
    "axes.facecolor": "none",
    "svg.fonttype": "path",
    "svg.hashsalt": "danlu",
}


def funnel(steps: Sequence[tuple[str, int]]) -> str:
    """What was read, what was dropped on the way, and what was kept.

    Args:
        steps: (label, documents left) from first to last.
    """
    if not steps:
        return ""
    with plt.rc_context(_STYLE):
        figure, axes = plt.subplots(figsize=(WIDTH, 0.42 * len(steps) + 0.7))
        labels = [label for label, _ in steps]
        counts = [count for _, count in steps]
        axes.barh(labels[::-1], counts[::-1], color=JADE, height=0.62)
        for place, count in enumerate(counts[::-1]):
            axes.text(count, place, f" {count:,}", va="center")
        axes.set_xlim(0, max(counts) * 1.18 or 1)
        axes.xaxis.set_visible(False)
        axes.spines["bottom"].set_visible(False)
        return _svg(figure)


def loss(stage: str, rows: Sequence[Mapping[str, Any]], unit: str) -> str:
    """Training and held-out loss of a stage against the step.

    Args:
        stage: its name.
        rows: of its metrics.jsonl.
        unit: what its loss is counted in.
    """
    if not any("loss" in row for row in rows):
        return ""
    with plt.rc_context(_STYLE):
        figure, axes = plt.subplots(figsize=(WIDTH, 2.8))
        _curve(axes, rows, "loss", MIST, "training")
        _curve(axes, rows, "val_loss", CINNABAR, "held out")
        axes.set_title(stage, loc="left")
        axes.set_xlabel("step")
        axes.set_ylabel(unit)
        axes.legend(frameon=False)
        return _svg(figure)


def alignment(probes: Sequence[Mapping[str, Any]], hidden: str) -> str:
    """Proxy reward and the hidden metric against sqrt(KL): the over-optimisation picture (Gao et al., 2210.10760).

    Args:
        probes: monitor rows with ``kl``, ``reward`` and the hidden metric.
        hidden: the key of the hidden metric to draw.
    """
    probes = [row for row in probes if "reward" in row]
    if len(probes) < 2:
        return ""
    with plt.rc_context(_STYLE):
        figure, axes = plt.subplots(figsize=(WIDTH, 3.0))
        distance = [max(float(row["kl"]), 0.0) ** 0.5 for row in probes]
        first = axes.plot(distance, [row["reward"] for row in probes], "o-", color=GOLD, label="proxy reward")
        axes.set_xlabel("sqrt(KL to the chat model), nats per answer")
        axes.set_ylabel("proxy reward")
        other = axes.twinx()
        other.spines["right"].set_visible(True)
        second = other.plot(distance, [row[hidden] for row in probes], "s-", color=CINNABAR, label=f"hidden: {hidden}")
        other.set_ylabel(hidden)
        other.set_ylim(bottom=0)
        axes.legend(handles=[*first, *second], frameon=False, loc="best")
        return _svg(figure)


def over_optimisation(
    panels: Mapping[str, Mapping[str, Sequence[tuple[float, float, float]]]],
    alarms: Mapping[str, Mapping[str, int]] | None = None,
) -> str:
    """Proxy (dashed) and gold against sqrt(KL), a panel per method, a colour per reward model (Gao et al., figure 1).

    Args:
        panels: method -> what the reward model was taught from -> (sqrt(KL), proxy gained, gold gained) of every look.
        alarms: the same two -> which of those looks is to be marked with a cross, if one is.
    """
    if not panels:
        return ""
    with plt.rc_context(_STYLE):
        figure, drawn = plt.subplots(1, len(panels), figsize=(3.6 * len(panels) + 0.8, 3.2), squeeze=False)
        for axes, (method, models) in zip(drawn[0], panels.items(), strict=True):
            for (label, rows), colour in zip(models.items(), itertools.cycle((GOLD, CINNABAR, JADE, INK, MIST))):
                if not rows:  # nothing was scored
                    continue
                distance, proxy, gold = zip(*rows, strict=True)
                axes.plot(distance, proxy, "--", color=colour, linewidth=1.2)
                axes.plot(distance, gold, "o-", color=colour, linewidth=1.4, markersize=4, label=label)
                rung = (alarms or {}).get(method, {}).get(label)
                if rung is not None:
                    axes.plot(distance[rung], gold[rung], "x", color=INK, markersize=9, markeredgewidth=2)
            axes.set_title(method, loc="left")
            axes.set_xlabel("sqrt(KL to the chat model), nats per answer")
            axes.axhline(0.0, color=MIST, linewidth=0.6)
        drawn[0][0].set_ylabel("gained, in deviations\n(dashed: proxy, solid: gold)")
        drawn[0][0].legend(frameon=False)
        figure.tight_layout()
        return _svg(figure)


def bars(values: Mapping[str, Mapping[str, float]], unit: str) -> str:
    """Grouped bars, lying, so that many of them need no more width: metric -> {stage of life: value}."""
    shown = {name: row for name, row in values.items() if row}
    if not shown:
        return ""
    colours = (MIST, JADE, CINNABAR, GOLD)
    lives = list(next(iter(shown.values())))
    with plt.rc_context(_STYLE):
        figure, axes = plt.subplots(figsize=(WIDTH, 0.17 * len(lives) * len(shown) + 0.9))
        width = 0.8 / len(lives)
        for place, life in enumerate(lives):
            lengths = [row.get(life, 0.0) for row in shown.values()]
            spots = [group + place * width for group in range(len(shown))]
            drawn = axes.barh(spots, lengths, width * 0.92, color=colours[place % 4], label=life)
            axes.bar_label(drawn, fmt="%.2f", fontsize=8, padding=2)
        names = [name.replace(" and ", "\nand ").replace(" by ", "\nby ") for name in shown]
        axes.set_yticks([group + 0.4 - width / 2 for group in range(len(shown))], names)
        axes.invert_yaxis()  # the first on top
        axes.margins(x=0.12)  # room for the numbers
        axes.set_xlabel(unit)
        axes.legend(frameon=False, ncols=len(lives), loc="lower right", bbox_to_anchor=(1, 1), columnspacing=1)
        return _svg(figure)


def sizes(table: Sequence[Mapping[str, Any]]) -> str:
    """Compression: bits per byte against megabytes, one dot per variant."""
    if len(table) < 2:
        return ""
    with plt.rc_context(_STYLE):
        figure, axes = plt.subplots(figsize=(WIDTH, 2.8))
        for row, colour in zip(table, itertools.cycle((INK, JADE, MIST, CINNABAR, GOLD))):
            axes.plot(row["bytes"] / 1e6, row["bpb"], "o", color=colour, markersize=9)
            axes.annotate(f"  {row['variant']}", (row["bytes"] / 1e6, row["bpb"]), va="center")
        axes.set_xlim(0, max(row["bytes"] for row in table) / 1e6 * 1.35)
        axes.set_xlabel("megabytes of weights")
        axes.set_ylabel("bits per byte of answers")
        return _svg(figure)


def _curve(axes: Axes, rows: Sequence[Mapping[str, Any]], key: str, colour: str, label: str) -> None:
    points = [(row["step"], row[key]) for row in rows if row.get(key) is not None]
    if points:
        steps, values = zip(*points, strict=True)
        alone = "o" if len(values) == 1 else None  # a line has two ends
        axes.plot(steps, values, marker=alone, color=colour, label=label, linewidth=1.4)


def _svg(figure: Figure) -> str:
    """The figure as an ``<svg>`` element without XML header and metadata: equal data give equal bytes, and no links."""
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", bbox_inches="tight", metadata={"Date": None})
    plt.close(figure)
    text = buffer.getvalue()
    return re.sub(r"<metadata>.*?</metadata>", "", text[text.index("<svg") :], flags=re.S)
