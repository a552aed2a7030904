"""Block by block through a model: see what enters every matrix, change it, go on with what the changed block says.

In:  a model, batches of calibration text, a function that gives a matrix new weights.
Out: the model changed in place; its final states, to prove that this path computes what the model computes.
Left out: which new weights (``sparsegpt``); where the text comes from (``stage``).

Embeddings, head, norms and routers are no matrices of a block and stay as they are.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from danlu.model.decoder import Decoder
from danlu.model.linear import Linear
from danlu.model.moe import MoE
from danlu.tokens.loader import Batch


@dataclass
class Site:
    """A matrix of a block and what was seen of its inputs.

    Attributes:
        name: within the model; an expert's matrix ends in its number.
        weight: (out, in), a view into the model.
        hessian: (in, in) fp32, the sum of x x^T over the inputs seen.
        inputs: how many tokens those were.
    """

    name: str
    weight: Tensor
    hessian: Tensor = field(init=False)
    inputs: int = 0

    def __post_init__(self) -> None:
        self.hessian = torch.zeros(self.weight.shape[1], self.weight.shape[1], device=self.weight.device)

    def see(self, rows: Tensor) -> None:
        """Count inputs (N, in)."""
        rows = rows.float()
        self.hessian += rows.T @ rows
        self.inputs += len(rows)


Solve = Callable[[Site], Tensor]


def matrices(block: nn.Module, prefix: str = "") -> dict[str, Tensor]:
    """The matrices of a block (or of all blocks) by name, as views (out, in) into the model.

    Every linear layer, and both matrices of every routed expert.
    """
    found: dict[str, Tensor] = {}
    for name, module in block.named_modules(prefix=prefix):
        if isinstance(module, Linear):
            found[name] = module.weight.data
        if isinstance(module, MoE):
            for part in ("gate_up", "down"):
                experts = getattr(module, part).data
                found |= {f"{name}.{part}.{expert}": experts[expert] for expert in range(len(experts))}
    return found


@torch.no_grad()
def walk(
    model: Decoder, batches: Sequence[Batch], solve: Solve, told: Callable[[], object] = lambda: None
) -> list[Tensor]:
    """Give every matrix of every block new weights, calibrated on what enters it in the model as changed so far.

    All matrices of a block are solved from one forward of the unchanged block, which then runs again for the next
    one's inputs (Frantar and Alistarh 2023, section 4). Padding is left out of the statistics.

    Args:
        model: changed in place.
        batches: calibration text.
        solve: a site with its statistics -> its new weight (out, in).
        told: called whenever a block is done.

    Returns:
        For every batch the states (B, T, D) after the final norm, as ``Decoder.hidden`` would give them now.
    """
    where = model.embed.weight.device
    calls = [_first_call(model, batch, where) for batch in batches]
    kept = [(batch.documents.to(where) >= 0).flatten() for batch in batches]  # B*T
    for number, block in enumerate(model.blocks):
        watch = _Watch(block, f"blocks.{number}")
        for (states, *context), watch.kept in zip(calls, kept, strict=True):
            block(states, *context)
        watch.close()
        for site in watch.sites.values():
            site.weight.copy_(solve(site))
        calls = [(block(states, *context)[0], *context) for states, *context in calls]
        told()
    return [model.norm(states) for states, *_ in calls]


def _first_call(model: Decoder, batch: Batch, where: torch.device) -> tuple[Any, ...]:
    """What the model hands to its first block: states (B, T, D) and everything that blocks share."""
    caught: list[tuple[Any, ...]] = []
    hook = model.blocks[0].register_forward_pre_hook(lambda _, inputs: caught.append(inputs))
    try:
        model.hidden(batch.tokens.to(where), batch.positions.to(where), batch.documents.to(where))
    finally:
        hook.remove()
    return caught[0]


class _Watch:
    """Counts what enters the matrices of a block while the block runs.

    Attributes:
        sites: the block's matrices, by name.
        kept: (B * T,) which tokens of the batch under way are text.
    """

    def __init__(self, block: nn.Module, prefix: str) -> None:
        self.sites = {name: Site(name, weight) for name, weight in matrices(block, prefix).items()}
        self.kept = torch.empty(0)
        self._hooks = [
            module.register_forward_pre_hook(partial(self._see, name))
            for name, module in block.named_modules(prefix=prefix)
            if isinstance(module, Linear | MoE)
        ]

    def close(self) -> None:
        """Stop counting."""
        for hook in self._hooks:
            hook.remove()

    def _see(self, name: str, module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        rows = inputs[0].flatten(0, -2)[self.kept]  # N, in
        if isinstance(module, MoE):
            self._see_experts(name, module, rows)
        else:
            self.sites[name].see(rows)

    def _see_experts(self, name: str, moe: MoE, rows: Tensor) -> None:
        """Show each expert's matrices the tokens (N, D) that are routed to it, and nothing else."""
        _, chosen = moe.router(rows)
        for expert in range(len(moe.gate_up)):
            routed = rows[(chosen == expert).any(dim=1)].to(moe.gate_up.dtype)
            gate, up = F.linear(routed, moe.gate_up[expert]).chunk(2, dim=-1)
            self.sites[f"{name}.gate_up.{expert}"].see(routed)
            self.sites[f"{name}.down.{expert}"].see(F.silu(gate) * up)
