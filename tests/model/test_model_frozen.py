"""Four-bit layers: numbers by hand, how far rounding goes, gradients that pass through."""

import itertools

import torch
from torch import nn

from danlu.model import Decoder, FrozenLinear, Linear, ModelConfig
from danlu.model.frozen import BLOCK, NF4, byte_values, dequantize_blocks, quantize_blocks

VALUES = byte_values()


def test_codes_and_scales_by_hand() -> None:
    weight = torch.zeros(2, 40)
    weight[0, :4] = torch.tensor([2.0, -2.0, 0.5, 2 * NF4[9]])  # a quarter is nearest to the twelfth value, 0.2461
    codes, scale = quantize_blocks(weight)
    assert scale.tolist() == [2.0, 0.0]  # 80 numbers are two blocks, the second of nothing
    assert codes[:2].tolist() == [15 << 4 | 0, 10 << 4 | 9]
    assert len(codes) == BLOCK  # two to a byte
    back = dequantize_blocks(codes, scale, VALUES, (2, 40), torch.float32)
    torch.testing.assert_close(back[0, :5], torch.tensor([2.0, -2.0, 2 * NF4[10], 2 * NF4[9], 0.0]))


def test_every_value_is_its_own_code_and_no_weight_is_off_by_more_than_half_a_step() -> None:
    exact = torch.tensor(NF4).repeat(4).view(1, -1) * 3
    assert torch.equal(dequantize_blocks(*quantize_blocks(exact), VALUES, (1, 64), torch.float32), exact)
    weight = torch.randn(48, 100, generator=torch.Generator().manual_seed(0))
    codes, scale = quantize_blocks(weight)
    off = (dequantize_blocks(codes, scale, VALUES, (48, 100), torch.float32) - weight).flatten()
    widest = max(b - a for a, b in itertools.pairwise(NF4)) / 2
    assert (off.abs() <= widest * scale.repeat_interleave(BLOCK)[: off.numel()] + 1e-6).all()
    assert codes.nbytes + scale.nbytes <= 4.5 / 8 * weight.numel() + BLOCK


def test_a_gradient_passes_to_the_input_and_reaches_no_weight() -> None:
    torch.manual_seed(0)
    linear = nn.Linear(20, 7)
    layer = FrozenLinear(linear)
    x = torch.randn(3, 5, 20, requires_grad=True)
    assert not list(layer.parameters())
    (layer(x) ** 2).sum().backward()
    other = x.detach().clone().requires_grad_()
    out = nn.functional.linear(other, layer.weight, linear.bias)
    (out**2).sum().backward()
    torch.testing.assert_close(x.grad, other.grad)


def test_it_computes_where_the_model_does() -> None:
    model = Decoder(ModelConfig(vocab_size=16, n_layers=1, d_model=32, n_heads=2, n_kv_heads=2, head_dim=16, d_ff=64,
                                max_seq_len=16))  # fmt: skip
    for name, module in [*model.blocks.named_modules(prefix="blocks")]:
        if isinstance(module, Linear):
            model.set_submodule(name, FrozenLinear(module))
    assert model.compute_in(torch.bfloat16).hidden(torch.tensor([[1, 2]])).states.dtype == torch.bfloat16
