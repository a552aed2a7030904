"""Training a small change instead of a model: LoRA and DoRA on a frozen base, which may be kept in fewer bits.

In:  the settings ``adapter`` of a stage, the model that it goes on from.
Out: a model of which only an adapter is trained; what of it moves; its directory beside the stage's ``model/``.
Left out: the adapters themselves (``hub.lora``) and their files (``hub.adapter``), which are peft's; several adapters
on one base (``align.trunk``).

``model/`` stays a whole model, merged when it is written: whatever reads a stage's model needs to know nothing of this.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, NamedTuple, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from danlu import hub
from danlu.errors import UserError
from danlu.hub.adapter import write_adapter
from danlu.hub.lora import LAYERS, LoRA, Size, adapted, frozen, inject, require_peft
from danlu.model import Decoder, FrozenLinear, Linear, ModelConfig, QuantLinear, parameters
from danlu.recipe import Settings
from danlu.run import Stage
from danlu.streams import stream_seed
from danlu.train.task import LossOutput, Task

FOLDER = "adapter"
Target = Literal["q", "k", "v", "o", "gate", "up", "down", "q_a", "q_b", "kv_a", "kv_b"]


class AdapterSettings(Settings):
    """What is trained in place of all weights."""

    kind: Literal["none", "lora", "dora"] = "none"
    """none trains every weight; lora adds a product of two thin matrices to each target; dora also learns how long its
    rows are."""
    rank: int = Field(default=16, ge=1)
    """Columns of the thin matrices."""
    alpha: float = Field(default=32.0, gt=0)
    """Their product is multiplied by this over the rank; twice the rank is usual."""
    dropout: float = Field(default=0.0, ge=0, lt=1)
    """Share of an adapter's inputs left out in training; where a policy practises there can be none."""
    targets: tuple[Target, ...] = ()
    """Linear layers of the blocks that get one: q, k, v, o, gate, up, down, q_a, q_b, kv_a, kv_b; every one if none is
    named. In a mixture of experts only those of attention can: peft takes gate, up and down for the experts'."""
    base_bits: Literal[32, 16, 8, 4] = 32
    """Bits of a frozen weight of the blocks in memory: 32 as it is loaded, 16 bfloat16 (embeddings and head too), 8 one
    scale per row, 4 NF4 in blocks of 64 (QLoRA)."""

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if self.kind == "none" and any(getattr(self, n) != f.default for n, f in type(self).model_fields.items()):
            raise ValueError("kind is none, so nothing else of adapter is read; set kind to lora or dora")
        if self.kind == "dora" and self.base_bits == 8:
            raise ValueError("dora measures the base's rows, which peft cannot in 8 bits; set base_bits to 4, 16 or 32")
        return self


class Adaptable(Settings):
    """What every stage can be told that may train an adapter."""

    adapter: AdapterSettings = AdapterSettings()
    """Whether an adapter is trained instead of all weights, and which (LoRA, DoRA, QLoRA)."""

    def check_packages(self) -> None:
        """peft is installed, if it is needed."""
        super().check_packages()
        if self.adapter.kind != "none":
            require_peft()


def attach(model: Decoder, settings: AdapterSettings, seed: int) -> Decoder:
    """Freeze a model, put it in fewer bits if that is wanted, and give it a fresh adapter; in place, and returned.

    A scalar head is trained with the adapter: nobody has trained it yet. With kind none, nothing is done.

    Raises:
        UserError: the model has none of the targets, or is compressed.
    """
    if settings.kind == "none":
        return model
    if model.config.quantization != "none":
        raise UserError("an adapter needs the model as it was before it was compressed, which adapter.base_bits does")
    narrow(model, settings.base_bits)
    layers = dict.fromkeys(_targets(model, settings), Size(settings.rank, settings.alpha))
    inject(model, LoRA(layers, settings.kind == "dora", settings.dropout), seed)
    if model.head_kind == "scalar":
        model.score.requires_grad_(True)
    return model


def _targets(model: Decoder, settings: AdapterSettings) -> list[str]:
    """The names of the linear layers that are adapted."""
    found = [name for name, module in model.blocks.named_modules(prefix="blocks") if isinstance(module, LAYERS)]
    if model.config.n_experts:
        found = [name for name in found if ".attn." in name]
    present = {name.rpartition(".")[2] for name in found}
    for target in settings.targets:
        if target not in present:
            raise UserError(f"adapter.targets names {target}, which in this model can have no adapter; these can: "
                            f"{', '.join(sorted(present))}")  # fmt: skip
    return [name for name in found if not settings.targets or name.rpartition(".")[2] in settings.targets]


