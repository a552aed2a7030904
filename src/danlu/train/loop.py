"""THE training loop: accumulate, clip, step; log, evaluate, sample, save; resume to the same bytes.

In:  a model, a ``Task``, settings and the stage's directory.
Out: the trained model (in place), ``metrics.jsonl``, checkpoints under ``ckpt/``, figures.
Left out: what is learned (the tasks), and PPO, whose steps follow rollouts.

There is no random state here: batches and learning rate are addressed by the step number, so weights, optimizer state
and that number are all there is to save.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from danlu.errors import UserError
from danlu.hub.lora import frozen
from danlu.model.decoder import Decoder
from danlu.run import Stage
from danlu.train import parallel
from danlu.train.ahead import Ahead
from danlu.train.checkpoint import load_latest, save_checkpoint
from danlu.train.compiled import compile_blocks
from danlu.train.optim import Optimizer, build_optimizer
from danlu.train.schedule import learning_rate
from danlu.train.task import LoopSettings, LossOutput, Task

CHECKPOINTS = "ckpt"
_MODEL, _OPTIMIZER = "model/", "optimizer/"


@dataclass
class Progress:
    """How far training is; saved with every checkpoint.

    Attributes:
        step: steps done, skipped ones included.
        tokens: non-padding tokens learned from.
        seconds: spent in steps, over all sessions; evaluation and saving not counted.
        skipped: steps without an update because loss or gradient was not finite.
        skipped_in_a_row: how many of them were the last steps.
        evaluation: the latest figures on held-out data.
    """

    step: int = 0
    tokens: int = 0
    seconds: float = 0.0
    skipped: int = 0
    skipped_in_a_row: int = 0
    evaluation: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Step:
    """What one optimizer step did.

    Attributes:
        finite: whether the weights were updated; they are not if loss or gradient is NaN or infinite.
        loss: mean over the step's items, in nats.
        grad_norm: of the mean loss, before clipping.
        tokens: non-padding tokens read.
        means: the task's further figures.
    """

    finite: bool
    loss: float
    grad_norm: float
    tokens: int
    means: dict[str, float]


def run_loop(model: Decoder, task: Task, settings: LoopSettings, stage: Stage) -> dict[str, Any]:
    """Train ``model`` in place, going on from the newest checkpoint in ``stage.dir`` if there is one.

    Returns:
        Figures: steps, skipped_steps, tokens, tokens_per_second, and those of the last evaluation.

    Raises:
        UserError: the loss was not finite for ``max_skips`` steps in a row.
    """
    world = prepare(model, settings, stage)
    optimizer = build_optimizer(model, settings)
    progress = _resume(model, optimizer, stage)
    world.wait()  # one may have worked alone until now, for longer than the others wait within a step
    where = model.embed.weight.device
    if where.type == "cuda":
        task = replace(task, batches=Ahead(task.batches, settings.steps, where))
    with stage.console.task(stage.name, total=settings.steps, unit="tokens") as bar:
        bar.resume(progress.step)
        while progress.step < settings.steps:
            started = time.perf_counter()
            lr = learning_rate(progress.step + 1, settings)
            step = train_step(model, task, optimizer, settings, progress.step, lr, world)
            _count(progress, step, time.perf_counter() - started)
            bar.advance(1, step.tokens, loss=step.loss, lr=lr)
            if world.main:
                _log(progress, step, lr, settings, task, stage)
            if progress.skipped_in_a_row >= settings.max_skips:
                raise _diverged(progress, stage)
            last = progress.step == settings.steps
            if last or progress.step % settings.eval_every == 0:
                _evaluate(model, task, progress, stage, world)
            if last or (progress.step % settings.save_every == 0 and not progress.skipped_in_a_row):
                _save(model, optimizer, progress, settings, stage, world)
    return {
        "steps": progress.step,
        "skipped_steps": progress.skipped,
        "tokens": progress.tokens,
        "tokens_per_second": round(progress.tokens / max(progress.seconds, 1e-9), 1),
        **progress.evaluation,
    }


def prepare(model: Decoder, settings: LoopSettings, stage: Stage) -> parallel.World:
    """Put the model where it is computed, in the dtype it is computed in, and say why."""
    chosen = settings.machine()
    world = parallel.join()
    world.check_device(chosen.kind)
    model.to(chosen.kind)
    model.compute_in(chosen.compute_dtype)
    compiled = compile_blocks(model, settings, chosen.kind)
    if world.main:
        stage.console.say(f"{stage.name} on {chosen.describe()}, {compiled}{world.describe()}")
    return world


def train_step(
    model: Decoder,
    task: Task,
    optimizer: Optimizer,
    settings: LoopSettings,
    index: int,
    lr: float,
    world: parallel.World = parallel.ALONE,
) -> Step:
    """One optimizer step over all micro-batches and processes, normalised by the items of them all.

    Gradients of the *sums* are accumulated and divided once, in the same pass as clipping. A step whose loss or
    gradient is not finite changes nothing.

    Args:
        index: which batch, from 0.
        lr: learning rate of this step.
    """
    optimizer.zero_grad()
    outputs = [_backward(task.loss(model, batch)) for batch in task.batches(index)]
    gradients = [p.grad for p in optimizer.params.values() if p.grad is not None]
    world.sum_tensors(gradients)
    whole = torch.nn.utils.get_total_norm(gradients)  # asked for before the first number is waited for
    n, tokens, loss, means, counts = _totals(outputs, world, gradients[0].device)
    norm = float(whole) / n
    finite = math.isfinite(loss) and math.isfinite(norm)
    if finite:
        torch._foreach_mul_(gradients, min(1.0, settings.clip / (norm + 1e-6)) / n)
        optimizer.step(lr)
        if counts is not None and not frozen(model):
            model.update_router_bias(counts, settings.router_rate)
    return Step(finite, loss, norm, tokens, means)


def _backward(output: LossOutput) -> LossOutput:
    """Add the gradient of the sum to the parameters' gradients, and let go of the graph."""
    output.loss_sum.backward()  # type: ignore[no-untyped-call]
    return LossOutput(output.loss_sum.detach(), output.n, output.tokens, output.counts, output.sums)


