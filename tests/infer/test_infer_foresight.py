"""The model guesses for itself: answers stay what they were, guesses are what the layer foresees and save steps."""

from __future__ import annotations

import pytest
import torch

from danlu.errors import UserError
from danlu.infer import Generator, Request, Sampling
from danlu.infer.engine import Engine
from danlu.infer.foresight import ForesightDrafter
from danlu.infer.forward import Forward
from danlu.infer.kernels import kernels
from danlu.infer.storage import Pages, Slots

GREEDY = Sampling(temperature=0.0, max_new_tokens=24)
WARM = Sampling(temperature=0.8, top_p=0.95, max_new_tokens=12)


class Checked(ForesightDrafter):
    """Compares what it guesses first with what the layer foresees of the whole text, without any cache."""

    checked = 0

    def propose(self, answers, most):
        found = super().propose(answers, most)
        model = self._forward._model
        for answer, (first, *_) in zip(answers, found, strict=True):
            if answer.request.sampling.greedy:
                text = torch.tensor([answer.sequence()])
                foreseen = model.foresee(model.hidden(text).states, text)[0].states[0, -1]
                assert first == int(self._forward.logits(foreseen).argmax())
                self.checked += 1
        return found


def run(engine: Engine, requests) -> list[tuple[int, ...]]:
    answers, found = [engine.add(request) for request in requests], {}
    while len(found) < len(answers):
        found |= {event.answer: event.completion for event in engine.step() if event.completion is not None}
    return [found[answer].tokens for answer in answers]


@pytest.mark.parametrize(("name", "kind"), [("deepseek", "slots"), ("llama", "pages")])
def test_guesses_are_what_the_layer_foresees_and_change_nothing(build, tokenizer, prompts, name, kind):
    model = build(name, tokenizer.vocab_size, n_mtp=1)
    generator = Generator(model, tokenizer)
    requests = [Request(tuple(p), [GREEDY, WARM][i % 2], seed=i) for i, p in enumerate([*prompts[:4], prompts[1] * 3])]
    alone = [generator.generate([r.prompt], r.sampling, [r.seed])[0].tokens for r in requests]
    forward = Forward(generator.model, generator.output_weight)
    storage = {"slots": Slots, "pages": Pages}[kind](generator.model, generator.dtype, 1 << 22, foresight=True)
    drafter = Checked(forward, storage)
    engine = Engine(generator, forward, storage, rows=3, budget=7, drafter=drafter)  # chunks, and rows that move
    assert run(engine, requests) == alone
    assert drafter.checked > 30


def test_what_is_found_again_has_what_the_layer_made_of_it(build, tokenizer, prompts):
    """A dialogue that goes on, twins, and many at once, of whom nobody is guessed for until some have left."""
    generator = Generator(build("deepseek", tokenizer.vocab_size, n_mtp=1), tokenizer)
    requests = [Request(tuple(prompts[1] * 3), WARM, seed) for seed in range(7)]
    alone = [c.tokens for c in generator.generate([r.prompt for r in requests], WARM, range(7))]
    engine = generator.engine(8, budget=16, pool_bytes=1 << 20, foresight=True)
    assert run(engine, requests) == run(engine, requests) == alone
    assert engine.storage.blocks.hits > 0


def test_right_guesses_save_steps(build, tokenizer, prompts):
    """Blocks that add nothing: what follows depends on the last token alone, which the layer is given."""
    model = build("llama", tokenizer.vocab_size, n_layers=1, n_mtp=1, tie_embeddings=False)
    with torch.no_grad():
        for block in (model.blocks[0], model.mtp[0].block):
            block.attn.o.weight.zero_()
            block.ffn.down.weight.zero_()
        for norm in (model.norm, model.mtp[0].norm, model.mtp[0].norm_embed):
            norm.weight.fill_(1.0)
        model.mtp[0].merge.weight.copy_(torch.eye(64, 128))
    for native in (None, kernels()):
        generator = Generator(model, tokenizer, torch.float32, native)
        generator.stop_ids = ()
        engine = generator.engine(1, budget=64, foresight=True)
        answer, steps = engine.add(Request(tuple(prompts[0]), GREEDY, 0)), 0
        while not answer.finish_reason:
            engine.step()
            steps += 1
        assert steps == 2 + -(-23 // 3), "the prompt, a token, and then three a step"
        assert tuple(answer.tokens) == generator.generate([prompts[0]], GREEDY, [0])[0].tokens


def test_a_model_that_does_not_foresee_is_refused(llama, tokenizer):
    with pytest.raises(UserError, match="n_mtp is 0"):
        Generator(llama, tokenizer).engine(1, budget=8, foresight=True)
