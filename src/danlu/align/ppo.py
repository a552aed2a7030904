"""Stage ``ppo``: practise, be scored, learn; stay near the SFT model.

In:  the SFT model (policy and reference), the reward model (score, and the critic's trunk), training prompts.
Out: ``model/``, ``metrics.jsonl`` with a line per iteration, ``monitor.json`` with the looks from outside.
Left out: the formulas (``losses``), sampling (``rollout``), the update (``learner``), the judge (``monitor``).

Four models in one process: policy, reference, reward model, critic (InstructGPT, arXiv 2203.02155, section 3.5; the
details that decide whether it works are those of Huang et al., arXiv 2403.17031). A checkpoint holds everything that
an iteration depends on, and random numbers are addressed by iteration: a killed run goes on to the same bytes.
"""

from __future__ import annotations

import time
from dataclasses import replace
from typing import Any, cast

from torch import Tensor

from danlu import hub
from danlu.align import losses, monitor, scoring
from danlu.align.elsewhere import Following, corrected, sampler_of
from danlu.align.learner import Learner, PPOSettings, Scored, explained_variance
from danlu.align.losses import AdaptiveKL
from danlu.align.monitor import Monitor
from danlu.align.reward import read_scale
from danlu.align.rollout import Cursor, RewardScore, Rollouts, Score, gather_prompts
from danlu.align.scoring import Sequences
from danlu.errors import UserError
from danlu.evals.judge import judge
from danlu.model.decoder import Decoder
from danlu.records import Answer, Conversation, read_conversations
from danlu.run import Stage
from danlu.streams import stream_seed
from danlu.tokens.tokenizer import Tokenizer
from danlu.train.checkpoint import load_latest, save_checkpoint

_BEST = "best."


def ppo(stage: Stage) -> dict[str, Any]:
    """Run PPO, or go on with it.

    Returns:
        The looks before and after, the iteration that was kept, alarms, and speed.
    """
    settings = cast(PPOSettings, stage.settings)
    place = settings.machine()
    stage.console.say(f"{stage.name} on {place.describe()}")
    _, tokenizer = hub.load_pretrained(stage.inputs["sft"] / "model")
    models = {
        role: hub.load(stage.inputs[source] / "model", device=place.kind)
        for role, source in {"policy": "sft", "reference": "sft", "reward": "reward", "critic": "reward"}.items()
    }
    for model in models.values():
        model.compute_in(place.compute_dtype)
    mean, std = read_scale(stage.inputs["reward"] / "model")
    score = RewardScore(models["reward"], mean, std, settings.micro_batch, settings.missing_end_penalty)
    learner = Learner(models["policy"], models["critic"], settings)
    rows, weights = max(settings.batch_size, settings.probe_prompts), stage.dir / "sampler"
    with sampler_of(settings.sampler, learner.policy, tokenizer, weights, rows) as sampler:
        figures = Practice(stage, tokenizer, learner, models["reference"], score, sampler).run()
    card = {"stage": "ppo", **{key: figures[key] for key in ("kept", "before", "after")}}
    hub.save(learner.policy, stage.dir / "model", tokenizer, card=card)
    return figures


