r"""Tools in a dialogue, as words: what a model is told of them, what its calls look like, what they gave back.

In:  tools (name, description, parameters as a JSON schema), a dialogue, an answer as it comes.
Out: the dialogue with the tools in its system turn; calls found in the answer.
Left out: running a tool, which is the client's; what is asked over HTTP (``serve``).

The form is Hermes' (Nous Research), which Qwen2.5 and many others were trained on. A model whose own chat template
describes tools in another way is told of them in that way: the template is rendered once, for two made-up tools, and
what stands around them is kept, so nobody's request is ever run through a template.

    system     ... <tools>\n{"type": "function", "function": {...}}\n</tools> ...
    assistant  <tool_call>\n{"name": "weather", "arguments": {"city": "长安"}}\n</tool_call>
    user       <tool_response>\n...\n</tool_response>
"""

from __future__ import annotations

import functools
import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from danlu.records import Message
from danlu.tokens.chat import render_chatml, unasked_system
from danlu.tokens.tokenizer import Tokenizer

OPEN, CLOSE = "<tool_call>", "</tool_call>"

_BEFORE = (
    "# Tools\n\nYou may call one or more functions to assist with the user query.\n\n"
    "You are provided with function signatures within <tools></tools> XML tags:\n<tools>\n"
)
_AFTER = (
    "\n</tools>\n\nFor each function call, return a json object with function name and arguments within "
    '<tool_call></tool_call> XML tags:\n<tool_call>\n{"name": <function-name>, "arguments": <args-json-object>}\n'
    "</tool_call>"
)


@dataclass(frozen=True)
class Call:
    """A tool that an answer calls; ``arguments`` is the text of a JSON object."""

    name: str
    arguments: str


@dataclass(frozen=True)
class _Form:
    """How a system turn names tools.

    Attributes:
        after_system: between what the system says and the tools.
        before: before the first tool.
        between: between two.
        after: after the last.
    """

    after_system: str = "\n\n"
    before: str = _BEFORE
    between: str = "\n"
    after: str = _AFTER


def introduce(tokenizer: Tokenizer, messages: Sequence[Message], tools: Sequence[Mapping[str, Any]]) -> list[Message]:
    """The dialogue with a system turn that describes the tools.

    Args:
        tokenizer: the model's, whose own template decides the form if it knows tools.
        messages: an optional system turn, then the others.
        tools: in OpenAI's form, ``{"type": "function", "function": {...}}``.
    """
    form = _form(tokenizer)
    has_system = messages[0].role == "system"
    system = messages[0].content if has_system else unasked_system(tokenizer) or ""
    described = form.before + form.between.join(map(_json, tools)) + form.after
    told = Message("system", f"{system}{form.after_system}{described}" if system else described)
    return [told, *messages[has_system:]]


def spelt(call: Call) -> str:
    """A call as the model wrote it, or would have."""
    return f'{OPEN}\n{{"name": {_json(call.name)}, "arguments": {call.arguments}}}\n{CLOSE}'


def given_back(result: str) -> str:
    """What a tool gave back, as the model reads it in a user's turn."""
    return f"<tool_response>\n{result}\n</tool_response>"


class CallParser:
    """Finds calls in an answer as it comes: text is passed on at once, what may be a call is held back.

    The calls and the text do not depend on how the answer was cut into pieces. What looks like a call and is none
    (broken JSON, a tool that nobody offered) stays text.

    Args:
        names: tools that were offered; without any, everything is text.
        forced: the whole answer is one call, without tags.
    """

    def __init__(self, names: Collection[str], forced: bool = False) -> None:
        self._names, self._forced = frozenset(names), forced
        self._held = ""

    def feed(self, text: str) -> list[str | Call]:
        """Text and calls that are certain now, in order."""
        if not self._names:
            return self._kept(text)
        self._held += text
        found: list[str | Call] = []
        while not self._forced:
            before, tag, rest = self._held.partition(OPEN)
            inside, end, rest = rest.partition(CLOSE)
            if not end:
                break
            call = self._parse(inside)
            found += self._kept(before.rstrip() if call else before + tag + inside + end) + ([call] if call else [])
            self._held = rest
        if not self._forced:
            found += self._kept(self._safe())
        return found

    def finish(self) -> list[str | Call]:
        """What was held back, now that nothing follows."""
        held, self._held = self._held, ""
        call = self._parse(held.strip().removeprefix(OPEN).removesuffix(CLOSE)) if self._forced else None
        return [call] if call else self._kept(held)

    def _kept(self, text: str) -> list[str | Call]:
        return [text] if text else []

    def _safe(self) -> str:
        """Take off what cannot be the beginning of a call any more; blanks before one are part of it."""
        held = self._held
        place = held.find(OPEN)
        if place < 0:
            tail = max((n for n in range(len(OPEN)) if held.endswith(OPEN[:n])), default=0)
            place = len(held) - tail
        place = len(held[:place].rstrip())
        self._held = held[place:]
        return held[:place]

    def _parse(self, inside: str) -> Call | None:
        try:
            said = json.loads(inside)
        except (ValueError, RecursionError):
            return None
        if not isinstance(said, dict) or said.get("name") not in self._names:
            return None
        arguments = said.get("arguments", {})
        return Call(said["name"], _json(arguments)) if isinstance(arguments, dict) else None


@functools.lru_cache(maxsize=16)
def _form(tokenizer: Tokenizer) -> _Form:
    """The form of the model's own template, if it is ChatML's and names each tool as JSON; else Hermes'."""
    template = tokenizer.config.get("chat_template")
    if not isinstance(template, str) or "tools" not in template or "<|im_start|>" not in tokenizer.specials:
        return _Form()
    system = "\u2063system\u2063"
    first, second = ({"type": "function", "function": {"name": f"probe_{n}"}} for n in ("one", "two"))
    rendered = render_chatml(template, system, [first, second])
    for write in (_json, lambda tool: json.dumps(tool, separators=(",", ":"))):
        parts = rendered.split(write(first))
        if len(parts) == 2 and parts[0].startswith(system) and parts[1].count(write(second)) == 1:
            before, (between, after) = parts[0].removeprefix(system), parts[1].split(write(second))
            blank = len(before) - len(before.lstrip())
            return _Form(before[:blank], before[blank:], between, after)
    return _Form()


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)
