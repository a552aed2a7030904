"""The engine: requests come and go, and one forward pass a step serves all that are under way.

In:  a model made ready (``Generator``), requests at any time.
Out: after every step, the tokens that were drawn, their text, and answers that have ended.
Left out: threads, clients and clocks (``serve``); where keys and values lie (``storage``); guesses (``speculate``).

A step draws a token for every answer under way, runs the forward that the next draw needs, and only then, with what is
left of its budget, reads the prompts of newcomers: a long prompt delays nobody by more than one chunk. Rows are kept
without gaps, answers first and prompts that are still being read behind them, so that every forward is over
neighbouring rows.

What is drawn depends on a request's prompt, options and seed alone. Guesses do not change that: a guess is accepted if
it is the very token that is drawn in its place, which for the same uniform number happens exactly as often as the
rejection rule of Leviathan et al. (2023) accepts a guess that has all of its draft's probability.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Generator, Iterable, Sequence
from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional as F

from danlu.infer.answer import Answer, Completion, Request, Token
from danlu.infer.batching import Event, Use
from danlu.infer.forward import Forward
from danlu.infer.sampler import Options, draw, likeliest, logprobs_of
from danlu.infer.storage import Storage
from danlu.tokens.tokenizer import Tokenizer


class Ready(Protocol):
    """A model made ready for inference: what the engine needs of a ``Generator``."""

    tokenizer: Tokenizer
    stop_ids: tuple[int, ...]


class Drafter(Protocol):
    """Guesses what comes next; a wrong guess costs time and nothing else."""

    def propose(self, answers: Sequence[Answer], most: int) -> list[list[int]]:
        """At most so many tokens for every answer, which are those of the first rows; none is fine."""

    def heard(self, start: int, answers: Sequence[Answer], states: Tensor, lengths: Sequence[int]) -> None:
        """What the model makes of what is read, for those who guess from that.

        Args:
            start: the first answer's row.
            answers: whose ``read`` tells where their states begin.
            states: (R, T, D) after the last norm; good until the next step.
            lengths: how many of each row are meant.
        """


class Engine:
    """Continuous batching (Yu et al. 2022, Orca) with chunked prefill that never holds up the answers under way.

    Args:
        ready: tokenizer and stop tokens.
        forward: runs the model.
        storage: keys and values.
        rows: answers under way at most.
        budget: tokens that one step reads at most, answers counted first.
        drafter: guesses, if that pays.
        most_drafts: guesses per answer and step.
        draft_rows: with more answers than this under way nothing is guessed: products are busy enough.
    """

    def __init__(
        self, ready: Ready, forward: Forward, storage: Storage, *, rows: int, budget: int,
        drafter: Drafter | None = None, most_drafts: int = 4, draft_rows: int = 4,
    ) -> None:  # fmt: skip
        self._ready, self._forward, self._storage = ready, forward, storage
        self._max_rows, self._budget = rows, budget
        self._drafter, self._most_drafts, self._draft_rows = drafter, most_drafts, draft_rows
        self._waiting: deque[Answer] = deque()
        self._rows: list[Answer] = []  # the first ``_n`` are answered, the others read
        self._n = 0
        self._logits: Tensor | None = None  # (n, T, V): of the next token and, after guesses, of those behind them
        self._options: Options | None = None  # of the first n rows; None when they have changed

    @property
    def running(self) -> int:
        """Answers that have a row."""
        return len(self._rows)

    @property
    def waiting(self) -> int:
        """Answers that have none yet."""
        return len(self._waiting)

    @property
    def storage(self) -> Storage:
        """Where keys and values lie."""
        return self._storage

    def add(self, request: Request) -> Answer:
        """Queue a request, which the ``Generator`` has checked.

        Raises:
            UserError: its JSON schema cannot be kept to.
        """
        answer = Answer(request, self._ready.tokenizer, self._ready.stop_ids)
        answer.steer(self._forward.device)
        self._waiting.append(answer)
        return answer

    def cancel(self, answer: Answer) -> None:
        """Stop an answer; its row is free after the next step."""
        answer.cancelled = True

    def use(self) -> Use:
        """Of the cache, now."""
        blocks = self._storage.blocks
        return Use(*self._storage.used(), *((blocks.queries, blocks.hits) if blocks is not None else (0, 0)))

    def answers(self) -> list[Answer]:
        """Everything under way or waiting."""
        return [*self._rows, *self._waiting]

    def clear(self) -> None:
        """Let go of everything, after a fault."""
        self._waiting.clear()
        self._remove(range(len(self._rows)))
        self._logits = None

    @torch.inference_mode()
    def step(self) -> list[Event]:
        """One token on, or several where guesses were right."""
        events = self._draw() if self._n else []
        self._logits = None
        self._retire()
        if self._n:
            self._continue()
        self._admit()
        self._read()
        return events

    # Drawing.

    def _draw(self) -> list[Event]:
        """Draw for every row, and for the places behind its guesses while they turn out right."""
        assert self._logits is not None
        answers, width = self._rows[: self._n], self._logits.shape[1]
        logits, options = self._logits.flatten(0, 1), self._row_options()
        if width > 1:
            options = options.select(torch.arange(self._n, device=logits.device).repeat_interleave(width))
        numbers = [answer.uniform(ahead) for answer in answers for ahead in range(width)]
        uniform = torch.tensor(numbers, dtype=torch.float64, device=logits.device)
        tokens, logprobs = draw(logits, options, uniform)
        self._steer(logits, options, uniform, tokens, logprobs)
        tops = self._likeliest(logits, options, width)
        drawn, scores = tokens.tolist(), logprobs.tolist()
        events: list[Event] = []
        for row, answer in enumerate(answers):
            guesses, answer.drafts = answer.drafts, []
            for place in range(len(guesses) + 1):
                flat = row * width + place
                events.append(self._take(answer, Token(drawn[flat], scores[flat], tops.get(flat, ()))))
                if answer.finish_reason or place == len(guesses) or guesses[place] != drawn[flat]:
                    break
                answer.read += 1  # the guess was read together with the token before it
        return [event for event in events if not event.answer.cancelled]

    def _take(self, answer: Answer, token: Token) -> Event:
        """Add a token to an answer, and tell those parts of it that depend on what was said."""
        piece = answer.take(token)
        if answer.penalties is not None:
            device = self._forward.device
            answer.penalties.note(
                torch.tensor([token.id], device=device), torch.zeros(1, dtype=torch.int64, device=device)
            )
        if answer.grammar is not None:
            answer.grammar.take(token.id)
        return Event(answer, token, piece, answer.completion() if answer.finish_reason else None)

    def _steer(self, logits: Tensor, options: Options, uniform: Tensor, tokens: Tensor, logprobs: Tensor) -> None:
        """Draw again for answers with penalties or a grammar; the log-probability stays the model's own."""
        width = len(logits) // self._n
        for row, answer in enumerate(self._rows[: self._n]):
            if not answer.steered:
                continue
            flat = torch.tensor([row * width], device=logits.device)
            one, own = logits[flat], options.select(flat)
            if answer.penalties is not None:
                one = answer.penalties.apply(one, torch.zeros(1, dtype=torch.int64, device=logits.device))
            if answer.grammar is not None:
                one = answer.grammar.apply(one[0])[None]
            chosen, _ = draw(one, own, uniform[flat])
            tokens[flat], logprobs[flat] = chosen, logprobs_of(logits[flat], own, chosen)

    def _likeliest(self, logits: Tensor, options: Options, width: int) -> dict[int, tuple[tuple[int, float], ...]]:
        """By flat place, the likeliest tokens for the answers that ask for them."""
        counts = [answer.request.sampling.top_logprobs for answer in self._rows[: self._n]]
        if not any(counts):
            return {}
        ids, values = (x.tolist() for x in likeliest(logits, options, max(counts)))
        return {
            flat: tuple(zip(ids[flat], values[flat], strict=True))[: counts[flat // width]]
            for flat in range(len(logits))
            if counts[flat // width]
        }

    def _row_options(self) -> Options:
        if self._options is None:
            samplings = [answer.request.sampling for answer in self._rows[: self._n]]
            self._options = Options.of(samplings, self._forward.device)
        return self._options

    # Rows.

    def _retire(self) -> None:
        """Free the rows of answers that have ended or are no longer wanted."""
        done = [row for row, answer in enumerate(self._rows) if answer.finish_reason or answer.cancelled]
        for row in done:
            answer = self._rows[row]
            self._storage.publish(row, answer.sequence()[: answer.read], answer.request.salt)
        self._remove(done)
        if any(answer.cancelled for answer in self._waiting):
            self._waiting = deque(answer for answer in self._waiting if not answer.cancelled)

    def _remove(self, rows: Iterable[int]) -> None:
        """Close gaps: the last answer moves into one, prompts that are being read move up and keep their order."""
        for row in sorted(rows, reverse=True):
            target = row
            if row < self._n:
                self._n -= 1
                self._options = None
                if row < self._n:
                    self._move(self._n, row)
                target = self._n
            for source in range(target + 1, len(self._rows)):
                self._move(source, source - 1)
            self._rows.pop()
            self._storage.close()

    def _move(self, source: int, target: int) -> None:
        self._rows[target] = self._rows[source]
        self._storage.move(source, target, self._rows[source].read)

    def _admit(self) -> None:
        """Give rows to those who wait, in order, while there is room for all that each may need."""
        left: list[Answer] = []
        openings: list[Tensor] = []
        while self._waiting and len(self._rows) < self._max_rows and self._storage.fits(self._waiting[0].need):
            answer = self._waiting.popleft()
            twin = self._twin(answer.request)
            if twin is not None and self._rows[twin].read < len(answer.request.prompt):
                left.append(answer)  # the same prompt is being read: it will be copied when that is done
                continue
            nobody_reads = self._n == len(self._rows)
            self._open(answer, twin)
            if answer.read == len(answer.request.prompt) and nobody_reads:
                assert twin is not None
                answer.opening = self._rows[twin].opening
                assert answer.opening is not None
                openings.append(answer.opening)
                self._n += 1
            elif answer.read == len(answer.request.prompt):
                answer.read -= 1  # its row stands behind some that are being read: the last token is read again
        if openings:
            self._append(torch.stack(openings))
        self._waiting.extendleft(reversed(left))

    def _open(self, answer: Answer, twin: int | None) -> None:
        """A last row, with what is there already of its prompt: all of it, if a twin has read it."""
        prompt = answer.request.prompt
        self._rows.append(answer)
        answer.read = self._storage.open(answer.need, prompt, answer.request.salt)
        if twin is not None:
            self._storage.share(twin, len(self._rows) - 1, len(prompt))
            answer.read = len(prompt)
        answer.cached = min(answer.read, len(prompt) - 1)

    def _twin(self, request: Request) -> int | None:
        """A row with the same prompt, the furthest read."""
        twins = [
            (answer.read, row)
            for row, answer in enumerate(self._rows)
            if answer.request.prompt == request.prompt and answer.request.salt == request.salt
        ]
        return max(twins)[1] if twins else None

    # Forward passes.

    def _continue(self) -> None:
        """Read the last token of every answer, and guesses behind it."""
        answers = self._rows[: self._n]
        for answer, guesses in zip(answers, self._propose(answers), strict=True):
            answer.drafts = guesses
        rows = [[answer.tokens[-1], *answer.drafts] for answer in answers]
        reads, needs = [answer.read for answer in answers], [answer.need for answer in answers]
        states, self._logits = self._forward.decode(self._storage, rows, reads, needs)
        if self._drafter is not None:
            self._drafter.heard(0, answers, states, list(map(len, rows)))
        for answer in answers:
            answer.read += 1

    def _propose(self, answers: Sequence[Answer]) -> list[list[int]]:
        if self._drafter is None or self._n > self._draft_rows:
            return [[] for _ in answers]
        guesses = self._drafter.propose(answers, self._most_drafts)
        return [
            [] if answer.steered else guess[: answer.left - 1] for answer, guess in zip(answers, guesses, strict=True)
        ]

    def _read(self) -> None:
        """Read prompts, oldest first, as far as the budget goes; at least one token, so that all get there."""
        waiting = self._rows[self._n :]
        if not waiting:
            return
        budget = max(self._budget - self._n, 1)
        unread = [len(answer.request.prompt) - answer.read for answer in waiting]
        count, width = 1, min(unread[0], budget)
        while count < len(waiting) and (count + 1) * max(width, unread[count]) <= budget:
            width = max(width, unread[count])
            count += 1
        group = waiting[:count]
        rows = [list(a.request.prompt[a.read : a.read + width]) for a in group]
        states = self._forward.states(self._storage, self._n, rows, [a.read for a in group], [a.need for a in group])
        if self._drafter is not None:
            self._drafter.heard(self._n, group, states, list(map(len, rows)))
        for answer, row in zip(group, rows, strict=True):
            answer.read += len(row)
        self._finish_reading(group, states, [len(row) - 1 for row in rows])

    def _finish_reading(self, group: Sequence[Answer], states: Tensor, last: Sequence[int]) -> None:
        """Prompts that are read through join the answers, with the logits of their first token."""
        whole = [place for place, answer in enumerate(group) if answer.read == len(answer.request.prompt)]
        if not whole:
            return
        # Only the first of a group can be longer than the budget, and then it is alone: the whole ones come first.
        assert whole == list(range(len(whole)))
        ends = torch.tensor([last[place] for place in whole], device=states.device)
        logits = self._forward.logits(states[torch.tensor(whole, device=states.device), ends])[:, None]
        for place in whole:
            self._storage.publish(self._n + place, group[place].request.prompt, group[place].request.salt)
            group[place].opening = logits[place]
        self._append(logits)
        self._n += len(whole)

    def _append(self, logits: Tensor) -> None:
        """Logits (R, 1, V) of rows that are answered from now on."""
        if self._logits is not None:
            logits = torch.cat([self._logits, F.pad(logits, (0, 0, 0, self._logits.shape[1] - 1))])
        self._logits, self._options = logits, None


def follow(engine: Engine, request: Request) -> Generator[tuple[str, Token], None, Completion]:
    """Answer one request with an engine that has nothing else to do; closing the iterator cancels it.

    Yields:
        A piece of text per token, and the token; see ``Generator.stream``.

    Returns:
        The completion.
    """
    answer = engine.add(request)
    try:
        while True:
            for event in engine.step():
                yield event.piece, event.token
                if event.completion is not None:
                    return event.completion
    finally:
        engine.cancel(answer)
        engine.step()  # frees the row
