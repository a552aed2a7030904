"""The engine: answers do not depend on who else is there, on chunks, on what is cached, or on guesses."""

import json
import random

import pytest
import torch

from danlu.errors import UserError
from danlu.infer import Generator, Request, Sampling
from danlu.infer.engine import Engine
from danlu.infer.forward import Forward
from danlu.infer.speculate import DraftModel, PromptLookup
from danlu.infer.storage import Pages, Slots

GREEDY = Sampling(temperature=0.0, max_new_tokens=24)
WARM = Sampling(temperature=0.8, top_p=0.95, max_new_tokens=24)


def storages(generator, pool: int = 0):
    model, dtype = generator.model, generator.dtype
    return {
        "slots": lambda: Slots(model, dtype, 1 << 22, pool),
        "pages": lambda: Pages(model, dtype, 1 << 22, kept=pool > 0),
    }


def make(generator, kind: str = "slots", pool: int = 0, **options) -> Engine:
    settings = {"rows": 4, "budget": 64} | options
    forward = Forward(generator.model, generator.output_weight)
    return Engine(generator, forward, storages(generator, pool)[kind](), **settings)


def run(engine: Engine, requests) -> list:
    answers, found = [engine.add(request) for request in requests], {}
    while len(found) < len(answers):
        for event in engine.step():
            if event.completion is not None:
                found[event.answer] = event.completion
    return [found[answer] for answer in answers]


@pytest.fixture
def requests(prompts):
    samplings = [GREEDY, WARM, Sampling(temperature=1.0, top_k=9, max_new_tokens=5), WARM]
    chosen = [*prompts, prompts[1] * 3, prompts[1] * 3]
    return [Request(tuple(p), samplings[i % 4], seed=i) for i, p in enumerate(chosen)]


@pytest.fixture
def alone(model, tokenizer, requests):
    """Every request by itself, its prompt read at once, nothing cached, nothing guessed."""
    generator = Generator(model, tokenizer)
    return [generator.generate([r.prompt], r.sampling, [r.seed])[0].tokens for r in requests]


@pytest.mark.parametrize("kind", ["slots", "pages"])
@pytest.mark.parametrize(("rows", "budget"), [(1, 64), (3, 5), (8, 7), (8, 64)])
def test_rows_chunks_and_pages_change_nothing(model, tokenizer, requests, alone, kind, rows, budget):
    engine = make(Generator(model, tokenizer), kind, rows=rows, budget=budget)
    assert [c.tokens for c in run(engine, requests)] == alone
    engine.step()
    assert (engine.running, engine.waiting, engine.storage.used()[0]) == (0, 0, 0)


