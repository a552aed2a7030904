"""cDPO, ORPO, SimPO and KTO: losses and gradients are those of TRL's own code on the same numbers.

They are in ``losses_trl.json`` with TRL's version, recorded by ``bench/formulas.py --record``, which says how.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import Tensor

from danlu.align import losses

TRL = json.loads(Path(__file__).with_name("losses_trl.json").read_text(encoding="utf-8"))


def ours(name: str, first: Tensor, second: Tensor) -> Tensor:
    match name:
        case "cdpo":
            found = losses.dpo(first, second, TRL["beta"], TRL["label_smoothing"])
        case "orpo":
            found = losses.orpo(first, second, TRL["beta"])
        case "simpo":
            found = losses.simpo(first, second, TRL["beta"], TRL["gamma"])
        case _:
            baseline = losses.kl_baseline(second)
            found = losses.kto(first, torch.tensor(TRL["good"]), baseline, TRL["beta"], *TRL["weights"])
    return found.mean()


@pytest.mark.parametrize("name", ["cdpo", "orpo", "simpo", "kto"])
def test_the_formula_is_trls(name: str) -> None:
    theirs = TRL["formulas"][name]
    inputs = [torch.tensor(values, requires_grad=True) for values in theirs["given"]]
    found = ours(name, *inputs)
    gradients = torch.autograd.grad(found, inputs, allow_unused=True, materialize_grads=True)
    assert found.item() == pytest.approx(theirs["loss"], abs=1e-4)
    for gradient, expected in zip(gradients, theirs["gradients"], strict=True):
        torch.testing.assert_close(gradient, torch.tensor(expected), rtol=0, atol=1e-4)
    assert any(max(map(abs, expected)) > 1e-2 for expected in theirs["gradients"])
