"""Generation: the batch changes nothing, log-probabilities are the model's, and nothing is cut off silently."""

import pytest
import torch

from danlu.errors import UserError
from danlu.infer.generate import Generator
from danlu.infer.sampler import Sampling
from danlu.model import linear_logprobs

GREEDY = Sampling(temperature=0.0, max_new_tokens=20)
WARM = Sampling(temperature=0.9, max_new_tokens=20)


def without_cache(model, prompt, n, stop_ids):
    """The next token is the likeliest of a full forward, n times over."""
    tokens = list(prompt)
    while len(tokens) - len(prompt) < n and not (set(tokens[len(prompt) :]) & set(stop_ids)):
        with torch.no_grad():
            tokens.append(int(model(torch.tensor([tokens]))[0, -1].argmax()))
    return tuple(tokens[len(prompt) :])


def test_greedy_batched_is_single_is_without_cache(model, tokenizer, prompts):
    generator = Generator(model, tokenizer)
    together = generator.generate(prompts, GREEDY, [0] * len(prompts))
    for prompt, completion in zip(prompts, together, strict=True):
        assert generator.generate([prompt], GREEDY, [5])[0].tokens == completion.tokens
        assert without_cache(model, prompt, 20, generator.stop_ids) == completion.tokens


def test_a_sample_does_not_depend_on_its_neighbours(model, tokenizer, prompts):
    generator = Generator(model, tokenizer)
    seeds = list(range(100, 100 + len(prompts)))
    together = generator.generate([*prompts, *prompts], WARM, [*seeds, *seeds])  # equal prompts are read once
    assert len({completion.tokens for completion in together}) == len(prompts)
    backwards = generator.generate(prompts[::-1], WARM, seeds[::-1], batch_size=4)
    alone = [generator.generate([prompt], WARM, [seed])[0] for prompt, seed in zip(prompts, seeds, strict=True)]
    for one, twin, other, single in zip(together, together[len(prompts) :], backwards[::-1], alone, strict=False):
        assert one.tokens == twin.tokens
        assert one.tokens == other.tokens == single.tokens
        assert one.text == other.text == single.text
        torch.testing.assert_close(one.logprobs, single.logprobs, atol=1e-4, rtol=1e-4)


def test_seeds_reproduce_and_differ(llama, tokenizer, prompts):
    generator = Generator(llama, tokenizer)
    first = generator.generate([prompts[1]] * 8, WARM, range(8))
    assert first == generator.generate([prompts[1]] * 8, WARM, range(8))
    assert len({completion.tokens for completion in first}) == 8


def test_rows_end_on_their_own_and_may_have_their_own_options(llama, tokenizer, prompts):
    samplings = [Sampling(temperature=0.0, max_new_tokens=n) for n in (1, 7, 19, 40)]
    generator = Generator(llama, tokenizer)
    together = generator.generate(prompts[:4], samplings, range(4))
    for prompt, sampling, completion in zip(prompts, samplings, together, strict=False):
        assert completion.tokens == generator.generate([prompt], sampling, [0])[0].tokens
        assert completion.finish_reason == ("stop" if completion.tokens[-1] in generator.stop_ids else "length")


@pytest.mark.parametrize("temperature", [0.7, 1.0])
def test_logprobs_are_those_of_a_teacher_forced_pass(model, tokenizer, prompts, temperature):
    sampling = Sampling(temperature=temperature, top_k=20, max_new_tokens=24)
    done = Generator(model, tokenizer).generate(prompts, sampling, range(6))
    for prompt, completion in zip(prompts, done, strict=True):
        whole = torch.tensor([*prompt, *completion.tokens])
        with torch.no_grad():
            states = model.hidden(whole[None, :-1]).states[0, len(prompt) - 1 :]
            wanted = linear_logprobs(states, model.output_weight, whole[len(prompt) :], temperature=temperature)
        torch.testing.assert_close(torch.tensor(completion.logprobs), wanted, atol=1e-4, rtol=1e-4)


def test_stop_token_ends_an_answer_and_is_not_text(tokenizer, prompts, build):
    model = build("llama", tokenizer.vocab_size, tie_embeddings=False)
    with torch.no_grad():
        model.head.weight.zero_()  # all tokens alike: the stop token comes sooner or later
        model.head.weight[64:320] = -5 * model.hidden(torch.tensor([prompts[0]])).states[0, -1].sign()
    generator = Generator(model, tokenizer)
    done = generator.generate([prompts[0]] * 64, Sampling(max_new_tokens=60), range(64))
    stopped = [completion for completion in done if completion.finish_reason == "stop"]
    assert {completion.finish_reason for completion in done} == {"stop", "length"}
    for completion in stopped:
        assert completion.tokens.index(tokenizer.eos) == len(completion.tokens) - 1
        assert completion.text == tokenizer.decode(completion.tokens[:-1])
        assert len(completion.logprobs) == len(completion.tokens)


