"""The one loop of practice: sample, be scored, learn, be looked at; whatever the optimiser.

In:  a stage with the SFT model and what scores answers; a ``Learner``, which decides what is learnt from them.
Out: ``model/``, ``metrics.jsonl`` with a line per iteration, ``monitor.json`` with the looks from outside.
Left out: formulas (``losses``), sampling (``rollout``), updates (``learner`` and its kinds), the judge (``monitor``).

A checkpoint holds everything that an iteration depends on, and random numbers are addressed by iteration: a killed run
goes on to the same bytes. Several processes share an iteration's work (``learner``, ``rollout``); the first one writes,
and what it has seen decides what is kept and when practice ends.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, cast

import torch
from torch import Tensor

from danlu import hub
from danlu.align import monitor, prompts, scoring, trunk
from danlu.align.answering import PracticeSettings
from danlu.align.elsewhere import Following, corrected, sampler_of
from danlu.align.learner import Learner
from danlu.align.losses import AdaptiveKL
from danlu.align.monitor import Monitor
from danlu.align.rewards import audits, scorer, watched
from danlu.align.rollout import Cursor, Experience, Rollouts, Score, join
from danlu.align.scoring import Sequences
from danlu.errors import UserError
from danlu.evals.judge import judge
from danlu.evals.perplexity import SEEN, heldout_texts
from danlu.hub.lora import adapted
from danlu.infer.generate import Generator
from danlu.model.decoder import Decoder
from danlu.records import Answer, Conversation, read_conversations
from danlu.run import Stage
from danlu.streams import stream_seed
from danlu.tokens.tokenizer import Tokenizer
from danlu.train import adapters, parallel
from danlu.train.checkpoint import load_latest, save_checkpoint

_BEST = "best."


def practise(stage: Stage, make: Callable[[Decoder, parallel.World], Learner]) -> dict[str, Any]:
    """Run a stage of practice, or go on with it.

    Args:
        stage: with the inputs ``sft`` and ``reward``, ``PracticeSettings``, and outside perhaps a ``trunk.START``; the
            KL is that from the SFT model all the same.
        make: from a policy and the processes that practise to the learner that trains it.

    Returns:
        The looks before and after, the iteration that was kept, alarms, and speed.
    """
    settings = cast(PracticeSettings, stage.settings)
    place, folder, world = settings.machine(), stage.inputs["sft"] / "model", parallel.join()
    world.check_device(place.kind)
    stage.console.say(f"{stage.name} on {place.describe()}{world.describe()}")
    tokenizer = Tokenizer.load(folder)
    policy, reference = trunk.policy_and_reference(stage, settings.adapter, place)
    learner = make(policy, world)
    shared = reference if adapted(policy) else None
    score = scorer(settings.rewards, stage, place, settings.micro_batch, settings.missing_end_penalty, shared, world)
    further = audits(stage, place, settings.micro_batch, settings.missing_end_penalty)
    rows, weights = max(settings.batch_size, settings.probe_prompts), stage.dir / "sampler"
    with sampler_of(settings.sampler, policy, tokenizer, weights, rows) as sampler:
        practice = Practice(stage, tokenizer, learner, reference, score, sampler, further, watched(stage))
        figures = practice.run()
    if not world.main:
        return figures
    looks = {key: {name: told for name, told in figures[key].items() if name != SEEN} for key in ("before", "after")}
    card = {"stage": stage.name, "kept": figures["kept"], **looks}
    hub.save(learner.policy, stage.dir / "model", tokenizer, card=card)
    adapters.write(policy, stage, folder, settings.adapter)
    return figures


class Practice:
    """The iterations of a run, with everything they carry from one to the next.

    Args:
        stage: where to read prompts and write checkpoints and metrics.
        tokenizer: of the models.
        learner: the policy and how it learns, and with which processes.
        reference: the frozen SFT model.
        score: scores answers.
        sampler: draws answers from the policy.
        further: scores that are looked at and not learnt from, by name.
        watching: names of scores that raise the alarm when they fall.
    """

    def __init__(
        self, stage: Stage, tokenizer: Tokenizer, learner: Learner, reference: Decoder, score: Score,
        sampler: Following, further: Mapping[str, Score] | None = None, watching: Sequence[str] = monitor.WATCHED,
    ) -> None:  # fmt: skip
        settings = learner.settings
        self._stage, self._settings, self._tokenizer = stage, settings, tokenizer
        self._learner, self._reference, self._world = learner, reference, learner.world
        self._device = learner.policy.output_weight.device.type
        self._sampler = sampler
        self._rollouts = Rollouts(
            self._sampler, score, settings.max_new_tokens, tokenizer.pad, self._device, self._world
        )
        self._controller = AdaptiveKL(settings.kl_coefficient, settings.kl_target, settings.kl_horizon)
        self._prompts, heldout = prompts.gather(
            stage, settings.prompts, settings.judge, tokenizer,
            reference.config.max_seq_len - settings.max_new_tokens, self._ask,
        )  # fmt: skip
        self._cursor = Cursor(len(self._prompts), stage.seed, stage.name)
        self._mixed = _conversations(stage) if settings.mix else []
        room, tokens = reference.config.max_seq_len, settings.probe_tokens
        texts = heldout_texts(stage, tokenizer, room, tokens, self._world) if tokens else {}
        self._monitor = Monitor(
            judge(settings.judge), heldout[: settings.probe_prompts], self._rollouts, learner.policy, reference,
            settings.micro_batch, stage.seed, further or {}, texts,
        )  # fmt: skip
        self._watching = watching
        self._looks: list[dict[str, Any]] = []
        self._alarms: list[int] = []
        self._best: dict[str, Tensor] = {}
        self._seconds = 0.0
        self._unscored_in_a_row = 0

    def run(self) -> dict[str, Any]:
        """Every iteration that is still to do; afterwards the policy holds the weights that were kept."""
        done = self._resume()
        with self._stage.console.task(self._stage.name, self._settings.iterations, "iterations") as task:
            task.resume(done)
            while done < self._settings.iterations and not self._stopped():
                row = self._iterate(done)
                done += 1
                if self._world.main:
                    self._stage.metrics.log(done, **row)
                task.advance(reward=row.get("reward", math.nan), kl=row.get("kl", math.nan))
                if done % self._settings.probe_every == 0 or done == self._settings.iterations:
                    self._show(done)
                    self._save(done)
        adapters.move_to(self._learner.policy, self._best)
        return self._figures(done)

    def _ask(self) -> list[str]:
        """What the SFT model asks when it is given the user's turn."""
        seeds = [stream_seed(self._stage.seed, self._stage.name, "ask", n) for n in range(self._settings.self_prompts)]
        sampler = Generator(self._reference, self._tokenizer, self._reference.compute_dtype)
        longest = self._reference.config.max_seq_len // 2
        return prompts.asked_by(sampler, self._tokenizer, seeds, longest, self._world)

    def _iterate(self, iteration: int) -> dict[str, float]:
        """Sample, score, learn, move the KL coefficient."""
        started = time.monotonic()
        settings, address = self._settings, (self._stage.seed, self._stage.name, iteration)
        self._sampler.refresh()
        experience, dropped = self._collect(iteration)
        sampled = time.monotonic()
        row: dict[str, float] = {"dropped": float(dropped)} if dropped else {}
        if experience is None:
            row |= {"steps": 0.0}
        else:
            scored = self._learner.score(experience, self._reference, self._controller.beta)
            scored, differs = corrected(scored) if settings.sampler != "danlu" else (scored, {})
            row |= self._learner.summary(scored) | differs | {"beta": self._controller.beta}
            if bool(self._learner.tells(experience).any()):
                row |= self._learner.update(scored, iteration, stream_seed(*address, "rows"), self._mix(iteration))
            else:  # a step would follow the leash and old momentum alone
                row |= {"steps": 0.0}
            self._controller = self._controller.update(self._world.told(row["kl"]), settings.batch_size)
        self._seconds += time.monotonic() - started
        return row | {"seconds": time.monotonic() - started, "sampling_seconds": sampled - started}

    def _collect(self, iteration: int) -> tuple[Experience | None, int]:
        """Answers that have a score, sampled in rounds until the batch is full, and how many had none."""
        learner, wanted = self._learner, self._settings.batch_size
        found: list[Experience] = []
        dropped, scored = 0, False
        for turn in range(learner.rounds):
            n_prompts = (wanted - sum(len(one.scores) for one in found)) // learner.per_prompt
            if not n_prompts:
                break
            drawn = self._cursor.batch(iteration * learner.rounds + turn, wanted // learner.per_prompt)[:n_prompts]
            chosen = [self._prompts[index] for index in drawn for _ in range(learner.per_prompt)]
            again = ("again", turn) if turn else ()
            one = self._rollouts.collect(chosen, self._stage.seed, self._stage.name, iteration, *again)
            sound = torch.isfinite(one.scores)
            dropped += int((~sound).sum())
            scored = scored or bool(sound.any())
            if learner.rounds > 1 and bool(sound.any()):
                sound = sound.clone()
                sound[sound.clone()] = learner.tells(one.rows(sound))
            if bool(sound.any()):
                found.append(one if bool(sound.all()) else one.rows(sound))
        self._unscored_in_a_row = 0 if scored or not dropped else self._unscored_in_a_row + 1
        if self._unscored_in_a_row >= self._settings.max_skips:
            raise UserError(
                f"{self._stage.name}: no answer got a score that is a number for {self._unscored_in_a_row} iterations "
                "in a row; the last checkpoint is untouched; look at what scores the answers"
            )
        return (join(found, self._tokenizer.pad) if found else None), dropped

    def _mix(self, iteration: int) -> Sequences | None:
        """People's own answers for the mixed-in likelihood, as many as an optimizer step has samples."""
        if not self._settings.mix:
            return None
        cursor = Cursor(len(self._mixed), self._stage.seed, self._stage.name, "mix")
        drawn = [self._mixed[index] for index in cursor.batch(iteration, self._settings.mini_batch)]
        room = self._reference.config.max_seq_len
        ids = [
            scoring.answer_ids(self._tokenizer, c.messages[:-1], Answer(c.messages[-1].content), room) for c in drawn
        ]
        return scoring.pad([p for p, _ in ids], [r for _, r in ids], self._tokenizer.pad, self._device)

    def _show(self, iteration: int) -> None:
        """A look at what would be kept; the sampler takes the policy's own weights back when it next draws."""
        with self._learner.shown():
            self._look(iteration)

    def _look(self, iteration: int) -> None:
        """A look from outside; notes the alarm, and keeps the weights if the proxy and the KL like them best."""
        self._sampler.refresh()
        self._looks.append(self._world.told(self._monitor.look(iteration)))
        shown = {key: value for key, value in self._looks[-1].items() if isinstance(value, float)}
        self._stage.console.say(
            f"{self._stage.name} after {iteration}: " + " ".join(f"{key}={value:.3g}" for key, value in shown.items())
        )
        if fallen := monitor.fallen(self._looks, self._watching):
            self._alarms.append(iteration)
            stopping = "; practice ends here" if self._stopped() else ""
            self._stage.console.say(
                f"  over-optimisation: the reward rises and the {fallen[0]} falls{stopping}", style="yellow"
            )
        if self._kept() == iteration:
            self._best = {name: tensor.clone() for name, tensor in adapters.moving(self._learner.policy).items()}

    def _stopped(self) -> bool:
        return self._settings.stop_on_alarm and bool(self._alarms)

    def _kept(self) -> int:
        """The iteration whose weights are the best so far; the one whose alarm ended practice is none of them."""
        sound = [look for look in self._looks if not (self._stopped() and look["iteration"] in self._alarms)]
        return monitor.choose(sound, self._settings.kl_coefficient, self._settings.kl_budget)

    def _save(self, iteration: int) -> None:
        if self._world.main:
            self._write(iteration)
        self._world.wait()

    def _write(self, iteration: int) -> None:
        tensors = self._learner.tensors() | {_BEST + name: tensor for name, tensor in self._best.items()}
        state = {
            "beta": self._controller.beta, "looks": self._looks, "alarms": self._alarms, "seconds": self._seconds,
            "learner": self._learner.state(), "unscored": self._unscored_in_a_row,
            "skipped": self._learner.skipped_in_a_row,
        }  # fmt: skip
        save_checkpoint(self._stage.dir / "ckpt", iteration, tensors, state, self._settings.checkpoints)

    def _resume(self) -> int:
        """Go back to the newest sound checkpoint; returns how many iterations are done."""
        found = load_latest(self._stage.dir / "ckpt", self._stage.console)
        done = found.step if found else 0
        if self._world.told(done) != done:
            raise UserError(
                f"{self._stage.name}: the processes do not all find the same checkpoints in {self._stage.dir}; the run "
                "directory must be one that all machines see"
            )
        if self._world.main:
            self._stage.metrics.rewind(done)
        if found is None:
            self._show(0)
            return 0
        self._best = {name.removeprefix(_BEST): t for name, t in found.tensors.items() if name.startswith(_BEST)}
        self._learner.load({name: t for name, t in found.tensors.items() if not name.startswith(_BEST)})
        self._learner.restore(found.state.get("learner", {}))  # a checkpoint from before there were several learners
        self._looks, self._alarms = found.state["looks"], found.state["alarms"]
        self._seconds = found.state["seconds"]
        self._controller = replace(self._controller, beta=found.state["beta"])
        self._unscored_in_a_row = found.state.get("unscored", 0)
        self._learner.skipped_in_a_row |= found.state.get("skipped", {})
        self._stage.console.say(f"{self._stage.name} goes on after iteration {found.step}")
        return found.step

    def _figures(self, done: int) -> dict[str, Any]:
        kept, rows = self._kept(), self._stage.metrics.read()
        if self._world.main:
            monitor.write(self._stage.dir / "monitor.json", self._looks, kept, self._alarms)
        by_iteration = {look["iteration"]: look for look in self._looks}
        per_iteration = self._seconds / done
        rare = {
            "stopped_after": done if done < self._settings.iterations else 0,
            "iterations_without_step": sum(row.get("steps") == 0.0 and not row.get("stopped") for row in rows),
            "answers_without_score": int(sum(row.get("dropped", 0.0) for row in rows)),
            "prompts_without_pair": int(sum(row.get("ties", 0.0) for row in rows)),
        }
        return {
            "kept": kept,
            "before": monitor.short(by_iteration[0]),
            "after": monitor.short(by_iteration[kept]),
            "alarms": self._alarms,
            "beta": round(self._controller.beta, 5),
            "seconds_per_iteration": round(per_iteration, 3),
            "answers_per_second": round(self._settings.batch_size / max(per_iteration, 1e-9), 1),
            **{name: count for name, count in rare.items() if count},
        }


def _conversations(stage: Stage) -> list[Conversation]:
    """What the SFT model learned from."""
    return read_conversations(stage.inputs["sft"] / "conversations" / "train.jsonl")[0]
