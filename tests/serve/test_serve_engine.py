"""The engine's worker, in a thread and in a process: faults stay with their answers, closing ends everything."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from dataclasses import replace

import pytest

from danlu import hub
from danlu.errors import UserError
from danlu.infer import Completion, Generator, Sampling, Token
from danlu.records import Message
from danlu.serve import jobs
from danlu.serve.engine import Engine
from danlu.serve.jobs import Fault, Finished, Job, Loaded, Piece, Stats
from danlu.serve.problems import Refusal
from danlu.serve.sse import cancelled_when_gone
from danlu.serve.worker import Setup, Worker
from danlu.tokens import chat

LONG = Sampling(temperature=2.0, max_new_tokens=2000)


@pytest.fixture(scope="module")
def generator(model_dirs) -> Generator:
    return Generator(*hub.load_pretrained(model_dirs["knows"]))


@pytest.fixture(scope="module")
def job(generator) -> Job:
    prompt = chat.encode_prompt(generator.tokenizer, [Message("user", "greet")])
    return Job("knows", tuple(prompt), Sampling(temperature=0.0, max_new_tokens=40), seed=3)


@pytest.fixture
def engine(generator):
    engine = Engine.in_thread({"knows": generator}, Setup(rows=2), waiting=2)
    yield engine
    engine.close()


@pytest.fixture(scope="module")
def distant(model_dirs):
    """An engine whose worker is a process."""
    engine = Engine.in_process(model_dirs, Setup(rows=2), waiting=2)
    yield engine
    engine.close()


async def finish(engine: Engine, *jobs: Job) -> list[str]:
    events = [event async for event in engine.submit(jobs) if isinstance(event, Finished)]
    return [event.completion.text for event in sorted(events, key=lambda event: event.index)]


async def settle(engine: Engine) -> None:
    deadline = time.monotonic() + 60
    while not engine.idle() or engine.stats().running:
        assert time.monotonic() < deadline
        await asyncio.sleep(0.01)


@pytest.mark.parametrize("kind", ["engine", "distant"])
def test_what_is_streamed_is_what_the_generator_writes(request, kind, generator, job):
    loose = replace(job, sampling=Sampling(temperature=1.5, max_new_tokens=20, stop=("zz",), top_logprobs=2))
    expected = [generator.generate([loose.prompt], loose.sampling, [seed])[0] for seed in (1, 2)]

    async def both() -> None:
        answers = request.getfixturevalue(kind).submit([replace(loose, seed=1), replace(loose, seed=2)])
        texts, tokens, done = ["", ""], [[], []], {}
        async for event in answers:
            if isinstance(event, Finished):
                done[event.index] = event.completion
            else:
                texts[event.index] += event.text
                tokens[event.index] += event.tokens
        for i, wanted in enumerate(expected):
            assert (texts[i], done[i].tokens) == (wanted.text, wanted.tokens)
            assert [[id for id, _ in top] for top in done[i].top] == [[id for id, _ in top] for top in wanted.top]
            assert done[i].logprobs == pytest.approx(wanted.logprobs, abs=1e-4)
            assert [token.id for token in tokens[i]] == list(wanted.tokens)[: len(tokens[i])]

    asyncio.run(both())


def test_text_that_is_held_back_keeps_nobody_waiting(engine, generator, job):
    hello = generator.generate([job.prompt], job.sampling, [0])[0].text
    held = replace(job, sampling=Sampling(temperature=0.0, max_new_tokens=40, stop=(hello + "never said",)))
    short = replace(job, sampling=Sampling(temperature=0.0, max_new_tokens=2))

    async def order() -> list[int]:
        return [event.index async for event in engine.submit([held, short]) if isinstance(event, Finished)]

    assert asyncio.run(order()) == [1, 0], "the answer with nothing to show yet was written in one go"


@pytest.mark.parametrize("kind", ["engine", "distant"])
def test_a_request_that_cannot_be_answered_says_why(request, kind, job):
    engine = request.getfixturevalue(kind)
    broken = replace(job, prompt=(10**6,))
    with pytest.raises(Refusal, match="the prompt has token 1000000, and the vocabulary has") as caught:
        asyncio.run(finish(engine, broken))
    assert caught.value.status_code == 400
    assert asyncio.run(finish(engine, job)) == ["Hello, 你好。"]


def test_a_fault_of_ours_ends_what_is_under_way_and_no_more(engine, generator, job, caplog):
    weight = generator.model.embed.weight
    width = generator.model.embed.weight.shape[1]

    async def spoil() -> None:
        answers = engine.submit([replace(job, sampling=LONG)])
        await asyncio.sleep(0.05)
        generator.model.embed.weight = type(weight)(weight.detach()[:, : width // 2])  # the next forward raises
        async for _ in answers:
            pass

    try:
        with pytest.raises(Refusal, match="failed") as caught:
            asyncio.run(spoil())
    finally:
        generator.model.embed.weight = weight
    assert caught.value.status_code == 500
    assert "shape" not in caught.value.detail, "a fault's details are for the log, not for the client"
    assert "fault while writing" in caplog.text
    assert asyncio.run(finish(engine, job)) == ["Hello, 你好。"]
    asyncio.run(settle(engine))


def test_all_of_a_request_is_queued_or_nothing(engine, job):
    async def overfill() -> None:
        long = replace(job, sampling=LONG)
        three = engine.submit([long] * 3)
        with pytest.raises(Refusal, match="full") as caught:
            engine.submit([job, job])
        assert caught.value.status_code == 503
        assert caught.value.headers["retry-after"]
        three.cancel()

    asyncio.run(overfill())


def test_few_prompts_that_are_very_long_fill_the_queue_too(engine, job):
    async def overfill() -> None:
        long, huge = replace(job, sampling=LONG), replace(job, prompt=job.prompt * 60_000)
        first = engine.submit([long, long, huge])
        with pytest.raises(Refusal, match="full"):
            engine.submit([job])
        first.cancel()
        await settle(engine)

    asyncio.run(overfill())


def test_who_left_the_queue_takes_no_room(engine, job):
    async def leave() -> None:
        long = replace(job, sampling=LONG)
        running, waiting = engine.submit([long] * 2), engine.submit([job] * 2)
        waiting.cancel()
        again = engine.submit([job] * 2)
        again.cancel()
        running.cancel()
        await settle(engine)

    asyncio.run(leave())


def test_a_fault_passes_through_the_watch_for_the_client(engine, job):
    async def watched() -> None:
        answers = engine.submit([replace(job, prompt=(10**6,))])
        async with cancelled_when_gone(asyncio.Event().wait, answers):
            async for _ in answers:
                pass

    with pytest.raises(Refusal, match="vocabulary"):
        asyncio.run(watched())


def test_closing_ends_what_is_under_way(generator, job):
    async def interrupted() -> None:
        engine = Engine.in_thread({"knows": generator}, Setup())
        answers = engine.submit([replace(job, sampling=Sampling(temperature=2.0, max_new_tokens=4000))])
        await asyncio.sleep(0.05)
        await asyncio.to_thread(engine.close)
        with pytest.raises(Refusal, match="stopping"):
            async for _ in answers:
                pass
        with pytest.raises(Refusal, match="stopping"):
            engine.submit([job])

    asyncio.run(interrupted())


def test_a_worker_that_dies_is_replaced_and_its_answers_end_with_an_error(distant, job, model_dirs, tmp_path):
    since = replace(job, weights="0a1b")  # a model that the worker was given since it began
    expected = Generator(*hub.load_pretrained(model_dirs["random"])).generate([job.prompt], job.sampling, [job.seed])

    async def killed() -> None:
        await asyncio.wrap_future(distant.load(since.weights, model_dirs["random"]))
        with pytest.raises(UserError, match="nowhere"):
            await asyncio.wrap_future(distant.load("none", tmp_path / "nowhere"))
        answers = distant.submit([replace(job, sampling=LONG)])
        await asyncio.sleep(0.1)
        os.kill(distant._line.pid, signal.SIGKILL)
        with pytest.raises(Refusal, match="has died"):
            async for _ in answers:
                pass
        with pytest.raises(Refusal, match="started again"):  # nothing is taken for a worker that is not there
            distant.submit([job])
        deadline = time.monotonic() + 60
        while distant._out_of_order:
            assert time.monotonic() < deadline
            await asyncio.sleep(0.1)
        assert await finish(distant, job) == ["Hello, 你好。"]
        assert await finish(distant, since) == [expected[0].text]
        distant.drop(since.weights)
        with pytest.raises(Refusal, match="has been replaced"):
            await finish(distant, since)

    asyncio.run(killed())


def test_a_conversation_that_goes_on_finds_its_beginning(distant, job):
    async def twice() -> None:
        longer = replace(job, prompt=job.prompt * 4)
        await finish(distant, longer)
        before = distant.stats().prefix_hits
        await finish(distant, longer)
        deadline = time.monotonic() + 60
        while distant.stats().prefix_hits <= before:  # the worker tells twice a second
            assert time.monotonic() < deadline
            await asyncio.sleep(0.01)
        await settle(distant)
        found = distant.stats().prefix_hits
        await finish(distant, replace(longer, salt="somebody else"))
        await settle(distant)
        assert distant.stats().prefix_hits == found
        assert (distant.stats().running, distant.stats().cache_used) == (0, 0)
        assert distant.stats().cache_total > 0

    asyncio.run(twice())


def test_a_model_that_cannot_be_served_is_refused_with_the_workers_reason(generator, tmp_path):
    with pytest.raises(UserError, match="nowhere"):
        Engine.in_process({"x": tmp_path / "nowhere"}, Setup())
    with pytest.raises(UserError, match="draft"):
        Engine.in_thread({"x": generator}, Setup(guess=str(tmp_path / "draft")))
    with pytest.raises(UserError, match="n_mtp is 0"):
        Engine.in_thread({"x": generator}, Setup(guess="mtp"))


def test_what_goes_over_the_line_comes_back_equal(job):
    sampling = Sampling(0.5, 3, 0.9, 0.1, 7, ("a", "二"), 1.1, 0.2, 0.3, ((5, -1.5),), 2, "{}")
    there = replace(job, sampling=sampling, salt="me", weights="0a1b")
    assert jobs.read_job(jobs.write_job(there)) == there
    completion = Completion((1, 2), "好\n", (-0.5, -1.0), "stop", (((1, -0.5),), ((2, -1.0), (3, -2.0))), 16)
    token = Token(1, -0.5, ((1, -0.5), (2, -1.5)))
    said = (Piece(1, "好\n", (token,)), Finished(2, completion), Fault(0, 400, "no"))
    for event in (*said, Stats(1, 2, 3, 4, 5, 6), Loaded("0a1b", "/a")):
        line = jobs.write_event(event)
        assert line.count(b"\n") == 1
        assert jobs.read_event(line) == event


def test_a_reading_ends_between_two_chunks_when_nobody_wants_it(generator):
    told, prompt = {}, (generator.tokenizer.bos,) * 1000
    worker = Worker({"knows": generator}, Setup(), told.__setitem__)
    for number in (1, 2):
        worker.submit(number, Job("knows", prompt, Sampling(), 0, read="embed"))
    assert worker._obey()
    worker._read_one()
    worker.cancel(1)
    assert worker._obey()
    for _ in range(8):  # of 128 tokens
        worker._read_one()
    assert not {1, 2} & told.keys()
    worker._read_one()
    assert isinstance(told[2], Finished)
    assert 1 not in told


@pytest.mark.parametrize("kind", ["engine", "distant"])
def test_a_prompt_is_only_read(kind, request, generator):
    engine = request.getfixturevalue(kind)
    ids = (generator.tokenizer.bos, *generator.tokenizer.encode("greet"))

    async def read(what: str, prompt: tuple[int, ...]) -> Finished:
        (found,) = [
            event async for event in engine.submit([Job("knows", prompt, Sampling(top_logprobs=2), 0, read=what)])
        ]
        return found

    assert asyncio.run(read("embed", ids)).vector == pytest.approx(generator.embed([ids])[0].tolist(), abs=1e-5)
    scored = asyncio.run(read("score", ids)).completion
    expected = generator.score([ids], 2)[0]
    assert scored.tokens == tuple(token.id for token in expected) == ids[1:]
    assert scored.logprobs == pytest.approx([token.logprob for token in expected], abs=1e-5)
    assert [len(top) for top in scored.top] == [2] * len(expected)
    assert asyncio.run(read("score", ids[:1])).completion.tokens == ()
    with pytest.raises(Refusal, match="does not exist") as caught:
        asyncio.run(read("embed", (10**6,)))
    assert caught.value.status_code == 400