@pytest.mark.parametrize("kind", ["slots", "pages"])
def test_what_is_cached_changes_nothing_but_the_work(model, tokenizer, requests, alone, kind):
    engine = make(Generator(model, tokenizer), kind, pool=1 << 22, rows=2)
    first = run(engine, requests)
    again = run(engine, requests)
    assert [c.tokens for c in first] == [c.tokens for c in again] == alone
    long = [i for i, r in enumerate(requests) if len(r.prompt) > 17]
    assert long
    assert all(again[i].cached == (len(requests[i].prompt) - 1) // 16 * 16 for i in long)
    blocks = engine.storage.blocks
    hits = blocks.hits
    assert hits > 0
    run(engine, [Request(r.prompt, r.sampling, r.seed, salt="somebody else") for r in requests[:3]])
    assert blocks.hits == hits, "another salt finds nothing"


def test_a_dialogue_that_goes_on_is_not_read_again(llama, tokenizer, prompts):
    engine = make(Generator(llama, tokenizer), pool=1 << 22)
    (first,) = run(engine, [Request(tuple(prompts[1] * 2), GREEDY, 0)])
    further = (*prompts[1] * 2, *first.tokens, *prompts[0])
    (second,) = run(engine, [Request(further, Sampling(temperature=0.0, max_new_tokens=4), 0)])
    assert second.cached >= (len(further) - len(prompts[0]) - 2) // 16 * 16


@pytest.mark.parametrize("kind", ["slots", "pages"])
def test_equal_prompts_are_read_once(llama, tokenizer, prompts, kind):
    generator = Generator(llama, tokenizer)
    engine, prompt = make(generator, kind, rows=8), tuple(prompts[5])
    many = run(engine, [Request(prompt, WARM, seed) for seed in range(6)])
    assert [c.cached for c in many] == [0, *[len(prompt) - 1] * 5]
    assert [c.tokens for c in many] == [c.tokens for c in generator.generate([prompt] * 6, WARM, range(6))]


@pytest.mark.parametrize("guesser", ["lookup", "draft", "twin"])
def test_guesses_change_nothing_but_the_steps(model, tokenizer, requests, alone, build, guesser):
    generator = Generator(model, tokenizer)
    if guesser == "lookup":
        drafter = PromptLookup()
    else:
        drafting = generator if guesser == "twin" else Generator(build("llama", tokenizer.vocab_size), tokenizer)
        drafter = drafting.drafter(tokenizer.vocab_size)
    engine = make(generator, drafter=drafter, draft_rows=8)
    assert [c.tokens for c in run(engine, requests)] == alone
    if guesser == "twin":  # the model guesses for itself: all guesses are right, and so five tokens come a step
        lonely = make(generator, drafter=drafter, rows=1)
        answer, steps = lonely.add(Request(tuple(requests[0].prompt), GREEDY, 0)), 0
        while not answer.finish_reason:
            lonely.step()
            steps += 1
        assert steps <= 2 + -(-len(answer.tokens) // 5)


def test_lookup_finds_what_followed():
    class Text:
        def __init__(self, tokens):
            self.tokens = tokens

        def sequence(self):
            return self.tokens

    lookup, text = PromptLookup(), Text([1, 2, 3, 4, 9, 9, 5, 2, 3, 4, 7, 8, 2, 3, 4])
    assert lookup.propose([text], 3) == [[7, 8, 2]]
    text.tokens = [*text.tokens, 9]
    assert lookup.propose([text], 2) == [[9, 5]]
    text.tokens = [*text.tokens, 77]
    assert lookup.propose([text], 2) == [[]]


def test_a_draft_model_of_other_words_is_refused(llama, tokenizer):
    with pytest.raises(UserError, match="must be the same"):
        Generator(llama, tokenizer).drafter(tokenizer.vocab_size + 1)


class Counting(Forward):
    """Notes how many tokens a forward reads."""

    widest = 0

    def laid_out(self, rows, read, needs):
        self.widest = max(self.widest, *map(len, rows))
        return super().laid_out(rows, read, needs)


def test_a_draft_model_reads_a_long_prompt_in_chunks(llama, tokenizer, prompts):
    generator = Generator(llama, tokenizer)
    forward = Counting(generator.model, generator.output_weight)
    drafter = DraftModel(forward, Slots(llama, torch.float32, 1 << 22), tokenizer.vocab_size, chunk=8)
    engine = make(generator, drafter=drafter)
    short = Request(tuple(prompts[0]), Sampling(temperature=0.0, max_new_tokens=60), 0)
    long = Request(tuple(prompts[5] * 3)[:64], GREEDY, 1)
    alone = [generator.generate([r.prompt], r.sampling, [r.seed])[0].tokens for r in (short, long)]
    steps, answers = 0, [engine.add(short), engine.add(long)]
    while engine.running or engine.waiting:
        engine.step()
        steps += 1
    assert [tuple(answer.tokens) for answer in answers] == alone
    assert forward.widest == 8
    assert steps <= 3 + len(alone[0]) // 5 + 64 // 8, "it guesses for one while it reads for the other"


def test_samples_keep_their_distribution_with_guesses(tokenizer, prompts, build):
    """Chi-square of the second token over many seeds: what a step confirms is distributed as what a step draws."""
    model = build("llama", tokenizer.vocab_size)
    generator, sampling = Generator(model, tokenizer), Sampling(temperature=1.0, top_k=8, max_new_tokens=3)
    drafter = Generator(build("llama", tokenizer.vocab_size), tokenizer).drafter(tokenizer.vocab_size)
    engine = make(generator, rows=64, drafter=drafter, draft_rows=64)
    done = run(engine, [Request(tuple(prompts[1]), sampling, seed) for seed in range(800)])
    (first, count) = max(
        ((t, sum(c.tokens[0] == t for c in done)) for t in {c.tokens[0] for c in done}), key=lambda x: x[1]
    )
    with torch.no_grad():
        logits = model(torch.tensor([[*prompts[1], first]]))[0, -1]
    values, ids = logits.topk(8)
    expected = dict(zip(ids.tolist(), (values.softmax(0) * count).tolist(), strict=True))
    seen = [c.tokens[1] for c in done if c.tokens[0] == first and len(c.tokens) > 1]
    chi = sum((seen.count(token) - wanted) ** 2 / wanted for token, wanted in expected.items())
    assert len(seen) > 100
    assert chi < 24.3, "above the 99.9th percentile of chi-square with 7 degrees of freedom"


@pytest.mark.parametrize("kind", ["slots", "pages"])
def test_random_arrivals_and_departures_leave_nothing_behind(model, tokenizer, prompts, kind):
    rng, generator = random.Random(1), Generator(model, tokenizer)
    engine = make(generator, kind, pool=1 << 16, rows=3, budget=9)
    expected, live, wrong = {}, [], 0
    for turn in range(150):
        if rng.random() < 0.4:
            prompt = tuple(rng.choice(prompts) * rng.randrange(1, 3))
            sampling = Sampling(temperature=0.9, max_new_tokens=rng.randrange(1, 20))
            live.append(engine.add(Request(prompt[:70], sampling, turn)))
        if live and rng.random() < 0.15:
            engine.cancel(live.pop(rng.randrange(len(live))))
        for event in engine.step():
            if event.completion is not None and event.answer in live:
                live.remove(event.answer)
                expected[event.answer] = event.completion
    for answer in live:
        engine.cancel(answer)
    engine.step()
    assert (engine.running, engine.waiting, engine.storage.used()[0]) == (0, 0, 0)
    for answer, completion in list(expected.items())[:12]:
        request = answer.request
        wrong += generator.generate([request.prompt], request.sampling, [request.seed])[0].tokens != completion.tokens
    assert len(expected) > 12
    assert wrong == 0


def test_a_long_prompt_does_not_hold_up_an_answer(llama, tokenizer, prompts):
    engine = make(Generator(llama, tokenizer), budget=8)
    first = engine.add(Request(tuple(prompts[0]), Sampling(temperature=0.0, max_new_tokens=60), 0))
    while not first.tokens:
        engine.step()
    late = engine.add(Request((tokenizer.bos,) * 80, GREEDY, 0))
    before = len(first.tokens)
    for step in range(1, 9):
        engine.step()
        assert len(first.tokens) == before + step or first.finish_reason
        assert late.read <= 7 * step
    assert not late.tokens


def test_whoever_leaves_frees_the_row_within_a_step(llama, tokenizer, prompts):
    engine = make(Generator(llama, tokenizer), rows=2, budget=8)
    reading = engine.add(Request((tokenizer.bos,) * 60, GREEDY, 0))
    engine.step()
    assert 0 < reading.read < 60
    other = engine.add(Request(tuple(prompts[1]), GREEDY, 0))
    engine.cancel(reading)
    engine.step()
    assert engine.running == 1
    engine.cancel(other)
    engine.step()
    assert (engine.running, engine.storage.used()[0]) == (0, 0)


def test_room_is_promised_before_an_answer_begins(llama, tokenizer, prompts):
    generator = Generator(llama, tokenizer)
    per_token = llama.new_cache(1, 1).bytes_per_token()
    storage = Slots(generator.model, generator.dtype, 2 * 48 * per_token)
    engine = Engine(generator, Forward(generator.model, generator.output_weight), storage, rows=8, budget=64)
    sampling = Sampling(temperature=0.0, max_new_tokens=48 - len(prompts[5]))
    for _ in range(3):
        engine.add(Request((*prompts[5][:-1], 70), sampling, 0))
    engine.add(Request(tuple(prompts[0]), Sampling(max_new_tokens=90), 0))
    engine.step()
    engine.step()
    assert (engine.running, engine.waiting) == (2, 2)
    most = 0
    while engine.running or engine.waiting:
        engine.step()
        most = max(most, engine.storage.used()[0])
    assert most <= 2 * 48, "but for one that is alone"


SCHEMA = """{"type": "object", "properties": {"n": {"type": "integer"}, "w": {"enum": ["fox", "dog"]}},
"required": ["n", "w"], "additionalProperties": false}"""


def test_a_schema_is_kept_to(llama, tokenizer, prompts):
    generator = Generator(llama, tokenizer)
    sampling = Sampling(temperature=1.0, max_new_tokens=60, grammar=SCHEMA)
    plain = Sampling(temperature=1.0, max_new_tokens=10)
    done = generator.generate([prompts[1]] * 6, [sampling, plain] * 3, range(6))
    for constrained, free in zip(done[::2], done[1::2], strict=True):
        assert free.tokens
        if constrained.finish_reason == "stop":
            value = json.loads(constrained.text)
            assert isinstance(value["n"], int)
            assert value["w"] in ("fox", "dog")
        else:
            assert constrained.text.startswith('{"n": ')
    assert any(c.finish_reason == "stop" for c in done[::2])


@pytest.mark.parametrize("schema", ["{", '{"type": "no such"}', '{"$ref": "#/nowhere"}'])
def test_a_schema_that_cannot_be_kept_to_is_refused(llama, tokenizer, prompts, schema):
    with pytest.raises(UserError, match="the JSON schema cannot be"):
        Generator(llama, tokenizer).generate([prompts[1]], Sampling(grammar=schema, max_new_tokens=9), [0])