def test_stop_strings_end_an_answer_before_them(llama, tokenizer, prompts):
    generator = Generator(llama, tokenizer)
    free = generator.generate(prompts, WARM, range(6))
    for prompt, completion, seed in zip(prompts, free, range(6), strict=True):
        stop = completion.text[len(completion.text) // 2 :][:3]
        sampling = Sampling(temperature=0.9, max_new_tokens=20, stop=(stop, "never said"))
        (cut,) = generator.generate([prompt], sampling, [seed])
        assert cut.text == completion.text[: completion.text.index(stop)]
        assert (cut.finish_reason, cut.tokens) == ("stop", completion.tokens[: len(cut.tokens)])
        assert "".join(piece for piece, _ in generator.stream(prompt, sampling, seed)) == cut.text


def test_stream_says_what_generate_says_and_can_be_closed(model, tokenizer, prompts):
    generator = Generator(model, tokenizer)
    pieces, tokens, result = [], [], None
    stream = generator.stream(prompts[2], WARM, 3)
    while result is None:
        try:
            piece, token = next(stream)
            pieces.append(piece)
            tokens.append(token)
        except StopIteration as end:
            result = end.value
    assert result == generator.generate([prompts[2]], WARM, [3])[0]
    assert "".join(pieces) == result.text
    assert [token.id for token in tokens] == list(result.tokens)
    assert [token.logprob for token in tokens] == list(result.logprobs)
    assert len(pieces) > 1
    cancelled = generator.stream(prompts[2], WARM, 3)
    assert next(cancelled) == (pieces[0], tokens[0])
    cancelled.close()


def test_a_stream_gives_a_piece_per_token_though_it_may_say_nothing_yet(llama, tokenizer, prompts):
    generator = Generator(llama, tokenizer)
    (free,) = generator.generate([prompts[0]], WARM, [0])
    sampling = Sampling(temperature=0.9, max_new_tokens=20, stop=(free.text + "never said",))  # holds everything back
    pieces = [piece for piece, _ in generator.stream(prompts[0], sampling, 0)]
    assert len(pieces) == len(free.tokens)
    assert not any(pieces[:-1])
    assert pieces[-1] == free.text


def test_context_overflow_is_refused_with_both_numbers(llama, tokenizer):
    generator = Generator(llama, tokenizer)
    prompt = [tokenizer.bos] * 77
    assert len(generator.generate([prompt], Sampling(max_new_tokens=19), [0])[0].tokens) <= 19
    with pytest.raises(UserError, match=r"77 tokens and max_new_tokens 20 need 97 .* 96"):
        generator.generate([prompt], GREEDY, [0])
    with pytest.raises(UserError, match="97"):
        generator.stream(prompt, GREEDY, 0)
    with pytest.raises(UserError, match="no tokens"):
        generator.generate([[]], GREEDY, [0])


def test_refresh_follows_training_and_the_model_stays_trainable(tokenizer, prompts, build):
    model = build("llama", tokenizer.vocab_size)
    generator = Generator(model, tokenizer, torch.bfloat16)
    before = generator.generate(prompts, GREEDY, [0] * 6)
    model(torch.tensor([prompts[5]])).square().mean().backward()  # still fp32, still differentiable
    with torch.no_grad():
        for parameter in model.parameters():
            assert parameter.dtype == torch.float32
            parameter.sub_(parameter.grad.sign() * 0.2)
    generator.refresh()
    after = generator.generate(prompts, GREEDY, [0] * 6)
    assert after == Generator(model, tokenizer, torch.bfloat16).generate(prompts, GREEDY, [0] * 6)
    assert [c.tokens for c in after] != [c.tokens for c in before]


def test_padding_of_the_vocabulary_is_never_drawn(tokenizer, prompts, build):
    model = build("llama", tokenizer.vocab_size + 64, tie_embeddings=False)
    with torch.no_grad():
        model.head.weight[tokenizer.vocab_size :] = 3 * model.head.weight[:64]
    done = Generator(model, tokenizer).generate([prompts[0]] * 16, Sampling(max_new_tokens=30), range(16))
    assert max(max(completion.tokens) for completion in done) < tokenizer.vocab_size
    with pytest.raises(UserError, match="not a pair"):
        Generator(build("llama", 64), tokenizer)


def test_the_likeliest_tokens_are_the_models_and_only_for_those_who_ask(llama, tokenizer, prompts):
    generator = Generator(llama, tokenizer)
    asks = Sampling(temperature=0.9, max_new_tokens=12, top_logprobs=4)
    plain = Sampling(temperature=0.9, max_new_tokens=20)
    told, silent = generator.generate([prompts[1]] * 2, [asks, plain], [3, 4])
    assert silent.top == ()
    assert len(told.top) == len(told.tokens)
    with torch.no_grad():
        logits = llama(torch.tensor([[*prompts[1], *told.tokens]]))[0, len(prompts[1]) - 1 : -1, : tokenizer.vocab_size]
    values, ids = (logits / 0.9).log_softmax(-1).topk(4)
    assert [[id for id, _ in top] for top in told.top] == ids.tolist()
    torch.testing.assert_close(torch.tensor([[p for _, p in top] for top in told.top]), values, atol=1e-4, rtol=1e-4)
    streamed = [token for _, token in generator.stream(prompts[1], asks, 3)]
    assert [token.id for token in streamed] == list(told.tokens)
    assert all([id for id, _ in token.top] == row for token, row in zip(streamed, ids.tolist(), strict=True))
