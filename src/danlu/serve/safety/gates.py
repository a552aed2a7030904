"""The gates: a prompt is looked at before the model sees it, an answer before anybody reads it.

In:  scanners, in the order in which they are asked; what people say and what the model answers.
Out: ``Safety``: ``submit``, both gates around an engine; ``check_prompt`` and ``watch``, either by itself.
Left out: what is found (``scanners``), what becomes of it (``reviews``).

An answer is told piece by piece, each piece after every scanner is content with it: the first that blocks ends the
answer with ``finish_reason`` "content_filter". What was told stays told, nothing is put in its place, and nothing is
altered. Scanners think in threads of their own, so other answers go on meanwhile.
"""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from anyio.to_thread import run_sync

from danlu.align.guard import Guard
from danlu.errors import UserError, unknown
from danlu.evals.hazards import Category, Stage, read_rules
from danlu.records import Message
from danlu.serve.engine import Answers
from danlu.serve.jobs import Finished, Job, Piece
from danlu.serve.reviews import ModerationEvent
from danlu.serve.safety import reports
from danlu.serve.safety.holding import Held, filtered
from danlu.serve.safety.scanners import UNSAFE, Finding, GuardScanner, RuleScanner, Scanner

MODES = ("block", "review", "off")
_LOG = logging.getLogger("danlu.serve")


@dataclass(frozen=True)
class Origin:
    """Whose words are looked at, for the review queue.

    Attributes:
        owner: who asks; "" is whoever sits at this machine.
        conversation: id, or "" if none is kept.
        models: the name of the model that writes answer ``i``; the last one writes all further answers too.
    """

    owner: str = ""
    conversation: str = ""
    models: tuple[str, ...] = ("",)


class Writes(Protocol):
    """What the gates need of an engine."""

    def submit(self, jobs: Sequence[Job]) -> Answers:
        """Begin to write answers."""


class Passage(NamedTuple):
    """What became of a prompt.

    Attributes:
        answers: what to cancel when nobody listens any more; nothing is written if the prompt is blocked.
        events: of the answers, as far as they may be told.
        further: the field ``moderation`` of the answer, if something loud was found in the prompt.
    """

    answers: Answers
    events: AsyncIterator[Piece | Finished]
    further: dict[str, Any]


