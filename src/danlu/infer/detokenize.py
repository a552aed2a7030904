"""Token ids to text as they come: never half a character, never a piece of a stop string.

In:  token ids, one at a time; strings to stop at.
Out: pieces of text that are safe to show, and whether a stop string has been reached.
Left out: stop *tokens* (``generate``).
"""

from __future__ import annotations

import codecs
from collections.abc import Sequence

from danlu.tokens.tokenizer import Tokenizer


class StopScanner:
    """Passes text on, holding back a tail that may turn out to be a stop string.

    The stop string that is complete first counts, as if the text came character by character, so the outcome does not
    depend on how the text was cut into pieces.
    """

    def __init__(self, stop: Sequence[str]) -> None:
        self.stopped = False
        self._stop = tuple(stop)
        self._held = ""

    def feed(self, text: str) -> str:
        """Text that may be shown now; nothing any more once ``stopped``."""
        if self.stopped:
            return ""
        text = self._held + text
        places = [(text.find(stop) + len(stop), text.find(stop)) for stop in self._stop if stop in text]
        if places:
            self.stopped, self._held = True, ""
            return text[: min(places)[1]]
        safe = len(text) - self._suspicious(text)
        self._held = text[safe:]
        return text[:safe]

    def finish(self) -> str:
        """What was held back, now that nothing follows it."""
        held, self._held = self._held, ""
        return held

    def _suspicious(self, text: str) -> int:
        """Length of the longest tail that begins a stop string."""
        longest = max((len(stop) for stop in self._stop), default=0)
        for n in range(min(longest - 1, len(text)), 0, -1):
            if any(stop.startswith(text[-n:]) for stop in self._stop):
                return n
        return 0


class Detokenizer:
    """Text from token ids, piece by piece; the pieces add up to the tokenizer's own ``decode`` of all ids.

    Attributes:
        stopped: whether a stop string has been reached; the text ends before it.
    """

    def __init__(self, tokenizer: Tokenizer, stop: Sequence[str] = ()) -> None:
        self._tokenizer = tokenizer
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._scanner = StopScanner(stop)

    @property
    def stopped(self) -> bool:  # noqa: D102
        return self._scanner.stopped

    def feed(self, token: int) -> str:
        """Text that this token makes safe to show; special tokens say nothing."""
        return self._scanner.feed(self._decoder.decode(self._tokenizer.token_bytes(token)))

    def finish(self) -> str:
        """The rest: half a character becomes U+FFFD, a half stop string is shown after all."""
        if self.stopped:
            return ""
        rest = self._scanner.feed(self._decoder.decode(b"", final=True))
        return rest + self._scanner.finish()