def _totals(
    outputs: list[LossOutput], world: parallel.World, where: torch.device
) -> tuple[int, int, float, dict[str, float], Tensor | None]:
    """Items, tokens, mean loss, mean figures and expert counts over all micro-batches and processes."""
    names = sorted(outputs[0].sums)
    mine = [float(sum(o.n for o in outputs)), float(sum(o.tokens for o in outputs))]
    mine += [sum(float(o.loss_sum) for o in outputs)]
    mine += [sum(o.sums[name] for o in outputs) for name in names]
    n_items, tokens, loss_sum, *sums = world.sum_numbers(mine, where)
    n = max(int(n_items), 1)  # a step without a single target has loss 0 and gradient 0
    counts = None
    if outputs[0].counts is not None:
        counts = torch.stack([o.counts for o in outputs if o.counts is not None]).sum(0)  # L, E
        world.sum_tensors([counts])
    return n, int(tokens), loss_sum / n, dict(zip(names, (s / n for s in sums), strict=True)), counts


def _count(progress: Progress, step: Step, seconds: float) -> None:
    progress.step += 1
    progress.seconds += seconds
    if step.finite:
        progress.tokens += step.tokens
        progress.skipped_in_a_row = 0
    else:
        progress.skipped += 1
        progress.skipped_in_a_row += 1


def _log(progress: Progress, step: Step, lr: float, settings: LoopSettings, task: Task, stage: Stage) -> None:
    if not step.finite:
        stage.console.say(f"{stage.name} step {progress.step}: loss or gradient not finite, weights left as they are")
        stage.metrics.log(progress.step, skipped=progress.skipped)
    elif progress.step % settings.log_every == 0 or progress.step in (1, settings.steps):
        speed = progress.tokens / max(progress.seconds, 1e-9)
        gflops = {"gflops": round(speed * task.flops_per_token / 1e9, 1)} if task.flops_per_token else {}
        stage.metrics.log(
            progress.step, loss=step.loss, lr=lr, grad_norm=step.grad_norm, tokens=progress.tokens,
            tokens_per_second=round(speed, 1), **gflops, **step.means,
        )  # fmt: skip


def _evaluate(model: Decoder, task: Task, progress: Progress, stage: Stage, world: parallel.World) -> None:
    """Figures on held-out data and a sample; every process computes them, one writes them down."""
    with torch.no_grad():
        progress.evaluation = task.evaluate(model)
        sample = {"sample": task.sample(model)} if task.sample is not None else {}
    if world.main:
        stage.metrics.log(progress.step, **progress.evaluation, **sample)
        shown = " ".join(f"{name}={value:.4g}" for name, value in progress.evaluation.items())
        stage.console.say(f"{stage.name} step {progress.step}: {shown}")
        if sample:
            stage.console.say(f"  {sample['sample']}", style="dim")


def _diverged(progress: Progress, stage: Stage) -> UserError:
    latest = load_latest(stage.dir / CHECKPOINTS, stage.console)
    kept = f"the checkpoint of step {latest.step} is untouched" if latest else "no checkpoint was written yet"
    return UserError(
        f"{stage.name}: loss or gradient was not finite for {progress.skipped_in_a_row} steps in a row, "
        f"up to step {progress.step}; {kept}; lower {stage.name}.lr or look at the data of those steps"
    )


def _save(
    model: Decoder,
    optimizer: Optimizer,
    progress: Progress,
    settings: LoopSettings,
    stage: Stage,
    world: parallel.World,
) -> None:
    if world.main:
        tensors = {_MODEL + name: tensor for name, tensor in _weights(model).items()}
        tensors |= {_OPTIMIZER + name: tensor for name, tensor in optimizer.tensors().items()}
        save_checkpoint(stage.dir / CHECKPOINTS, progress.step, tensors, asdict(progress), settings.checkpoints)
    world.wait()


def _resume(model: Decoder, optimizer: Optimizer, stage: Stage) -> Progress:
    """Take over the newest sound checkpoint; a fresh start if there is none."""
    found = load_latest(stage.dir / CHECKPOINTS, stage.console)
    stage.metrics.rewind(found.step if found else 0)
    if found is None:
        return Progress()
    _load_weights(model, {k[len(_MODEL) :]: t for k, t in found.tensors.items() if k.startswith(_MODEL)})
    optimizer.load({k[len(_OPTIMIZER) :]: t for k, t in found.tensors.items() if k.startswith(_OPTIMIZER)})
    stage.console.say(f"{stage.name} goes on after step {found.step}")
    return Progress(**found.state)


def _weights(model: Decoder) -> dict[str, Tensor]:
    """Parameters and buffers, shared ones once; of a model with frozen parts what is trained: the rest lies on disk."""
    if frozen(model):
        return {name: p for name, p in model.named_parameters() if p.requires_grad}
    return {**dict(model.named_parameters()), **dict(model.named_buffers())}


def _load_weights(model: Decoder, tensors: Mapping[str, Tensor]) -> None:
    weights = _weights(model)
    if weights.keys() != tensors.keys():
        differing = sorted(weights.keys() ^ tensors.keys())
        raise UserError(f"the checkpoint is of another model ({differing[0]}); delete its directory and run again")
    with torch.no_grad():
        for name, tensor in tensors.items():
            weights[name].copy_(tensor)
