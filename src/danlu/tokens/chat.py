r"""Turns to ids: the only file that knows the template, the loss mask and the stop token.

In:  messages, and a tokenizer whose special tokens say which template it was made for.
Out: prompt ids; conversation ids with a loss mask; the ids that end an answer; the Jinja template for other readers.
Left out: tools (``tools``), images, and templates that are neither ours nor ChatML.

Ids are assembled turn by turn, never from a rendered string. So a message cannot open a turn of its own, and the ids
of a prompt are a prefix of the ids of every conversation that goes on from it.

    ours      <|bos|> <|user|> text <|end|> <|assistant|> text <|end|>
    ChatML    <|im_start|>user\n text <|im_end|>\n <|im_start|>assistant\n text <|im_end|>\n
"""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn

from jinja2 import TemplateError
from jinja2.sandbox import ImmutableSandboxedEnvironment

from danlu.errors import UserError
from danlu.records import ROLES, Conversation, Message, check_messages
from danlu.tokens.tokenizer import Tokenizer

BOS, END, PAD = "<|bos|>", "<|end|>", "<|pad|>"
_TURN = {role: f"<|{role}|>" for role in ROLES}
SPECIALS = (BOS, *_TURN.values(), END, PAD)
_CHATML = ("<|im_start|>", "<|im_end|>")

