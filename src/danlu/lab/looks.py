"""Looks at the policies of an arm: every checkpoint on its way answers the same held-out prompts at the same seeds.

In:  a finished run with an SFT model and a reward model, the directory of a stage that kept its checkpoints.
Out: the path of a policy: one row of ``align.monitor`` per checkpoint, the SFT model first; kept in ``looks.json``.
Left out: training (``arms``), laws and tables.

Looks are made after training and by one program for all methods, those without a monitor of their own too. Each is
written down when it is made: whoever is killed makes the next one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, cast

from safetensors.torch import load_file
from torch import Tensor

from danlu import hub
from danlu.align import monitor, prompts
from danlu.align.answering import PracticeSettings
from danlu.align.monitor import Monitor
from danlu.align.rewards import scorer
from danlu.align.rollout import Experience, Prompt, Rollouts
from danlu.console import Console
from danlu.errors import UserError
from danlu.evals.judge import judge
from danlu.files import hash_value, read_json, write_json
from danlu.infer.generate import Generator
from danlu.model.decoder import Decoder
from danlu.recipe import Recipe
from danlu.run import MANIFEST, Metrics, Run, Stage
from danlu.train.checkpoint import TENSORS, checkpoints

LOOKS = "looks.json"
_ROWS = 64  # per forward
_POLICY = ("policy/", "model/")  # how practice and the training loop call the weights in a checkpoint
_MEAN = "mean/"  # and practice their mean, which is what it keeps where there is one

Look = dict[str, Any]


class Observer:
    """Looks at the policies that were made of one SFT model, by one judge and one reward model.

    Args:
        run: in which ``sft`` and ``reward`` are finished.
        recipe: whose ``ppo`` says what judges, what is rewarded and where an answer is cut off.
        n_prompts: held-out prompts per look, if there are so many.
        console: where progress goes.

    Raises:
        UserError: the run lacks a stage.
    """

    def __init__(self, run: Run, recipe: Recipe, n_prompts: int, console: Console) -> None:
        for name in ("sft", "reward"):
            if not run.finished(name):
                raise UserError(f"{run.dir} has no finished stage '{name}'; danlu run makes it")
        self.run, self._n_prompts, self._console = run, n_prompts, console
        self.settings = cast(PracticeSettings, recipe.sections["ppo"])
        self._seed = int(recipe.sections["run"].seed)  # type: ignore[attr-defined]

    def path(self, stage_dir: Path) -> list[Look]:
        """A look at the SFT model and one at every checkpoint of a finished stage, in the order of its steps."""
        file, places = stage_dir.parent / LOOKS, checkpoints(stage_dir / "ckpt")
        asked = {"of": read_json(stage_dir / MANIFEST)["fingerprint"], **self.asked}
        known = read_json(file) if file.is_file() else {}
        looks: list[Look] = known["looks"] if known.get("asked") == asked else []
        for place in places[max(0, len(looks) - 1) :]:
            looks = looks or [self.start]
            looks = [*looks, self._look(_weights(place / TENSORS), int(place.name))]
            write_json(file, {"asked": asked, "looks": looks})
            self._tell(stage_dir, looks[-1])
        return looks

    @cached_property
    def start(self) -> Look:
        """The look at the SFT model itself."""
        return self._look(self._reference.state_dict(), 0)

    @cached_property
    def rollouts(self) -> Rollouts:
        """Draws answers from the policy as it is, and has them scored by the run's reward model."""
        settings, place = self.settings, self.settings.machine()
        score = scorer(settings.rewards, self._stage, place, _ROWS, settings.missing_end_penalty)
        sampler = Generator(self._policy, self._tokenizer, place.compute_dtype)
        return Rollouts(sampler, score, settings.max_new_tokens, self._tokenizer.pad, place.kind)

    @cached_property
    def prompts(self) -> list[Prompt]:
        """The held-out prompts."""
        settings, room = self.settings, self._policy.config.max_seq_len
        heldout = prompts.gather(
            self._stage, "sft", settings.judge, self._tokenizer, room - settings.max_new_tokens, list
        )[1]
        return heldout[: self._n_prompts]

    def answers(self, asked: Sequence[Prompt], *address: object) -> Experience:
        """Answers of the SFT model, scored by the run's reward model."""
        self._become(self._reference.state_dict())
        return self.rollouts.collect(asked, self._seed, *address)

    def _look(self, weights: Mapping[str, Tensor], step: int) -> Look:
        self._become(weights)
        found = self._monitor.look(step)
        return {name: value for name, value in found.items() if name != "examples"}

    def _become(self, weights: Mapping[str, Tensor]) -> None:
        self._policy.load_state_dict({name: weights[name] for name in self._policy.state_dict()})
        cast(Generator, self.rollouts.sampler).refresh()

    @cached_property
    def _monitor(self) -> Monitor:
        hidden = judge(self.settings.judge)
        return Monitor(hidden, self.prompts, self.rollouts, self._policy, self._reference, _ROWS, self._seed)

    @cached_property
    def _reference(self) -> Decoder:
        return self._load()

    @cached_property
    def _policy(self) -> Decoder:
        return self._load()

    @cached_property
    def _tokenizer(self) -> Any:
        return hub.load_pretrained(self.run.stage_dir("sft") / "model")[1]

    def _load(self) -> Decoder:
        place = self.settings.machine()
        return hub.load(self.run.stage_dir("sft") / "model", device=place.kind).compute_in(place.compute_dtype)

    @property
    def _stage(self) -> Stage:
        """No stage of the pipeline: it reads like one."""
        inputs = {name: self.run.stage_dir(name) for name in ("sft", "reward")}
        metrics = Metrics(self.run.dir / LOOKS)
        return Stage("lab", self.run.dir, self.settings, inputs, {}, self._seed, metrics, self._console)

    @cached_property
    def asked(self) -> dict[str, Any]:
        """What a look depends on beside the policy."""
        settings = self.settings.model_dump(mode="json")
        judged = [settings[key] for key in ("judge", "rewards", "missing_end_penalty", "max_new_tokens")]
        made = {name: (self.run.manifest(name) or {})["output"] for name in ("sft", "reward")}
        return {"prompts": self._n_prompts, "by": hash_value([judged, made, self._seed])}

    def _tell(self, stage_dir: Path, look: Look) -> None:
        shown = " ".join(f"{name}={look[name]:.3g}" for name in ("kl", "reward", "judge") if name in look)
        self._console.say(f"  {stage_dir.parent.name} after {look['iteration']}: {shown}")


def told(look: Look) -> Look:
    """A look as it stands in results: after which step, and its figures."""
    return {"iteration": look["iteration"], **monitor.short(look)}


def _weights(file: Path) -> dict[str, Tensor]:
    """The weights in a checkpoint that the stage would keep, by the names of the policy's modules."""
    tensors = load_file(file)
    prefix = next(prefix for prefix in _POLICY if any(name.startswith(prefix) for name in tensors))
    own, mean = (
        {name.removeprefix(kind): tensor for name, tensor in tensors.items() if name.startswith(kind)}
        for kind in (prefix, _MEAN)
    )
    return own | mean
