"""Chat: history, streaming, and a context that is never cut silently."""

import pytest

from danlu import hub
from danlu.errors import UserError
from danlu.infer import Chat, fit, reserve
from danlu.records import Message
from danlu.tokens.bpe import train_bpe
from danlu.tokens.chat import encode_prompt
from danlu.tokens.tokenizer import Tokenizer


@pytest.fixture(scope="module")
def folder(llama, tokenizer, tmp_path_factory):
    path = tmp_path_factory.mktemp("chat") / "model"
    hub.save(llama, path, tokenizer, card={})
    return path


def test_same_words_same_conversation(folder):
    talks = [Chat(folder, max_new_tokens=9, seed=seed) for seed in (0, 0, 1)]
    one, same, other = ([talk.say(text) for text in ("one", "two")] for talk in talks)
    assert one == same != other
    assert [message.role for message in talks[0].messages] == ["user", "assistant"] * 2


def test_history_is_part_of_the_prompt(folder):
    fresh, used = Chat(folder, temperature=0.0, max_new_tokens=8), Chat(folder, temperature=0.0, max_new_tokens=8)
    used.say("fox")
    assert fresh.say("dog") != used.say("dog")


def test_what_was_said_before_is_not_read_again(folder):
    talk, cached = Chat(folder, max_new_tokens=12), []
    step = talk._engine.step

    def watched():
        events = step()
        cached.extend(event.completion.cached for event in events if event.completion)
        return events

    talk._engine.step = watched
    talk.say("quick brown fox jumps over the lazy dog. quick fox")
    talk.say("fox")
    assert cached[0] == 0 < cached[1]


def test_oldest_turns_are_dropped_with_a_notice_and_the_system_stays(folder, monkeypatch):
    told = []
    talk = Chat(folder, system="dog", max_new_tokens=12, notice=told.append)
    prompts = []
    add = talk._engine.add
    monkeypatch.setattr(talk._engine, "add", lambda request: prompts.append(list(request.prompt)) or add(request))
    for n in range(6):
        talk.say(f"fox {n}")
    assert any("96 tokens is full" in notice and "left out" in notice for notice in told)
    assert len(talk.messages) == 13  # nothing is forgotten, it is only not read any more
    opening = prompts[0][: prompts[0].index(talk.generator.tokenizer.specials["<|user|>"])]
    assert all(prompt[: len(opening)] == opening and len(prompt) + 12 <= 96 for prompt in prompts)


@pytest.mark.parametrize("system", [[], [Message("system", "dog")]])
def test_fit_leaves_out_as_few_turns_as_will_do(tokenizer, system):
    turns = [Message(("user", "assistant")[i % 2], "fox " * (i % 5 + 1)) for i in range(13)]
    whole = len(encode_prompt(tokenizer, [*system, *turns]))
    for limit in range(whole + 2):
        kept = fit(tokenizer, [*system, *turns], limit)
        tail = kept[len(system) :]
        assert kept == [*system, *turns[-len(tail) :]]
        assert tail[0].role == "user"
        assert len(encode_prompt(tokenizer, kept)) <= limit or len(tail) == 1
        if len(tail) < len(turns):
            assert len(encode_prompt(tokenizer, [*system, *turns[-len(tail) - 2 :]])) > limit


def test_an_answer_is_kept_room_for():
    assert [reserve(256, wanted) for wanted in (None, 8, 64, 10_000)] == [64, 8, 64, 64]


def test_a_message_too_long_by_itself_is_refused_and_not_remembered(folder):
    talk = Chat(folder)
    with pytest.raises(UserError, match="context is 96"):
        talk.say("é" * 200)
    with pytest.raises(UserError, match="nothing was said"):
        talk.say("  ")
    assert talk.messages == []


def test_a_cancelled_answer_is_kept_as_far_as_it_got(folder):
    talk = Chat(folder)
    pieces = talk.stream("fox")
    first = next(pieces)
    pieces.close()
    assert talk.messages[-1].content == first


def test_a_base_model_is_told_so_at_once(llama, tmp_path):
    backend = train_bpe(["one two"], vocab_size=320, han_run=1, min_frequency=2, specials=["<|endoftext|>"])
    tokenizer = Tokenizer(backend, {"eos_token": "<|endoftext|>"})
    hub.save(llama, tmp_path / "model", tokenizer, card={})
    with pytest.raises(UserError, match="chat"):
        Chat(tmp_path / "model")
