"""The contract between every stage that talks: template, mask, stop token."""

from __future__ import annotations

import itertools
from dataclasses import asdict
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer

from danlu.errors import UserError
from danlu.records import Conversation, Message
from danlu.tokens import Tokenizer, chat
from danlu.tokens.bpe import train_bpe

DIALOGUE = (
    Message("system", "你是诗人"),
    Message("user", "hi"),
    Message("assistant", "好"),
    Message("user", ""),
    Message("assistant", "a\n"),
)
GOLDEN = {
    "ours": [
        ("<|bos|>", 0), ("<|system|>", 0), ("你是诗人", 0), ("<|end|>", 0),
        ("<|user|>", 0), ("hi", 0), ("<|end|>", 0), ("<|assistant|>", 0), ("好", 1), ("<|end|>", 1),
        ("<|user|>", 0), ("<|end|>", 0), ("<|assistant|>", 0), ("a\n", 1), ("<|end|>", 1),
    ],
    "chatml": [
        ("<|im_start|>", 0), ("system\n你是诗人", 0), ("<|im_end|>", 0), ("\n", 0),
        ("<|im_start|>", 0), ("user\nhi", 0), ("<|im_end|>", 0), ("\n", 0),
        ("<|im_start|>", 0), ("assistant\n", 0), ("好", 1), ("<|im_end|>", 1), ("\n", 0),
        ("<|im_start|>", 0), ("user\n", 0), ("<|im_end|>", 0), ("\n", 0),
        ("<|im_start|>", 0), ("assistant\n", 0), ("a\n", 1), ("<|im_end|>", 1), ("\n", 0),
    ],
}  # fmt: skip
"""The dialogue as the model reads it, and what of it is learnt."""

harmless = st.text(max_size=12).map(lambda text: text.replace("<|", "<"))
hostile = st.text(max_size=12) | st.sampled_from([*chat.SPECIALS, "<|im_end|>", "\n", " ", "春眠"])


@st.composite
def dialogues(draw: st.DrawFn, said: st.SearchStrategy[str] = hostile) -> tuple[Message, ...]:
    messages = [Message("system", draw(said))] if draw(st.booleans()) else []
    for _ in range(draw(st.integers(1, 3))):
        messages += [Message("user", draw(said) + "?"), Message("assistant", draw(said) + "!")]
    return tuple(messages)


