"""Formulas of learning from preferences beside TRL's own code: the same numbers in, the same losses and gradients out.

In:  nothing; the numbers are sines, so that anybody can make them.
Out: the largest difference for every formula; with ``--record FILE``, TRL's results for a test that needs no TRL.
Left out: DPO and IPO, which ``rl.py`` compares over twenty steps of training; what models say.

    python bench/formulas.py [--record FILE]

TRL's methods are called as they are, with numbers where they would ask a model. cDPO: TRL's DPO has no smoothed
sigmoid any more, its CPO has the same formula, and is given log-ratios. ORPO: TRL's likelihood counts the prompt and
ours does not, so it is given ours. SimPO is the ``simpo`` of its CPO without the likelihood.
"""

from __future__ import annotations

import argparse
import json
from collections import defaultdict
from collections.abc import Callable
from functools import partial
from itertools import chain
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
import trl
from torch import Tensor
from trl.experimental.cpo import CPOTrainer
from trl.experimental.orpo import ORPOTrainer

from danlu.align import losses

N, BETA, SMOOTHING, GAMMA, WEIGHTS = 12, 0.5, 0.1, 0.7, (1.0, 1.5)
Loss = Callable[[Tensor, Tensor], Tensor]  # two tensors (N,) to a mean over them
ONE_PROCESS = SimpleNamespace(device="cpu", gather_for_metrics=lambda x: x)


def given() -> dict[str, tuple[Tensor, Tensor]]:
    """What every formula is given: log-ratios, means of tokens' log-probabilities, ratios of single answers."""
    k = torch.arange(N, dtype=torch.float32)
    ratios = 3 * torch.sin(2 * k), 3 * torch.cos(3 * k)
    means = -1.0 - 0.8 * torch.sin(k), -1.2 - 0.9 * torch.cos(2 * k)
    single = 3 * torch.sin(2 * k) + 0.5, torch.cos(k) + 0.4  # of the answers, and of answers to other prompts
    return {"cdpo": ratios, "orpo": means, "simpo": means, "kto": single}


def cpo(loss_type: str, smoothing: float, chosen: Tensor, rejected: Tensor) -> Tensor:
    """TRL's CPO on pairs."""
    trainer = SimpleNamespace(
        alpha=0.0, beta=BETA, loss_type=loss_type, simpo_gamma=GAMMA, label_smoothing=smoothing, accelerator=ONE_PROCESS
    )
    return CPOTrainer.cpo_loss(trainer, chosen, rejected)[0].mean()


def orpo(chosen: Tensor, rejected: Tensor) -> Tensor:
    """TRL's ORPO on pairs."""
    said = chosen, rejected, torch.zeros(1), torch.zeros(1), -chosen.mean()
    trainer = SimpleNamespace(beta=BETA, aux_loss_enabled=False, accelerator=ONE_PROCESS)
    trainer.concatenated_forward = lambda *_: said
    trainer.odds_ratio_loss = partial(ORPOTrainer.odds_ratio_loss, trainer)
    return ORPOTrainer.get_batch_loss_metrics(trainer, None, {})[0]


def kto(ratios: Tensor, foreign: Tensor) -> Tensor:
    """TRL's KTO on answers of one token, every third of them bad; the reference finds all of them certain."""
    trainer = SimpleNamespace(
        model=SimpleNamespace(training=True), accelerator=ONE_PROCESS, calculate_KL=True, aux_loss_enabled=False,
        precompute_ref_logps=True, loss_type="kto", beta=BETA, desirable_weight=WEIGHTS[0],
        undesirable_weight=WEIGHTS[1], _metrics={"train": defaultdict(list)}, _total_train_tokens=0, _tp_size=1,
        _compute_kl_logps=lambda *_: foreign,
    )  # fmt: skip
    column, ones = torch.zeros(N, 1), torch.ones(N, 2, dtype=torch.long)
    batch = {
        "input_ids": ones, "attention_mask": ones, "completion_mask": torch.tensor([[0, 1]] * N), "label": good(),
        "ref_logps": torch.zeros(N), "ref_KL_logps": torch.zeros(N),
    }  # fmt: skip
    said = SimpleNamespace(log_probs=ratios[:, None], entropy=column, mean_logits=column)
    return trl.KTOTrainer._compute_loss(trainer, lambda **_: said, batch, False)


def good() -> Tensor:
    """(N,) bool, which answers KTO is told are good."""
    return torch.arange(N) % 3 != 0


THEIRS: dict[str, Loss] = {
    "cdpo": partial(cpo, "sigmoid", SMOOTHING), "orpo": orpo, "simpo": partial(cpo, "simpo", 0.0), "kto": kto
}  # fmt: skip
OURS: dict[str, Loss] = {
    "cdpo": lambda a, b: losses.dpo(a, b, BETA, SMOOTHING).mean(),
    "orpo": lambda a, b: losses.orpo(a, b, BETA).mean(),
    "simpo": lambda a, b: losses.simpo(a, b, BETA, GAMMA).mean(),
    "kto": lambda a, b: losses.kto(a, good(), losses.kl_baseline(b), BETA, *WEIGHTS).mean(),
}


def measured(loss: Loss, first: Tensor, second: Tensor) -> dict[str, Any]:
    """The loss and its gradients by both inputs; KTO's second is a baseline, which has none."""
    inputs = [x.clone().requires_grad_() for x in (first, second)]
    found = loss(*inputs)
    gradients = torch.autograd.grad(found, inputs, allow_unused=True, materialize_grads=True)
    return {"loss": found.item(), "gradients": [gradient.tolist() for gradient in gradients]}


def main() -> None:
    """Compare, and record if that is wanted."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--record", type=Path, help="write TRL's results to this file")
    asked = parser.parse_args()
    record: dict[str, Any] = {
        "trl": trl.__version__, "beta": BETA, "label_smoothing": SMOOTHING, "gamma": GAMMA, "weights": WEIGHTS,
        "good": good().tolist(), "formulas": {},
    }  # fmt: skip
    for name, pair in given().items():
        theirs, ours = (measured(side[name], *pair) for side in (THEIRS, OURS))
        flat = [[one["loss"], *chain(*one["gradients"])] for one in (theirs, ours)]
        print(f"{name}: {max(abs(a - b) for a, b in zip(*flat, strict=True)):.2g} apart, loss {theirs['loss']:.6f}")
        record["formulas"][name] = {"given": [x.tolist() for x in pair], **theirs}
    if asked.record:
        asked.record.write_text(json.dumps(record) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
