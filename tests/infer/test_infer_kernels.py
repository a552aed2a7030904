"""Native kernels: what torch computes, whatever the shape; and torch's own way where they cannot be built."""

import itertools
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
import torch.nn.functional as F

from danlu.compress.quantize import quantize
from danlu.infer import Generator, Request, Sampling
from danlu.infer.kernels import NONE, Kernels, StepForward, Weights, kernels, settled
from danlu.infer.kernels.build import build as compiled
from danlu.model import quantized_linear
from danlu.model.quantized import quantize_rows, quantized_linear_reference

ROWS = (*range(1, 14), 16, 31, 32, 33, 65)
DEPTHS, OUTPUTS = (1, 7, 16, 63, 64, 129), (8, 13, 96, 205)  # some of them whole lines and tiles, most not
NARROW = (torch.float32, torch.bfloat16, torch.float16)
SHAPES = {
    "llama": {}, "biases": {"qkv_bias": True, "out_bias": True, "ffn_bias": True}, "norms": {"qk_norm": True},
    "turned": {"rope_layout": "interleaved"}, "window": {"window": 5, "n_full_layers": 1},
    "scaled": {"logit_scale": 0.25}, "untied": {"tie_embeddings": False},
    "odd": {"d_model": 60, "d_ff": 90, "head_dim": 14},
}  # fmt: skip


@pytest.fixture(scope="module")
def native() -> Kernels:
    found = kernels()
    if found.library is None:
        pytest.skip(found.describe())
    return found


@pytest.fixture
def noise():
    return torch.Generator().manual_seed(3)


def close(found, right, share=1e-5):
    assert (found.shape, found.dtype) == (right.shape, torch.float32)
    assert float((found - right).abs().max()) <= share * float(right.abs().max())


@pytest.mark.parametrize("dtype", NARROW, ids=str)
def test_products_are_those_of_torch(native, noise, dtype):
    for depth, outputs in itertools.product(DEPTHS, OUTPUTS):
        weight, bias = torch.randn(outputs, depth, generator=noise).to(dtype), torch.randn(outputs, generator=noise)
        with_bias, without = native.product(Weights(weight, None, bias)), native.product(Weights(weight))
        for rows in ROWS:
            x = torch.randn(rows, depth, generator=noise)
            close(with_bias(x), F.linear(x, weight.float(), bias))
            close(without(x), F.linear(x, weight.float()))


def test_products_with_eight_bits_round_activations_to_sixteen(native, noise):
    if torch.int8 not in native.dtypes:
        pytest.skip("no instructions for it here")
    for depth, outputs in itertools.product((*DEPTHS, 5000), OUTPUTS):
        weight, scale = quantize_rows(torch.randn(outputs, depth, generator=noise))
        bias = torch.randn(outputs, generator=noise)
        product = native.product(Weights(weight, scale, bias))
        for rows in (1, 2, 3, 6, 17, 33):
            x = torch.randn(rows, depth, generator=noise) * 100
            close(product(x), quantized_linear(x, weight, scale, bias), 2e-4)


def test_the_largest_integers_do_not_overflow(native):
    if torch.int8 not in native.dtypes:
        pytest.skip("no instructions for it here")
    for depth in (4096, 20000):
        weight = torch.full((8, depth), -127, dtype=torch.int8)
        product = native.product(Weights(weight, torch.ones(8)))
        assert product(torch.ones(1, depth)).tolist() == [pytest.approx([-127.0 * depth] * 8, rel=1e-4)]


@pytest.mark.parametrize("dtype", [*NARROW, torch.int8], ids=str)
def test_a_row_does_not_depend_on_the_others_to_the_last_bit(native, noise, dtype):
    if dtype not in native.dtypes:
        pytest.skip("no instructions for it here")
    matrix, scale = torch.randn(205, 129, generator=noise), None
    if dtype == torch.int8:
        matrix, scale = quantize_rows(matrix)
    product = native.product(Weights(matrix.to(dtype), scale))
    x = torch.randn(32, 129, generator=noise)
    alone = torch.cat([product(row[None]) for row in x])
    for rows in ROWS[:-2]:
        assert torch.equal(product(x[:rows]), alone[:rows])