class Safety:
    """Scanners and what is done about their findings.

    Args:
        scanners: asked in this order; the first that blocks wins.
        mode: ``"block"``; ``"review"`` blocks nothing and only tells; ``"off"`` looks at nothing.
        categories: the kinds of harm by id, for those who ask what was found.
        tell: called in a thread with every event that is to be kept; a failure is logged and changes no answer.

    Attributes:
        heard: called with every event, on the event loop (metrics).
    """

    def __init__(
        self, scanners: Sequence[Scanner] = (), mode: str = "block", categories: Mapping[str, Category] | None = None,
        tell: Callable[[ModerationEvent], object] | None = None,
    ) -> None:  # fmt: skip
        if mode not in MODES:
            raise unknown("mode", mode, MODES, "--safety")
        self.scanners = () if mode == "off" else tuple(scanners)
        self.mode, self.categories, self._tell = mode, dict(categories or {}), tell
        self.heard: Callable[[ModerationEvent], object] = lambda _: None

    def telling(self, tell: Callable[[ModerationEvent], object] | None) -> Safety:
        """The same gates, whose events go to ``tell``."""
        return Safety(self.scanners, self.mode, self.categories, tell)

    def look(self, text: str, stage: Stage = "prompt") -> list[Finding]:
        """Everything found in a text, as it is handled here; takes a moment, so not on the event loop."""
        return [self._handled(found) for scanner in self.scanners for found in scanner.look(text, stage)[0]]

    async def scan_prompt(self, messages: Sequence[Message], origin: Origin = Origin(), new: int = 1) -> list[Finding]:
        """Everything found in a dialogue, whoever is said to have said it: a client may put words in any mouth.

        What is found in the ``new`` last messages is told; in earlier ones only what blocks, because the rest was told
        when it was new.
        """
        found: list[Finding] = []
        for place, message in enumerate(messages if self.scanners else ()):
            here = await run_sync(self.look, message.content)
            told = [finding for finding in here if finding.action == "block" or place >= len(messages) - new]
            await self._note(told, "prompt", message.content, origin, origin.models[0])
            found += told
            if blocked(found) is not None:
                break
        return found

    async def check_prompt(self, messages: Sequence[Message], origin: Origin = Origin()) -> Finding | None:
        """What blocks a dialogue, if anything does; the model must not see it then."""
        return blocked(await self.scan_prompt(messages, origin))

    async def submit(
        self, engine: Writes, jobs: Sequence[Job], messages: Sequence[Message], origin: Origin = Origin(),
        through: Callable[[Answers], AsyncIterator[Piece | Finished]] = aiter, new: int = 1,
    ) -> Passage:  # fmt: skip
        """Both gates: jobs go to the engine if their prompt may, and their answers are watched.

        Args:
            engine: what writes.
            jobs: answers to ``messages``.
            messages: the dialogue as the client sent it.
            origin: for the review queue.
            through: what answers go through before they are looked at.
            new: how many of the last messages nobody has looked at yet.

        Raises:
            Refusal: of the engine's.
        """
        found = await self.scan_prompt(messages, origin, new)
        further = reports.field(found, self.categories)
        if blocked(found):
            return Passage(Answers(jobs), _unanswered(len(jobs)), further)
        answers = engine.submit(jobs)
        return Passage(answers, self.watch(through(answers), origin, len(jobs)), further)

    async def watch(
        self, events: AsyncIterator[Piece | Finished], origin: Origin = Origin(), answers: int = 1
    ) -> AsyncIterator[Piece | Finished]:
        """Answers, told as far as they may be; ends when all are over, which may be before ``events`` does.

        Args:
            events: of the engine.
            origin: for the review queue.
            answers: how many are written.
        """
        if not self.scanners:
            async for event in events:
                yield event
            return
        held: dict[int, Held] = {}
        async for event in events:
            one = held.setdefault(event.index, Held(event.index, self.scanners))
            if one.over:
                continue
            found = await run_sync(one.add, event)
            new = [self._handled(finding) for finding in found]
            await self._note(new, "answer", one.text, origin, origin.models[min(event.index, len(origin.models) - 1)])
            for told in [one.stop()] if blocked(new) else one.release():
                yield told
            if len(held) == answers and all(one.over for one in held.values()):
                return

    def _handled(self, found: Finding) -> Finding:
        return replace(found, action="review") if self.mode == "review" else found

    async def _note(self, found: Sequence[Finding], stage: Stage, text: str, origin: Origin, model: str) -> None:
        for one in found:
            event = ModerationEvent(
                stage=stage, action=one.action, category=one.category, scanner=one.scanner, score=one.score, text=text,
                owner=origin.owner, conversation=origin.conversation, model=model,
            )  # fmt: skip
            self.heard(event)
            if self._tell is not None:
                try:
                    await run_sync(self._tell, event)
                except UserError as error:  # a full disk must neither let a text through nor stop one
                    _LOG.error("a finding was not kept: %s", error)


def blocked(found: Sequence[Finding]) -> Finding | None:
    """The first finding that blocks."""
    return next((finding for finding in found if finding.action == "block"), None)


async def _unanswered(answers: int) -> AsyncIterator[Piece | Finished]:
    """The answers to a prompt that is blocked: over before their first word."""
    for index in range(answers):
        yield Finished(index, filtered())


def open_safety(mode: str = "block", rules: Path | None = None, guard: Path | None = None) -> Safety:
    """The gates that ``danlu serve`` sets up.

    Args:
        mode: see ``Safety``.
        rules: a rules file of the user's, beside the bundled rules.
        guard: directory of a guard model.

    Raises:
        UserError: an unknown mode, rules that cannot be, a directory without a guard.
    """
    if mode == "off":
        if rules is not None or guard is not None:
            raise UserError("--safety off looks at nothing; leave out --rules and --guard, or choose block or review")
        return Safety(mode=mode)
    said = read_rules(rules)
    scanners: list[Scanner] = [RuleScanner(said)]
    if guard is not None:
        action = said.categories[UNSAFE].action
        if action == "off":
            raise UserError(
                f"the category '{UNSAFE}' is off in {rules}, so a guard has nothing to say; leave --guard out"
            )
        scanners.append(GuardScanner(Guard.load(guard), action))
    return Safety(scanners, mode, said.categories)
