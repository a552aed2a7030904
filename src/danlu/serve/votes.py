"""The shapes on the wire of rankings and votes.

In:  JSON of clients that may be anybody's.
Out: checked requests.
Left out: what is done with them (``feedback``); what they share with every request for an answer (``wire``).
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from danlu.serve.bodies import Body
from danlu.serve.wire import Asking, ModelName, Rater, Text

MAX_ANSWERS = 6  # more than a person can hold in mind at once; InstructGPT's labellers had 4 to 9
MAX_REASON_CHARS = 2000

_Rank = Annotated[int, Field(ge=0, lt=MAX_ANSWERS)]


class RankRequest(Asking):
    """POST /api/rank: several answers of one model or more, which take turns."""

    models: Annotated[list[ModelName], Field(min_length=1, max_length=MAX_ANSWERS)]
    answers: Annotated[int, Field(ge=2, le=MAX_ANSWERS)] = 4
    conversation: Annotated[Text, Field(max_length=32)] | None = None
    rater: Rater = ""

    @model_validator(mode="after")
    def _all_answer(self) -> RankRequest:
        if len(self.models) > self.answers:
            raise ValueError(f"{len(self.models)} models cannot all give one of {self.answers} answers; ask for more")
        return self


class VoteRequest(Body):
    """POST /api/vote, in one of three ways.

    Attributes:
        choice: on two answers side by side.
        ranks: on any number of answers: one for each in the order of places, 0 the best, equal ones tie; none at all
            says that all are bad.
        thumb: on one answer by itself.
        reason: why, in the rater's words.
    """

    comparison: Annotated[Text, Field(min_length=1, max_length=32)]
    choice: Literal["left", "right", "tie", "both_bad"] | None = None
    ranks: Annotated[list[_Rank], Field(max_length=MAX_ANSWERS)] | None = None
    thumb: Literal["up", "down"] | None = None
    reason: Annotated[Text, Field(max_length=MAX_REASON_CHARS)] = ""
    rater: Rater = ""

    @model_validator(mode="after")
    def _one_way(self) -> VoteRequest:
        if sum(way is not None for way in (self.choice, self.ranks, self.thumb)) != 1:
            raise ValueError("a vote has a 'choice', 'ranks' or a 'thumb', one of the three")
        return self
