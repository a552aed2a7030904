"""Where a model's parameters are: all presets in a table, one shape part by part.

In:  a preset's name, a ``ModelConfig`` or a model directory.
Out: text.
Left out: what a run of it costs (``plan``).
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from pathlib import Path

import torch

from danlu.errors import UserError, unknown
from danlu.files import read_json
from danlu.hub import read_config
from danlu.model import PRESETS, ModelConfig, build, flops_per_token, kv_bytes, parameters, preset
from danlu.model.count import activation_bytes, state_bytes

_BF16 = 2  # bytes
_ROOM = {
    "embed": "tables", "positions": "tables", "segments": "tables", "head": "head", "score": "head", "masked": "head",
    "classes": "head", "norm": "norms",
}  # fmt: skip
_VOCABULARY = 4096  # shown for presets that leave it to the tokenizer


@dataclasses.dataclass(frozen=True)
class Part:
    """Parameters of one name in like layers.

    Attributes:
        where: ``""`` outside the layers, else which layers, such as ``"layers 3-60"``.
        room: attention, feed-forward, norms, tables or head.
        name: within the layer.
        shape: of one tensor.
        times: in how many layers.
    """

    where: str
    room: str
    name: str
    shape: tuple[int, ...]
    times: int

    @property
    def numbers(self) -> int:
        """In all layers together."""
        return self.times * torch.Size(self.shape).numel()


def table() -> str:
    """Every preset on a line: ``danlu presets``."""
    lines = [_row("preset", "total", "active", "FLOPs/token", "cache/token", "bf16 size", "context")]
    for name in PRESETS:
        config = _named(name)
        size = parameters(config)
        counts = [size.total, size.active, flops_per_token(config, config.max_seq_len)]
        sizes = [kv_bytes(config), size.total * _BF16]
        cells = [*map(_short, counts), *(_short(number, "B") for number in sizes), f"{config.max_seq_len:,}"]
        lines.append(_row(name, *cells))
    lines.append(
        "FLOPs of forward and backward at full context, no score skipped; cache in bf16; "
        f"tiny and tang with a vocabulary of {_VOCABULARY:,}"
    )
    return "\n".join(lines)


def explain(name: str) -> str:
    """One preset part by part: ``danlu presets NAME``.

    Raises:
        UserError: there is no such preset, naming the nearest.
    """
    if name not in PRESETS:
        raise unknown("preset", name, PRESETS)
    config = _named(name)
    return describe(name, config, "lm" if config.causal else "mlm")


def inspect(folder: Path, load: tuple[int, int] | None = None) -> str:
    """A model directory part by part: ``danlu inspect DIR``.

    Args:
        folder: the directory.
        load: rows and tokens a row for which memory shall be estimated too.

    Raises:
        UserError: there is no model in ``folder``, or its architecture is not known here.
    """
    config, head = read_config(folder)
    said = read_json(folder / "config.json")
    dtype = str(said.get("dtype") or said.get("torch_dtype") or "float32")
    title = f"{folder} ({dtype}{', INT8 layers' if config.quantization == 'int8' else ''})"
    shown = describe(title, config, head)
    return shown if load is None else "\n".join([shown, "", *_cost(config, *load)])


def describe(title: str, config: ModelConfig, head: str) -> str:
    """A shape in words, every tensor with its count, and the sums."""
    found = parts(config, head)
    size = parameters(config)
    lines = [f"{title}: {_words(config)}", ""]
    lines.append(f"{'':<14}{'part':<16}{'shape':>24}{'each':>18}{'layers':>8}{'in all':>20}")
    before = None
    for part in found:
        shown = "" if part.where == before else part.where or "outside"
        before = part.where
        shape = " x ".join(f"{n:,}" for n in part.shape)
        each = torch.Size(part.shape).numel()
        lines.append(f"{shown:<14}{part.name:<16}{shape:>24}{each:>18,}{part.times:>8}{part.numbers:>20,}")
    lines.append("")
    sums = Counter[str]()
    for part in found:
        sums[part.room] += part.numbers
    total = sum(sums.values())
    for room, numbers in sums.most_common():
        lines.append(f"{room:<30}{numbers:>20,}{numbers / total:>8.1%}")
    lines.append(f"{'total':<30}{total:>20,}")
    if size.active != size.total:
        lines.append(f"{'active for a token':<30}{size.active:>20,}")
    if head in ("lm", "mlm") and config.tie_embeddings:
        lines.append("the head is the embedding, counted once")
    lines.append(
        f"{_short(total * _BF16, 'B')} in bf16, {_short(kv_bytes(config), 'B')} of bf16 cache a token "
        f"({_short(kv_bytes(config) * config.max_seq_len, 'B')} at full context)"
    )
    return "\n".join(lines)


def _cost(config: ModelConfig, rows: int, length: int) -> list[str]:
    """Memory for answering and for training at a load, in bf16 and in fp32.

    Raises:
        UserError: rows are longer than the model's context.
    """
    if length > config.max_seq_len:
        raise UserError(f"--context {length} is more than the model's {config.max_seq_len}")
    total, cache = parameters(config).total, kv_bytes(config, 1) * rows * length
    lines = [f"memory at {rows} rows of {length:,} tokens", f"{'':<12}{'weights':>14}{'cache':>14}{'together':>14}"]
    for name, width in (("in bf16", 2), ("in fp32", 4)):
        numbers = (total * width, cache * width, (total + cache) * width)
        lines.append(f"{name:<12}" + "".join(f"{_short(number, 'B'):>14}" for number in numbers))
    lines.append(f"{'':<12}{'state':>14}{'activations':>14}{'together':>14}")
    state = state_bytes(config)
    for name, width in (("train bf16", 2), ("train fp32", 4)):
        kept = activation_bytes(config, rows, length, width)
        lines.append(f"{name:<12}" + "".join(f"{_short(number, 'B'):>14}" for number in (state, kept, state + kept)))
    lines.append("state: weights, gradients and two moments in fp32; activations are an estimate, nothing recomputed")
    return lines


def parts(config: ModelConfig, head: str = "lm") -> list[Part]:
    """Every parameter of a shape, like layers together, in the order of the forward pass."""
    with torch.device("meta"):
        model = build(dataclasses.replace(config, quantization="none"), head)
    n_layers = config.n_layers + config.n_mtp  # those that foresee come after the others
    outside, layers = [], [list[tuple[str, tuple[int, ...]]]() for _ in range(n_layers)]
    for name, parameter in model.named_parameters():
        if name.startswith("blocks."):
            _, layer, within = name.split(".", 2)
            layers[int(layer)].append((within, tuple(parameter.shape)))
        elif name.startswith("mtp."):
            _, depth, within = name.split(".", 2)
            layers[config.n_layers + int(depth)].append((within, tuple(parameter.shape)))
        else:
            room = _ROOM[name.split(".")[0]]
            outside.append(Part("", room, name.removesuffix(".weight"), tuple(parameter.shape), 1))
    starts = [i for i in range(n_layers) if i == 0 or layers[i] != layers[i - 1]]
    inside = []
    for start, end in zip(starts, [*starts[1:], n_layers], strict=True):
        where = f"layer {start}" if end == start + 1 else f"layers {start}-{end - 1}"
        where = "foresight" if start >= config.n_layers else where
        for name, shape in layers[start]:
            inside.append(Part(where, _room(name), name.removesuffix(".weight"), shape, end - start))
    first = [part for part in outside if part.room == "tables"]
    return [*first, *inside, *(part for part in outside if part not in first)]


def _room(name: str) -> str:
    """Of a parameter within a layer; norms inside attention count with the norms."""
    if "norm" in name:
        return "norms"
    return "attention" if name.removeprefix("block.").startswith("attn.") else "feed-forward"


def _named(name: str) -> ModelConfig:
    return preset(name, **({} if "vocab_size" in PRESETS[name] else {"vocab_size": _VOCABULARY}))


def _words(config: ModelConfig) -> str:
    heads = f"{config.n_heads} heads"
    if config.attention == "mla":
        heads += f", latents of {config.kv_rank} + {config.rope_dim}"
    else:
        kv = "" if config.n_kv_heads == config.n_heads else f", {config.n_kv_heads} for keys and values"
        heads += f" of {config.head_dim}{kv}"
    experts = ""
    if config.n_experts:
        shared = f" and {config.n_shared_experts} shared" if config.n_shared_experts else ""
        experts = f", {config.n_experts} experts of {config.d_expert:,}, {config.top_k} a token{shared}"
    return (
        f"{config.n_layers} layers, d_model {config.d_model:,}, {heads}, d_ff {config.d_ff:,}{experts}, "
        f"vocabulary {config.vocab_size:,}, context {config.max_seq_len:,}"
    )


def _row(name: str, *cells: str) -> str:
    return f"{name:<18}" + "".join(f"{cell:>13}" for cell in cells)


def _short(value: float, unit: str = "") -> str:
    for prefix, size in (("T", 1e12), ("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if value >= size:
            return f"{value / size:.3g} {prefix}{unit}" if unit else f"{value / size:.3g}{prefix}"
    return f"{value:.0f} {unit}".rstrip()