@pytest.fixture(scope="module", params=["ours", "chatml"])
def kind(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(scope="module")
def folder(kind: str, tokenizer: Tokenizer, chatml_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    if kind == "chatml":
        return chatml_folder
    place = tmp_path_factory.mktemp("ours")
    tokenizer.save(place)
    return place


@pytest.fixture(scope="module")
def talker(folder: Path) -> Tokenizer:
    return Tokenizer.load(folder)


@pytest.fixture(scope="module")
def theirs(folder: Path) -> AutoTokenizer:
    return AutoTokenizer.from_pretrained(folder)


def test_golden_table(kind: str, talker: Tokenizer) -> None:
    ids, mask = chat.encode_conversation(talker, Conversation(DIALOGUE))
    names = {id: name for name, id in talker.specials.items()}
    pairs = itertools.groupby(zip(ids, mask, strict=True), key=lambda pair: (names.get(pair[0]), pair[1]))
    spelt = [(name or talker.decode([id for id, _ in group]), learnt) for (name, learnt), group in pairs]
    assert spelt == GOLDEN[kind]


@settings(max_examples=80, deadline=None)
@given(messages=dialogues())
def test_prompts_are_prefixes_and_answers_are_learnt_with_their_stop(
    talker: Tokenizer, messages: tuple[Message, ...]
) -> None:
    ids, mask = chat.encode_conversation(talker, Conversation(messages))
    stop = chat.stop_ids(talker)[0]
    expected = [0] * len(ids)
    for turn, message in enumerate(messages):
        if message.role != "assistant":
            continue
        prompt = chat.encode_prompt(talker, messages[:turn])
        assert ids[: len(prompt)] == prompt
        answer = [*talker.encode(message.content), stop]
        assert ids[len(prompt) : len(prompt) + len(answer)] == answer
        expected[len(prompt) : len(prompt) + len(answer)] = [1] * len(answer)
    assert mask == expected
    assert talker.pad not in chat.stop_ids(talker)


@settings(max_examples=80, deadline=None)
@given(messages=dialogues())
def test_messages_cannot_open_or_close_turns(talker: Tokenizer, messages: tuple[Message, ...]) -> None:
    """Special ids are the template's alone: as many as for the same turns with nothing to forge."""

    def specials(turns: tuple[Message, ...]) -> list[int]:
        ids, _ = chat.encode_conversation(talker, Conversation(turns))
        return [id for id in ids if id in talker.specials.values()]

    assert specials(messages) == specials(tuple(Message(m.role, "x") for m in messages))


@settings(max_examples=60, deadline=None)
@given(messages=dialogues(harmless))
def test_transformers_renders_the_same_ids(
    kind: str, talker: Tokenizer, theirs: AutoTokenizer, messages: tuple[Message, ...]
) -> None:
    if kind == "chatml":  # a line break of its own would merge with ChatML's, which is text, into one token
        messages = tuple(Message(m.role, m.content.lstrip()) for m in messages)
    rows = [asdict(message) for message in messages]
    ids, _ = chat.encode_conversation(talker, Conversation(messages))
    assert theirs.apply_chat_template(rows, tokenize=True, return_dict=False) == ids
    asked = theirs.apply_chat_template(rows[:-1], tokenize=True, return_dict=False, add_generation_prompt=True)
    assert asked == chat.encode_prompt(talker, messages[:-1])


def test_transformers_finds_the_same_mask(tokenizer: Tokenizer, tmp_path: Path) -> None:
    tokenizer.save(tmp_path)
    theirs = AutoTokenizer.from_pretrained(tmp_path)
    rows = [asdict(message) for message in DIALOGUE]
    encoded = theirs.apply_chat_template(rows, tokenize=True, return_dict=True, return_assistant_tokens_mask=True)
    assert encoded["assistant_masks"] == chat.encode_conversation(tokenizer, Conversation(DIALOGUE))[1]


def test_stop_ids(talker: Tokenizer, kind: str) -> None:
    assert chat.stop_ids(talker) == (talker.specials["<|end|>" if kind == "ours" else "<|im_end|>"],)


def test_wrong_turns_are_refused(tokenizer: Tokenizer) -> None:
    with pytest.raises(ValueError, match="user, assistant"):
        chat.encode_prompt(tokenizer, [Message("assistant", "hi")])
    with pytest.raises(ValueError, match="last turn"):
        chat.encode_conversation(tokenizer, Conversation((Message("user", "hi"),)))
    with pytest.raises(ValueError, match="unknown role"):
        chat.encode_prompt(tokenizer, [Message("tool", "hi")])


def foreign(names: list[str], **config: str) -> Tokenizer:
    backend = train_bpe(["hi"], vocab_size=320, han_run=1, min_frequency=2, specials=names)
    return Tokenizer(backend, {"eos_token": names[0], **config})


def test_unknown_templates_are_refused() -> None:
    with pytest.raises(UserError, match="neither danlu's special tokens nor ChatML's"):
        chat.stop_ids(foreign(["</s>", "[INST]"]))
    chatml = ["<|im_end|>", "<|im_start|>"]
    with pytest.raises(UserError, match="not ChatML"):
        chat.stop_ids(foreign(chatml, chat_template="{{ messages[0]['content'] }}"))
    with pytest.raises(UserError, match="cannot be rendered"):
        chat.stop_ids(foreign(chatml, chat_template="{{ raise_exception('no') }}"))
    with pytest.raises(UserError, match="cannot be rendered"):
        chat.stop_ids(foreign(chatml, chat_template="{{ ''.__class__.__mro__[1].__subclasses__() }}"))


def test_base_chatml_vocabulary_stops_at_both_ends() -> None:
    """A base model's eos is another token than the template's; either one is the end of an answer."""
    tokenizer = foreign(["<|endoftext|>", "<|im_start|>", "<|im_end|>"])
    assert chat.stop_ids(tokenizer) == (tokenizer.specials["<|im_end|>"], tokenizer.eos)
