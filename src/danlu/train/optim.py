"""The optimizer: which parameter is updated by which rule, and its state as flat tensors.

In:  a model and the loop's settings.
Out: ``Optimizer``: step at a learning rate, state out, state in.
Left out: the rules themselves (``torch.optim.AdamW``, ``muon``), the schedule, optimizers of sharded parameters.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from danlu.model.decoder import Decoder
from danlu.model.rows import Table
from danlu.train.muon import Muon
from danlu.train.task import LoopSettings

_EPS = 1e-8


class Optimizer:
    """AdamW, or Muon and AdamW, as one.

    Attributes:
        params: what it trains, by name.
        rules: the optimizers that share them out.
    """

    def __init__(self, params: Mapping[str, nn.Parameter], rules: list[torch.optim.Optimizer]) -> None:
        self.params = dict(params)
        self.rules = rules

    def zero_grad(self) -> None:
        """Forget the gradients."""
        for rule in self.rules:
            rule.zero_grad(set_to_none=True)

    def step(self, lr: float) -> None:
        """Update every parameter at this learning rate."""
        for rule in self.rules:
            for group in rule.param_groups:
                group["lr"] = lr
            rule.step()

    def tensors(self) -> dict[str, Tensor]:
        """The state as named tensors: ``PARAMETER/exp_avg`` and so on. They are the live ones, not copies."""
        names: dict[Tensor, str] = {parameter: name for name, parameter in self.params.items()}
        return {
            f"{names[parameter]}/{key}": tensor
            for rule in self.rules
            for parameter, state in rule.state.items()
            for key, tensor in state.items()
        }

    def load(self, tensors: Mapping[str, Tensor]) -> None:
        """Take over a state that ``tensors`` gave; the tensors belong to the optimizer from then on."""
        owner = {p: rule for rule in self.rules for group in rule.param_groups for p in group["params"]}
        for name, tensor in tensors.items():
            owner_name, _, key = name.rpartition("/")
            parameter = self.params[owner_name]
            owner[parameter].state[parameter][key] = tensor.to(parameter.device)


def build_optimizer(model: Decoder, settings: LoopSettings) -> Optimizer:
    """The optimizer for every parameter of ``model`` that requires a gradient.

    Weight decay falls on matrices only, embeddings and single rows of a head excepted. With ``muon``, the matrices
    inside the blocks go to Muon, routers excepted; embeddings, head, norms, biases and routers stay with AdamW.
    """
    params = {name: p for name, p in model.named_parameters() if p.requires_grad}
    tables = {p for module in model.modules() if isinstance(module, nn.Embedding | Table) for p in module.parameters()}
    matrices = {name: p for name, p in params.items() if p.ndim >= 2 and p not in tables}
    hidden: dict[str, nn.Parameter] = {}
    if settings.optimizer == "muon":
        hidden = {
            name: p for name, p in matrices.items() if name.startswith(("blocks.", "mtp.")) and "router" not in name
        }
    decayed = [p for name, p in matrices.items() if name not in hidden]
    plain = [p for name, p in params.items() if name not in matrices]
    groups: list[dict[str, Any]] = [
        {"params": decayed, "weight_decay": settings.weight_decay},
        {"params": plain, "weight_decay": 0.0},
    ]
    betas = (settings.beta1, settings.beta2)
    present = [group for group in groups if group["params"]]
    rules: list[torch.optim.Optimizer] = [torch.optim.AdamW(present, settings.lr, betas, _EPS, fused=True)]
    if hidden:
        rules.append(_muon(hidden, model.compute_dtype, settings))
    return Optimizer(params, rules)


def _muon(hidden: Mapping[str, nn.Parameter], dtype: torch.dtype, settings: LoopSettings) -> Muon:
    """Muon, told which parameters hold several matrices one above the other."""
    stacked = {name: 2 if name.endswith("gate_up") else 1 for name in hidden}
    groups = [
        {"params": [p for name, p in hidden.items() if stacked[name] == n], "stacked": n}
        for n in sorted(set(stacked.values()))
    ]
    return Muon(groups, settings.lr, settings.weight_decay, dtype=dtype)