class Practice:
    """The iterations of a PPO run, with everything they carry from one to the next.

    Args:
        stage: where to read prompts and write checkpoints and metrics.
        tokenizer: of the models.
        learner: policy and critic.
        reference: the frozen SFT model.
        score: scores answers.
        sampler: draws answers from the policy.
    """

    def __init__(
        self, stage: Stage, tokenizer: Tokenizer, learner: Learner, reference: Decoder, score: Score,
        sampler: Following,
    ) -> None:  # fmt: skip
        settings = learner.settings
        self._stage, self._settings, self._tokenizer = stage, settings, tokenizer
        self._learner, self._reference = learner, reference
        self._device = learner.policy.output_weight.device.type
        self._sampler = sampler
        self._rollouts = Rollouts(self._sampler, score, settings.max_new_tokens, tokenizer.pad, self._device)
        self._controller = AdaptiveKL(settings.kl_coefficient, settings.kl_target, settings.kl_horizon)
        self._read_prompts()
        self._monitor = Monitor(
            judge(settings.judge), self._heldout[: settings.probe_prompts], self._rollouts, learner.policy, reference,
            settings.micro_batch, stage.seed,
        )  # fmt: skip
        self._looks: list[dict[str, Any]] = []
        self._alarms: list[int] = []
        self._best: dict[str, Tensor] = {}
        self._seconds = 0.0

    def run(self) -> dict[str, Any]:
        """Every iteration that is still to do; afterwards the policy holds the weights that were kept."""
        first = self._resume()
        with self._stage.console.task(self._stage.name, self._settings.iterations, "iterations") as task:
            task.resume(first)
            for iteration in range(first, self._settings.iterations):
                row = self._iterate(iteration)
                self._stage.metrics.log(iteration + 1, **row)
                task.advance(reward=row["reward"], kl=row["kl"])
                done = iteration + 1
                if done % self._settings.probe_every == 0 or done == self._settings.iterations:
                    self._look(done)
                    self._save(done)
        self._learner.policy.load_state_dict(self._best)
        return self._figures()

    def _read_prompts(self) -> None:
        folder, settings = self._stage.inputs["sft"] / "conversations", self._settings
        accepts, room = judge(settings.judge).accepts, self._reference.config.max_seq_len
        train, _ = read_conversations(folder / "train.jsonl")
        heldout, _ = read_conversations(folder / "heldout.jsonl")
        longest = room - settings.max_new_tokens
        self._conversations: list[Conversation] = train if settings.mix else []
        self._prompts = gather_prompts(train, self._tokenizer, accepts, longest)
        self._heldout = gather_prompts(heldout, self._tokenizer, accepts, longest)
        if not self._prompts or not self._heldout:
            raise UserError(
                f"ppo has {len(self._prompts)} prompts to practise on and {len(self._heldout)} to watch of at most "
                f"{longest} tokens that the judge '{settings.judge}' can judge; it needs at least one of each"
            )
        self._cursor = Cursor(len(self._prompts), self._stage.seed, self._stage.name)

    def _iterate(self, iteration: int) -> dict[str, float]:
        """Sample, score, learn, move the KL coefficient."""
        started = time.monotonic()
        settings, address = self._settings, (self._stage.seed, self._stage.name, iteration)
        chosen = [self._prompts[index] for index in self._cursor.batch(iteration, settings.batch_size)]
        self._sampler.refresh()
        experience = self._rollouts.collect(chosen, *address)
        sampled = time.monotonic()
        scored = self._learner.score(experience, self._reference, self._controller.beta)
        scored, differs = corrected(scored) if settings.sampler != "danlu" else (scored, {})
        update = self._learner.update(scored, iteration, stream_seed(*address, "rows"), self._mix(iteration))
        row = summary(scored) | {"beta": self._controller.beta} | update | differs
        self._controller = self._controller.update(row["kl"], settings.batch_size)
        self._seconds += time.monotonic() - started
        return row | {"seconds": time.monotonic() - started, "sampling_seconds": sampled - started}

    def _mix(self, iteration: int) -> Sequences | None:
        """People's own answers for the mixed-in likelihood, as many as an optimizer step has samples."""
        if not self._settings.mix:
            return None
        cursor = Cursor(len(self._conversations), self._stage.seed, self._stage.name, "mix")
        drawn = [self._conversations[index] for index in cursor.batch(iteration, self._settings.mini_batch)]
        room = self._reference.config.max_seq_len
        ids = [
            scoring.answer_ids(self._tokenizer, c.messages[:-1], Answer(c.messages[-1].content), room) for c in drawn
        ]
        return scoring.pad([p for p, _ in ids], [r for _, r in ids], self._tokenizer.pad, self._device)

    def _look(self, iteration: int) -> None:
        """A look from outside; notes the alarm, and keeps the weights if the proxy and the KL like them best."""
        settings = self._settings
        self._sampler.refresh()
        self._looks.append(self._monitor.look(iteration))
        shown = {key: value for key, value in self._looks[-1].items() if isinstance(value, float)}
        self._stage.console.say(
            f"{self._stage.name} after {iteration}: " + " ".join(f"{key}={value:.3g}" for key, value in shown.items())
        )
        if monitor.over_optimised(self._looks):
            self._alarms.append(iteration)
            self._stage.console.say("  over-optimisation: the reward rises and the judge falls", style="yellow")
        if monitor.choose(self._looks, settings.kl_coefficient, settings.kl_budget) == iteration:
            self._best = {name: tensor.clone() for name, tensor in self._learner.policy.state_dict().items()}

    def _save(self, iteration: int) -> None:
        tensors = self._learner.tensors() | {_BEST + name: tensor for name, tensor in self._best.items()}
        state = {
            "beta": self._controller.beta, "looks": self._looks, "alarms": self._alarms, "seconds": self._seconds,
        }  # fmt: skip
        save_checkpoint(self._stage.dir / "ckpt", iteration, tensors, state)

    def _resume(self) -> int:
        """Go back to the newest sound checkpoint; returns how many iterations are done."""
        found = load_latest(self._stage.dir / "ckpt", self._stage.console)
        self._stage.metrics.rewind(found.step if found else 0)
        if found is None:
            self._look(0)
            return 0
        self._best = {name.removeprefix(_BEST): t for name, t in found.tensors.items() if name.startswith(_BEST)}
        self._learner.load({name: t for name, t in found.tensors.items() if not name.startswith(_BEST)})
        self._looks, self._alarms = found.state["looks"], found.state["alarms"]
        self._seconds = found.state["seconds"]
        self._controller = replace(self._controller, beta=found.state["beta"])
        self._stage.console.say(f"{self._stage.name} goes on after iteration {found.step}")
        return found.step

    def _figures(self) -> dict[str, Any]:
        settings = self._settings
        kept = monitor.choose(self._looks, settings.kl_coefficient, settings.kl_budget)
        monitor.write(self._stage.dir / "monitor.json", self._looks, kept, self._alarms)
        by_iteration = {look["iteration"]: look for look in self._looks}
        per_iteration = self._seconds / settings.iterations
        return {
            "kept": kept,
            "before": _short(by_iteration[0]),
            "after": _short(by_iteration[kept]),
            "alarms": self._alarms,
            "beta": round(self._controller.beta, 5),
            "seconds_per_iteration": round(per_iteration, 3),
            "answers_per_second": round(settings.batch_size / max(per_iteration, 1e-9), 1),
        }


def summary(scored: Scored) -> dict[str, float]:
    """What an iteration looked like before its update; means over tokens count tokens, not padding."""
    experience, mask = scored.experience, scored.mask
    k1, k3 = (estimate(scored.logprobs, scored.reference) for estimate in (losses.kl_k1, losses.kl_k3))
    return {
        "reward": float(experience.scores.mean()),
        "reward_std": float(experience.scores.std(correction=0)),
        "kl": float(k1.sum(1).mean()),
        "kl_k3": float(k3.sum(1).mean()),
        "entropy": float(-losses.masked_mean(scored.logprobs, mask)),
        "length": float(mask.sum(1).float().mean()),
        "finished": float(experience.finished.float().mean()),
        "explained_variance": explained_variance(scored),
    }


def _short(look: dict[str, Any]) -> dict[str, Any]:
    """A look's numbers without its examples."""
    return {key: round(value, 4) for key, value in look.items() if isinstance(value, float)}
