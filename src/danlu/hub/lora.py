"""LoRA and DoRA in our models, by peft: small trained changes beside frozen weights, put in, taken away, merged.

In:  a ``Decoder``; which of its linear layers are adapted, and how.
Out: the same model with an adapter in it; a model without it on the very same weights; a plain model with it merged.
Left out: files (``adapter``); training; single rows of embeddings and head (``rows``); adapters of these tables and of
the experts' stacked tensors.

peft takes seconds to import and brings transformers with it, so it is imported where an adapter is really used.
"""

from __future__ import annotations

import copy
import functools
import importlib.util
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from danlu.errors import UserError
from danlu.hub.rows import rows_of, without_rows
from danlu.model import Decoder, FrozenLinear, Linear, QuantLinear

NAME = "default"  # peft's own name for the only adapter of a model
PREFIX = "lora_"  # of everything that peft puts beside a layer
LAYERS = (Linear, QuantLinear, FrozenLinear)


class Size(NamedTuple):
    """How large an adapter of one layer is: rows of A, and what the change is multiplied by, times those rows."""

    rank: int
    alpha: float


@dataclass(frozen=True)
class LoRA:
    """An adapter's shape.

    A weight W (out, in) becomes W + alpha / rank * B A (Hu et al. 2021, arXiv 2106.09685, section 4.1); with ``dora``
    every row of that is scaled to a length m of its own (Liu et al. 2024, arXiv 2402.09353, equation 5).

    Attributes:
        layers: our name of each adapted linear layer -> its size.
        dora: whether lengths are learnt beside directions.
        dropout: share of the inputs of A that are left out while training.
    """

    layers: Mapping[str, Size]
    dora: bool = False
    dropout: float = 0.0


class Parts(NamedTuple):
    """The tensors of one layer's adapter.

    Attributes:
        a: (rank, in).
        b: (out, rank).
        m: (out,) lengths of rows; None without dora.
    """

    a: Tensor
    b: Tensor
    m: Tensor | None = None


def require_peft() -> None:
    """Raises ``UserError`` if peft is not installed."""
    if importlib.util.find_spec("peft") is None:
        raise UserError("adapters need peft, which is not installed: pip install 'danlu[adapters]'")


def adapted(model: nn.Module) -> bool:
    """Whether there is an adapter in a model."""
    return hasattr(model, "peft_config")


def frozen(model: nn.Module) -> bool:
    """Whether some of a model's parameters are never trained."""
    return any(not parameter.requires_grad for parameter in model.parameters())


def inject(model: Decoder, lora: LoRA, seed: int) -> Decoder:
    """Put a fresh adapter, which changes nothing yet, into a model and freeze the rest; in place, and returned.

    Args:
        model: on its device; its linear layers are replaced by peft's around them.
        lora: the adapter's shape; every layer of it is in the model.
        seed: of A; B is zero.
    """
    require_peft()
    from peft import LoraConfig, inject_adapter_in_model

    first = next(iter(lora.layers.values()))
    config = LoraConfig(
        r=first.rank, lora_alpha=first.alpha, lora_dropout=lora.dropout,  # type: ignore[arg-type]
        use_dora=lora.dora, target_modules=[*lora.layers],
        rank_pattern={name: size.rank for name, size in lora.layers.items() if size.rank != first.rank},
        alpha_pattern={name: size.alpha for name, size in lora.layers.items() if size.alpha != first.alpha},
    )  # fmt: skip
    config._register_custom_module(dict.fromkeys(LAYERS, _layer_class()))
    dtype = model.compute_dtype
    model.compute_in(torch.float32)  # peft keeps adapters in the compute dtype; ours are masters like all weights
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        inject_adapter_in_model(config, model)
    return model.compute_in(dtype).eval()  # only dropout knows the difference


