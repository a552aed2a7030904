"""The engine's thread: a fault stays with its answer, closing ends everything, seeds repeat."""

from __future__ import annotations

import asyncio
import time
from dataclasses import replace

import pytest

from danlu import hub
from danlu.infer import Generator, Sampling
from danlu.records import Message
from danlu.serve.engine import Engine, Finished, Job
from danlu.serve.problems import Refusal
from danlu.serve.sse import cancelled_when_gone
from danlu.tokens import chat


@pytest.fixture(scope="module")
def job(model_dirs) -> Job:
    model, tokenizer = hub.load_pretrained(model_dirs["knows"])
    prompt = chat.encode_prompt(tokenizer, [Message("user", "greet")])
    return Job(Generator(model, tokenizer), prompt, Sampling(temperature=0.0, max_new_tokens=40), seed=3)


@pytest.fixture
def engine():
    engine = Engine(running=2, waiting=2)
    yield engine
    engine.close()


async def finish(engine: Engine, *jobs: Job) -> list[str]:
    events = [event async for event in engine.submit(jobs) if isinstance(event, Finished)]
    return [event.completion.text for event in sorted(events, key=lambda event: event.index)]


def test_what_is_streamed_is_what_the_generator_writes(engine, job):
    loose = replace(job, sampling=Sampling(temperature=1.5, max_new_tokens=20))
    expected = [loose.generator.generate([loose.prompt], loose.sampling, [seed])[0].text for seed in (1, 2)]
    assert asyncio.run(finish(engine, replace(loose, seed=1), replace(loose, seed=2))) == expected


def test_text_that_is_held_back_keeps_nobody_waiting(engine, job):
    hello = job.generator.generate([job.prompt], job.sampling, [0])[0].text
    held = replace(job, sampling=Sampling(temperature=0.0, max_new_tokens=40, stop=(hello + "never said",)))
    short = replace(job, sampling=Sampling(temperature=0.0, max_new_tokens=2))

    async def order() -> list[int]:
        return [event.index async for event in engine.submit([held, short]) if isinstance(event, Finished)]

    assert asyncio.run(order()) == [1, 0], "the answer with nothing to show yet was written in one go"


def test_a_fault_stays_with_its_answer(engine, job, caplog):
    broken = replace(job, prompt=[10**6])  # no such id: the embedding raises in the engine's thread
    with pytest.raises(Refusal, match="failed") as caught:
        asyncio.run(finish(engine, broken))
    assert caught.value.status_code == 500
    assert "10" not in caught.value.detail, "a fault's details are for the log, not for the client"
    assert "fault while writing" in caplog.text
    assert asyncio.run(finish(engine, job)) == ["Hello, 你好。"]
    deadline = time.monotonic() + 60  # the answer is told before its writer is taken off the list
    while not engine.idle():
        assert time.monotonic() < deadline


def test_all_of_a_request_is_queued_or_nothing(engine, job):
    async def overfill() -> None:
        long = replace(job, sampling=Sampling(temperature=2.0, max_new_tokens=2000))
        three = engine.submit([long] * 3)
        with pytest.raises(Refusal, match="full") as caught:
            engine.submit([job, job])
        assert caught.value.status_code == 503
        three.cancel()

    asyncio.run(overfill())


def test_who_left_the_queue_takes_no_room(engine, job):
    async def leave() -> None:
        long = replace(job, sampling=Sampling(temperature=2.0, max_new_tokens=2000))
        running, waiting = engine.submit([long] * 2), engine.submit([job] * 2)
        waiting.cancel()
        again = engine.submit([job] * 2)
        again.cancel()
        running.cancel()

    asyncio.run(leave())


def test_a_fault_passes_through_the_watch_for_the_client(engine, job):
    async def watched() -> None:
        answers = engine.submit([replace(job, prompt=[10**6])])
        async with cancelled_when_gone(asyncio.Event().wait, answers):
            async for _ in answers:
                pass

    with pytest.raises(Refusal, match="failed"):
        asyncio.run(watched())


def test_closing_ends_what_is_under_way(job):
    async def interrupted() -> None:
        engine = Engine()
        answers = engine.submit([replace(job, sampling=Sampling(temperature=2.0, max_new_tokens=4000))])
        await asyncio.sleep(0.05)
        await asyncio.to_thread(engine.close)
        with pytest.raises(Refusal, match="stopping"):
            async for _ in answers:
                pass
        with pytest.raises(Refusal, match="stopping"):
            engine.submit([job])

    asyncio.run(interrupted())