def narrow(model: Decoder, bits: int) -> None:
    """Keep a model's weights in fewer bits from now on, in place; nothing can train them then."""
    if bits == 16:
        for name, parameter in model.named_parameters():
            if parameter.ndim > 1 and not name.startswith("score."):  # norms are small and exact
                parameter.data = parameter.data.to(torch.bfloat16)
    kinds: dict[int, Callable[[nn.Linear], nn.Module]] = {8: QuantLinear.from_linear, 4: FrozenLinear}
    if bits in kinds:
        for name, module in [*model.blocks.named_modules(prefix="blocks")]:
            if isinstance(module, Linear):
                model.set_submodule(name, kinds[bits](module))


class Footprint(NamedTuple):
    """What of a model is trained, and what is not.

    Attributes:
        trained: numbers that are trained: all of the model's, or the adapter's and those of single rows.
        frozen: bytes of the weights that are only read.
    """

    trained: int
    frozen: int


def footprint(config: ModelConfig, settings: AdapterSettings, rows: int = 0) -> Footprint:
    """Counted by building the model without memory (the ``meta`` device), and without peft.

    Args:
        config: its shape.
        settings: of the adapter.
        rows: of the embedding, and of a head of its own, that are trained with it.

    Raises:
        UserError: the model has none of the targets.
    """
    if settings.kind == "none":
        return Footprint(parameters(config).total, 0)
    with torch.device("meta"):
        model = Decoder(config)
        layers: list[Any] = [model.get_submodule(name) for name in _targets(model, settings)]
        thin = sum(settings.rank * (layer.in_features + layer.out_features) for layer in layers)
        lengths = sum(layer.out_features for layer in layers) if settings.kind == "dora" else 0
        narrow(model, settings.base_bits)
    kept = {id(tensor): tensor.nbytes for tensor in (*model.parameters(), *model.buffers())}
    single = rows * config.d_model * (1 if config.tie_embeddings else 2)
    return Footprint(thin + lengths + single, sum(kept.values()))


def moving(model: nn.Module) -> dict[str, Tensor]:
    """What training changes of a model, by name: all of it, or the parameters that are not frozen."""
    if not frozen(model):
        return dict(model.state_dict())
    return {name: parameter.detach() for name, parameter in model.named_parameters() if parameter.requires_grad}


def move_to(model: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Give a model what ``moving`` gave of it.

    Raises:
        RuntimeError: it is of another model.
    """
    missing, surplus = model.load_state_dict(tensors, strict=not frozen(model))
    if surplus or moving(model).keys() & {*missing}:
        raise RuntimeError(f"another model's state: {[*surplus, *missing][0]}")


def write(model: Decoder, stage: Stage, base: Path, settings: AdapterSettings) -> None:
    """Write a model's adapter into its stage's directory, for peft; nothing if it has none.

    Args:
        model: whose adapter was trained.
        stage: whose.
        base: directory of the model that it went on from.
        settings: how many bits the base had goes with the adapter.
    """
    if adapted(model):
        write_adapter(model, stage.dir / FOLDER, base, identity(base, settings))


def identity(base: Path, settings: AdapterSettings) -> dict[str, Any]:
    """What an adapter's numbers hold for: the base model, and the bits that it was kept in."""
    return {"model": hub.model_hash(base), "bits": settings.base_bits}


def with_dropout(task: Task, settings: AdapterSettings, seed: int) -> Task:
    """The same task with dropout while it learns, addressed by step and micro-batch: a resumed run drops the same."""
    if settings.kind == "none" or not settings.dropout:
        return task

    def batches(step: int) -> Sequence[tuple[int, Any]]:
        return [(stream_seed(seed, "dropout", step, i), batch) for i, batch in enumerate(task.batches(step))]

    def loss(model: Decoder, drawn: tuple[int, Any]) -> LossOutput:
        with _dropping(model, drawn[0]):
            return task.loss(model, drawn[1])

    return replace(task, batches=batches, loss=loss)


@contextmanager
def _dropping(model: Decoder, seed: int) -> Iterator[None]:
    """A stretch in which dropout drops what ``seed`` says."""
    where = [model.embed.weight.device] if model.embed.weight.is_cuda else []
    with torch.random.fork_rng(devices=where):
        torch.manual_seed(seed)
        model.train()
        try:
            yield
        finally:
            model.eval()