def test_threads_strides_and_leading_dimensions_change_nothing(native, noise):
    weight = torch.randn(301, 96, generator=noise).bfloat16()
    product = native.product(Weights(weight))
    x = torch.randn(2, 3, 96, generator=noise)
    found, strided = product(x), product(x.transpose(0, 1)).transpose(0, 1)
    assert found.shape == (2, 3, 301)
    assert torch.equal(found, strided)
    torch.set_num_threads(3)  # the fixture of the room sets it back
    assert torch.equal(product(x), found)
    with ThreadPoolExecutor(4) as pool:
        assert all(torch.equal(y, found) for y in pool.map(product, [x] * 50))


def test_weights_that_no_kernel_reads_are_left_to_torch(native):
    assert native.product(Weights(torch.zeros(7, 4))) is None  # fewer outputs than a tile
    assert native.product(Weights(torch.zeros(16, 8).T)) is None
    assert native.product(Weights(torch.zeros(16, 8, dtype=torch.float64))) is None
    assert native.product(Weights(torch.zeros(16, 8), None, torch.zeros(16).bfloat16())) is None
    assert NONE.product(Weights(torch.zeros(16, 8))) is None


def test_copies_in_big_pages_are_copies(noise):
    tensors = [torch.randn(n, 33, generator=noise).to(dtype) for n in (3, 17) for dtype in NARROW]
    copies = settled(tensors)
    assert all(torch.equal(a, b) and a.dtype == b.dtype for a, b in zip(tensors, copies, strict=True))
    copies[0].zero_()
    assert tensors[0].any()
    assert all(torch.equal(a, b) for a, b in zip(tensors[1:], copies[1:], strict=True))
    assert settled([]) == []


def answers(model, tokenizer, prompts, given, rows=8):
    generator = Generator(model, tokenizer, torch.float32, given)
    requests = [Request(tuple(p), Sampling(temperature=0.7, max_new_tokens=20), i) for i, p in enumerate(prompts)]
    engine = generator.engine(rows, budget=64)
    waiting = [engine.add(request) for request in requests]
    found = {}
    while len(found) < len(waiting):
        found |= {e.answer: e.completion for e in engine.step() if e.completion is not None}
    return generator, [found[answer] for answer in waiting]


@pytest.mark.parametrize("name", [*SHAPES, "gpt2"])
@pytest.mark.parametrize("dtype", NARROW, ids=str)
def test_a_native_step_writes_what_the_model_writes(native, build, tokenizer, prompts, name, dtype):
    kind = "gpt2" if name == "gpt2" else "llama"
    model = build(kind, tokenizer.vocab_size, **SHAPES.get(name, {})).to(dtype)
    plain, right = answers(model, tokenizer, prompts, None)
    quick, found = answers(model, tokenizer, prompts, native)
    assert isinstance(quick._forward(), StepForward)
    assert not isinstance(plain._forward(), StepForward)
    assert [a.tokens for a in found] == [a.tokens for a in right]
    for a, b in zip(found, right, strict=True):
        torch.testing.assert_close(a.logprobs, b.logprobs, atol=2e-4, rtol=2e-4)
    assert quick.model.blocks[0].attn.q.weight.dtype == dtype  # read as they are stored
    assert [a.tokens for a in answers(model, tokenizer, prompts, native, rows=1)[1]] == [a.tokens for a in found]