@functools.cache
def _layer_class() -> type[nn.Module]:
    """peft's layer around one of ours."""
    from peft.tuners.lora.layer import Linear as Wrapped

    class Adapted(Wrapped):
        """A linear layer of ours with an adapter beside it."""

        def _get_in_out_features(self, module: Any) -> tuple[int, int]:
            return module.in_features, module.out_features

        @torch.no_grad()
        def dense(self, dtype: torch.dtype) -> Tensor:
            """The merged weight (out, in): decoding with latents multiplies with parts of it."""
            base: Any = self.base_layer
            weight: Tensor = base.dense(torch.float32)
            variant = self.lora_variant.get(NAME)
            if variant is None:
                return (weight + self.get_delta_weight(NAME)).to(dtype)
            merged: Tensor = variant.merge_safe(self, NAME, weight)
            return merged.to(dtype)

    return Adapted


def takes_adapter(module: nn.Module) -> bool:
    """Whether an adapter stands in a module, or could."""
    return isinstance(module, (*LAYERS, _layer_class()))


def wrapped(model: nn.Module) -> Iterator[tuple[str, Any]]:
    """Our name of every adapted layer, and peft's layer that stands there."""
    if adapted(model):
        yield from ((name, module) for name, module in model.named_modules() if isinstance(module, _layer_class()))


def shape_of(model: nn.Module) -> LoRA:
    """The shape of the adapter in a model."""
    layers = {name: Size(layer.r[NAME], layer.lora_alpha[NAME]) for name, layer in wrapped(model)}
    config: Any = model.peft_config[NAME]  # type: ignore[index]
    return LoRA(layers, config.use_dora, config.lora_dropout)


def parts_of(model: nn.Module) -> dict[str, Parts]:
    """The live tensors of a model's adapter, by our name of the layer."""
    return {
        name: Parts(
            layer.lora_A[NAME].weight,
            layer.lora_B[NAME].weight,
            layer.lora_magnitude_vector[NAME].weight if NAME in layer.lora_magnitude_vector else None,
        )
        for name, layer in wrapped(model)
    }


@torch.no_grad()
def fill(model: nn.Module, found: Mapping[str, Parts]) -> None:
    """Give a model's adapter these numbers; they are of its shape."""
    for name, live in parts_of(model).items():
        for ours, theirs in zip(live, found[name], strict=True):
            if ours is not None:
                assert theirs is not None, f"{name} has learnt lengths and is given none"
                ours.copy_(theirs)


def sharing(model: Decoder) -> Decoder:
    """Another model of the very same parameters and buffers."""
    same = {id(tensor): tensor for tensor in (*model.parameters(), *model.buffers())}
    return copy.deepcopy(model, same)


def bare(model: Decoder) -> Decoder:
    """The model under an adapter: the same frozen weights, and no adapter."""
    base = sharing(model)
    for name, layer in [*wrapped(base)]:
        base.set_submodule(name, layer.base_layer)
    if adapted(base):
        del base.peft_config
    return without_rows(base)


def merged(model: Decoder) -> Decoder:
    """A plain model in fp32 that computes what a model with an adapter does; the model itself if it has none.

    What is not adapted is shared, if it is fp32 already.
    """
    if not adapted(model):
        return model
    dense = {name: module for name, module in model.named_modules() if takes_adapter(module)}
    rows = [trained.table for trained in rows_of(model)]
    inner = tuple(f"{name}." for name in (*dense, *rows))
    state = {name: _full(t) for name, t in model.state_dict().items() if not name.startswith(inner)}
    for name, module in dense.items():
        if name.endswith(".base_layer"):
            continue
        state[f"{name}.weight"] = module.dense(torch.float32).detach()
        if module.bias is not None:
            state[f"{name}.bias"] = _full(module.bias.detach())
    for name in rows:
        state[f"{name}.weight"] = getattr(model, name).whole(torch.float32).detach()
    with torch.device("meta"):
        plain = Decoder(model.config, model.head_kind)
    plain.load_state_dict(state, assign=True)
    return plain.compute_in(model.compute_dtype)


def _full(tensor: Tensor) -> Tensor:
    return tensor.float() if tensor.is_floating_point() else tensor