CHAT_TEMPLATE = (
    "{{ '<|bos|>' }}"
    "{% for message in messages %}"
    "{% if message['role'] not in ['system', 'user', 'assistant'] %}"
    "{{ raise_exception('unknown role ' + message['role']) }}"
    "{% endif %}"
    "{{ '<|' + message['role'] + '|>' }}"
    "{% if message['role'] == 'assistant' %}"
    "{% generation %}{{ message['content'] + '<|end|>' }}{% endgeneration %}"
    "{% else %}"
    "{{ message['content'] + '<|end|>' }}"
    "{% endif %}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)

TOKENIZER_CONFIG: dict[str, Any] = {
    "tokenizer_class": "PreTrainedTokenizerFast",
    "bos_token": BOS,
    "eos_token": END,
    "pad_token": PAD,
    "clean_up_tokenization_spaces": False,
    "chat_template": CHAT_TEMPLATE,
}


@dataclass(frozen=True)
class _Format:
    """A template as ids.

    Attributes:
        start: once, before everything.
        opening: role -> what opens its turn.
        stop: ends a turn; the assistant's is learnt, or the model would never stop.
        between: after a turn's end.
        system: what the system says in a conversation that has no system turn.
    """

    start: tuple[int, ...]
    opening: Mapping[str, tuple[int, ...]]
    stop: int
    between: tuple[int, ...] = ()
    system: str | None = None


def knows_turns(tokenizer: Tokenizer) -> bool:
    """Whether a tokenizer has the special tokens of a template that is known here."""
    return _has(tokenizer, SPECIALS) or _has(tokenizer, _CHATML)


def turn_ids(tokenizer: Tokenizer) -> list[int]:
    """What opens a turn of each role in our template: no document has it."""
    return [tokenizer.specials[name] for name in _TURN.values()]


def with_turns(tokenizer: Tokenizer) -> Tokenizer:
    """A tokenizer that has our special tokens and template too; what it could spell before, it spells as before."""
    return tokenizer.extended(SPECIALS, TOKENIZER_CONFIG)


def encode_prompt(tokenizer: Tokenizer, messages: Sequence[Message]) -> list[int]:
    """Ids of a dialogue up to where the assistant's answer begins.

    Args:
        tokenizer: ours, or a ChatML one.
        messages: an optional system turn, then user and assistant in turn, the user's last.

    Raises:
        ValueError: the turns are in another order.
        UserError: the tokenizer has no chat template that is known here.
    """
    form = _format(tokenizer)
    ids, _ = _encode_turns(tokenizer, form, check_messages(messages, answered=False))
    return [*ids, *form.opening["assistant"]]


def encode_opening(tokenizer: Tokenizer, role: str) -> list[int]:
    """Ids of a dialogue in which nothing has been said yet and it is the turn of ``role``.

    Raises:
        UserError: the tokenizer has no chat template that is known here.
    """
    form = _format(tokenizer)
    said = [] if form.system is None else _encode_turns(tokenizer, form, [Message("system", form.system)])[0]
    return [*(said or form.start), *form.opening[role]]


def encode_conversation(tokenizer: Tokenizer, conversation: Conversation) -> tuple[list[int], list[int]]:
    """Ids of a whole dialogue and its loss mask.

    Returns:
        ids, and 0/1 of the same length: 1 on the assistant's text and on the stop token after it, nowhere else.

    Raises:
        ValueError: the turns are in a wrong order.
        UserError: the tokenizer has no chat template that is known here.
    """
    return _encode_turns(tokenizer, _format(tokenizer), check_messages(conversation.messages, answered=True))


def encode_fitting(
    tokenizer: Tokenizer, prompts: Iterable[tuple[Message, ...]], longest: int
) -> Iterator[tuple[tuple[Message, ...], list[int]]]:
    """Those of some prompts that take at most ``longest`` tokens, each with its ids."""
    for prompt in prompts:
        ids = encode_prompt(tokenizer, prompt)
        if len(ids) <= longest:
            yield prompt, ids


def stop_ids(tokenizer: Tokenizer) -> tuple[int, ...]:
    """The ids at which an answer is over: the template's, then the vocabulary's own end if that is another.

    Raises:
        UserError: the tokenizer has no chat template that is known here.
    """
    return tuple(dict.fromkeys((_format(tokenizer).stop, tokenizer.eos)))


def unasked_system(tokenizer: Tokenizer) -> str | None:
    """What the system says in a dialogue without a system turn; None if nothing."""
    return _format(tokenizer).system


def render_chatml(template: str, system: str, tools: Sequence[Mapping[str, Any]]) -> str:
    """What a ChatML template lets the system say when there are tools; empty if it does something else.

    Args:
        template: Jinja, rendered in a sandbox.
        system: what the system says.
        tools: in OpenAI's form.
    """
    messages = [{"role": "system", "content": system}, {"role": "user", "content": "?"}]
    try:
        rendered = _render(template, messages, tools=list(tools))
    except UserError:
        return ""
    match = re.fullmatch(r"<\|im_start\|>system\n(.*)<\|im_end\|>\n<\|im_start\|>user\n.*", rendered, re.DOTALL)
    return match[1] if match else ""


def _encode_turns(tokenizer: Tokenizer, form: _Format, messages: Sequence[Message]) -> tuple[list[int], list[int]]:
    if form.system is not None and messages[0].role != "system":
        messages = [Message("system", form.system), *messages]
    ids = list(form.start)
    mask = [0] * len(ids)
    for message in messages:
        opening, said = form.opening[message.role], [*tokenizer.encode(message.content), form.stop]
        learnt = int(message.role == "assistant")
        ids += [*opening, *said, *form.between]
        mask += [0] * len(opening) + [learnt] * len(said) + [0] * len(form.between)
    return ids, mask


def _has(tokenizer: Tokenizer, tokens: Sequence[str]) -> bool:
    return all(token in tokenizer.specials for token in tokens)


@functools.lru_cache(maxsize=16)
def _format(tokenizer: Tokenizer) -> _Format:
    names = tokenizer.specials
    if _has(tokenizer, SPECIALS):
        return _Format((names[BOS],), {role: (names[token],) for role, token in _TURN.items()}, names[END])
    if _has(tokenizer, _CHATML):
        opening = {role: (names["<|im_start|>"], *tokenizer.encode(role + "\n")) for role in ROLES}
        system = _chatml_system(tokenizer.config.get("chat_template"))
        return _Format((), opening, names["<|im_end|>"], tuple(tokenizer.encode("\n")), system)
    raise UserError(
        "this tokenizer has neither danlu's special tokens nor ChatML's <|im_start|> and <|im_end|>; "
        "use a chat model with a ChatML template, or a base model with a tokenizer trained here"
    )


def _chatml_system(template: Any) -> str | None:
    """What a ChatML template lets the system say unasked; found by rendering it once for a probe.

    Raises:
        UserError: the template does something else than ChatML, so ids made here would not be what the model knows.
    """
    if not isinstance(template, str):
        return None
    probe = "\u2063probe\u2063"
    rendered = _render(template, [{"role": "user", "content": probe}])
    plain = f"<|im_start|>user\n{probe}<|im_end|>\n<|im_start|>assistant\n"
    if rendered == plain:
        return None
    match = re.fullmatch(r"<\|im_start\|>system\n(.*)<\|im_end\|>\n" + re.escape(plain), rendered, re.DOTALL)
    if match is None:
        raise UserError(f"the chat template renders {rendered!r}, which is not ChatML; remove it or use another model")
    return match[1]


def _render(template: str, messages: list[dict[str, str]], **further: Any) -> str:
    """Render as transformers does, without its generation markers; a template is somebody's program, so sandboxed."""

    def raise_exception(message: str) -> NoReturn:
        raise TemplateError(message)

    environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)
    environment.globals["raise_exception"] = raise_exception
    # As transformers: Jinja's own filter escapes for HTML, and no model has seen a tool like that.
    environment.filters["tojson"] = lambda value, **_: json.dumps(value, ensure_ascii=False)
    unmarked = re.sub(r"\{%-?\s*(end)?generation\s*-?%\}", "", template)
    try:
        return environment.from_string(unmarked).render(messages=messages, add_generation_prompt=True, **further)
    except TemplateError as error:
        raise UserError(f"the chat template cannot be rendered ({error}); mend it or use another model") from None