@pytest.mark.parametrize("name", ["deepseek", "softcap", "sandwich"])
def test_what_a_native_step_does_not_know_takes_the_models_way(native, build, tokenizer, prompts, name):
    changes = {"softcap": {"attn_softcap": 30.0}, "sandwich": {"norm_placement": "sandwich"}}.get(name, {})
    model = build(name if name == "deepseek" else "llama", tokenizer.vocab_size, **changes).half()
    quick, found = answers(model, tokenizer, prompts, native)
    assert not isinstance(quick._forward(), StepForward)
    assert [a.tokens for a in found] == [a.tokens for a in answers(model, tokenizer, prompts, None)[1]]


def test_a_quantised_model_steps_natively(native, build, tokenizer, prompts):
    if torch.int8 not in native.dtypes:
        pytest.skip("no instructions for it here")
    model = quantize(build("llama", tokenizer.vocab_size, tie_embeddings=False))
    with torch.no_grad():
        integers, scale = quantize_rows(model.head.weight)
        model.head.weight.copy_(integers * scale[:, None])  # a head that rounding leaves alone
    quick, found = answers(model, tokenizer, prompts, native)
    assert isinstance(quick._forward(), StepForward)
    for a, b in zip(found, answers(model, tokenizer, prompts, None)[1], strict=True):
        torch.testing.assert_close(a.logprobs[:4], b.logprobs[:4], atol=5e-3, rtol=5e-3)


@pytest.mark.parametrize("tied", [True, False])
def test_a_quantised_model_has_its_head_in_eight_bits_too(native, build, tokenizer, noise, tied):
    if torch.int8 not in native.dtypes:
        pytest.skip("no instructions for it here")
    model = quantize(build("llama", tokenizer.vocab_size, tie_embeddings=tied)).half()
    generator, states = Generator(model, tokenizer, torch.float32, native), torch.randn(5, 64, generator=noise)
    right = quantized_linear_reference(states, *quantize_rows(model.output_weight))
    close(generator.logits(states), right, 2e-4)
    exact = states @ model.output_weight.float().T
    assert 1e-3 < float((right - exact).abs().max() / exact.abs().max()) < 2e-2  # it is another head, nearly
    close(Generator(model, tokenizer, torch.float32).logits(states), exact)  # where torch multiplies, as it is stored
    ids = torch.arange(tokenizer.vocab_size)[None]
    assert torch.equal(generator.model.embedded(ids, ids), model.embed.weight.float()[None])  # and so is the table


def test_refresh_reaches_the_kernels(native, build, tokenizer, prompts):
    model = build("llama", tokenizer.vocab_size)
    generator = Generator(model, tokenizer, torch.float32, native)
    with torch.no_grad():
        for weight in model.parameters():
            weight.mul_(1.25)
    generator.refresh()
    greedy = Sampling(temperature=0.0, max_new_tokens=12)
    fresh = Generator(model, tokenizer).generate(prompts, greedy, [0] * len(prompts))
    assert [a.tokens for a in generator.generate(prompts, greedy, [0] * len(prompts))] == [a.tokens for a in fresh]


@pytest.mark.parametrize(
    ("compiler", "reason"), [("/nonexistent/c++", "no C++ compiler"), ("false", "did not compile")]
)
def test_without_a_compiler_the_reason_is_told(monkeypatch, tmp_path, compiler, reason):
    monkeypatch.setenv("CXX", compiler)
    monkeypatch.setenv("DANLU_CACHE", str(tmp_path))
    built = compiled.__wrapped__()
    assert built.library is None
    assert reason in built.reason
    assert not list(tmp_path.rglob("kernels.so"))


def test_two_processes_build_once(native, monkeypatch, tmp_path):
    monkeypatch.setenv("DANLU_CACHE", str(tmp_path))
    command = [sys.executable, "-c", "from danlu.infer.kernels.build import build; print(build())"]
    both = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    assert all("CDLL" in process.communicate()[0] for process in both)
    (library,) = (tmp_path / "kernels").glob("*/kernels.so")
    made = library.stat().st_ino
    assert compiled.__wrapped__().library is not None
    assert library.stat().st_ino == made
