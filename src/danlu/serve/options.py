"""How a server is set up.

In:  choices of whoever runs it.
Out: ``Options``.
Left out: the models and the store, which every server has to be given.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from danlu.records import Message
from danlu.serve.limits import Reach
from danlu.serve.rates import Rates
from danlu.serve.safety import Safety
from danlu.serve.worker import Setup
from danlu.serve.writing import LINGER_SECONDS


@dataclass(frozen=True)
class Options:
    """What is served, how, and to whom.

    Attributes:
        setup: how answers are written.
        waiting: answers that may wait for a row; more are refused.
        own_process: whether the models live in a process of their own, as they do behind ``danlu serve``.
        starters: things to try, which the page offers.
        shots: turns of examples that stand before every dialogue.
        runs: the folder of the runs that the page shows.
        reach: from where the server can be reached; from this machine only if not given.
        accounts: what tells ``danlu keys`` whose accounts are meant, such as ``--run runs/tang``; the store if empty.
        rates: how much a key may ask.
        second_look: share of comparisons in whose place one is shown that somebody else was shown, on one of the
            starters, if there is one.
        repeats: share in whose place one is shown that the same rater judged before, with sides exchanged.
        heldout_raters: share of raters of whose judgements nothing is learned.
        safety: the gates before and after the models; none if not given.
        follow: the run whose champion is served, from one to the next, once it has one.
        summarise: whether the page asks for notes on turns that no longer fit, where nobody chose.
        linger: seconds that an answer in a conversation goes on when its reader is gone.
    """

    setup: Setup = field(default_factory=Setup)
    waiting: int = 32
    own_process: bool = False
    starters: Sequence[str] = ()
    shots: Sequence[Message] = ()
    runs: Path | None = None
    reach: Reach = field(default_factory=Reach)
    accounts: str = ""
    rates: Rates = field(default_factory=Rates)
    second_look: float = 0.0
    repeats: float = 0.0
    heldout_raters: float = 0.0
    safety: Safety = field(default_factory=lambda: Safety(mode="off"))
    follow: Path | None = None
    summarise: bool = False
    linger: float = LINGER_SECONDS
