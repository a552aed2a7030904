"""Stage ``guard``: learn to tell unsafe texts from safe ones, as one number per text; and the guard at work.

In:  a language model, labelled texts.
Out: ``model/``, a sequence-classification model, with ``guard.json`` in it: the threshold above which a text is unsafe,
set on held-out texts for a rate of false alarms; figures on others beside two baselines: calling everything by the
commonest label, and the bundled rules alone. ``Guard``, which loads such a directory and scores texts.
Left out: which kind of harm it is (rules and people say so), multi-label heads.

The training loop is everybody's (``train.loop``); here are its batches, its loss and its evaluation.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self, cast

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from danlu import device, hub
from danlu.align import labelled, verdicts
from danlu.align.heads import with_scalar_head
from danlu.align.labelled import PARTS, Example
from danlu.align.rollout import Cursor
from danlu.corpus import sources
from danlu.errors import UserError
from danlu.evals.hazards import read_rules
from danlu.files import read_json, write_json
from danlu.model.decoder import Decoder
from danlu.run import Stage
from danlu.streams import stream_seed
from danlu.tokens.tokenizer import Tokenizer
from danlu.train import adapters, parallel
from danlu.train.loop import run_loop
from danlu.train.task import LoopSettings, LossOutput, Task

SETTINGS = "guard.json"
_ROWS = 32  # per forward when nothing is learnt
_FEWEST = 5  # texts of each kind in each part, below which figures say nothing


class GuardSettings(LoopSettings, adapters.Adaptable):
    """The section ``guard``."""

    data: str = ""
    """Labelled texts: JSONL with text or messages and label, folders that are named after labels, or a package."""
    include: list[str] = Field(default_factory=list)
    """Globs of the files wanted; all of them if empty."""
    folders: dict[str, str] = Field(default_factory=dict)
    """Glob of a folder -> label, for folders that are not named after labels; others are left out."""
    remove: list[str] = Field(default_factory=list)
    """Regular expressions of what is cut out of every text."""
    heldout: float = Field(0.3, gt=0, lt=1)
    """Share of the texts that is not learnt from: half of it sets the threshold, half measures it."""
    false_positive_rate: float = Field(0.01, gt=0, lt=1)
    """Share of safe texts that may be called unsafe; sets the threshold."""
    seq_len: int = Field(256, ge=8)
    """Tokens that are read at once; longer texts are read in overlapping parts, and the worst counts."""
    steps: int = Field(0, ge=0)
    """Optimizer steps; 0 goes by ``epochs``."""
    epochs: float = Field(3.0, gt=0)
    """How often every text is learnt from, if ``steps`` is 0."""
    batch_size: int = Field(32, ge=1)
    """Texts per optimizer step."""
    lr: float = Field(3e-4, gt=0)
    """Peak learning rate."""
    warmup: int = Field(10, ge=0)
    """Steps of linear warm-up."""
    weight_decay: float = Field(0.01, ge=0)
    """Decoupled weight decay of matrices."""

    def reads(self) -> dict[str, Path]:
        """The user's labelled texts."""
        if not self.data:
            raise UserError('guard.data is not given; name a JSONL file of {"text", "label"}: guard.data=FILE')
        sources.check(self.data)
        path = sources.local_path(self.data)
        return {} if path is None else {"data": path}


@dataclass(frozen=True)
class _Batch:
    """Texts in token ids, right-padded: (B, T) tokens, (B,) lengths, (B,) 1 for unsafe, (B,) weights."""

    tokens: Tensor
    lengths: Tensor
    unsafe: Tensor
    weights: Tensor


@dataclass(frozen=True)
class Guard:
    """A trained guard.

    Attributes:
        model: with a scalar head.
        tokenizer: its own.
        seq_len: tokens that it reads at once.
        threshold: a text that scores this or more is unsafe.
    """

    model: Decoder
    tokenizer: Tokenizer
    seq_len: int
    threshold: float = math.inf

    @classmethod
    def load(cls, folder: Path) -> Self:
        """Read the directory that the stage made.

        Raises:
            UserError: it holds no guard.
        """
        if not (folder / SETTINGS).is_file():
            raise UserError(f"{folder} has no {SETTINGS}; train a guard: danlu run guard guard.data=FILE")
        said, machine = read_json(folder / SETTINGS), device.choose()
        model, tokenizer = hub.load_pretrained(folder)
        if model.head_kind != "scalar":
            raise UserError(f"{folder} is a language model; a guard gives one number per text")
        model.to(machine.kind).compute_in(machine.compute_dtype)
        return cls(model, tokenizer, int(said["seq_len"]), float(said["threshold"]))

    def score(self, text: str) -> float:
        """How unsafe a text is, in log-odds as learnt from texts of both kinds equally weighted."""
        return self.scores([text])[0]

    def scores(self, texts: Sequence[str]) -> list[float]:
        """``score`` of many texts: of each its worst part."""
        parts = [(i, ids) for i, text in enumerate(texts) for ids in windows(self.tokenizer, text, self.seq_len)]
        parts.sort(key=lambda part: len(part[1]))  # similar lengths together, so that little padding is computed
        found = [-math.inf] * len(texts)
        where = self.model.embed.weight.device.type
        for start in range(0, len(parts), _ROWS):
            chosen = parts[start : start + _ROWS]
            tokens, lengths = _pad([ids for _, ids in chosen], self.tokenizer.pad, where)
            with torch.inference_mode():
                values = self.model(tokens, lengths).tolist()
            for (i, _), value in zip(chosen, values, strict=True):
                found[i] = max(found[i], value)
        return found


def guard(stage: Stage) -> dict[str, Any]:
    """Train the guard.

    Returns:
        On test texts that neither training nor the threshold has seen: accuracy, precision, recall,
        false_positive_rate, auc; accuracies of the baselines, and whether the guard's is clearly above the best.
    """
    settings = cast(GuardSettings, stage.settings)
    machine = settings.machine()
    examples = labelled.read_examples(settings.data, settings.include, settings.folders, settings.remove, stage.console)
    parts = labelled.split(examples, settings.heldout)
    _check(parts)
    folder = stage.inputs["pretrain"] / "model"
    base, tokenizer = hub.load_pretrained(folder)
    if settings.seq_len > base.config.max_seq_len:
        raise UserError(f"guard.seq_len ({settings.seq_len}) is more than the base reads ({base.config.max_seq_len})")
    model = with_scalar_head(base, stream_seed(stage.seed, stage.name, "head"))
    adapters.attach(model, settings.adapter, stream_seed(stage.seed, stage.name, "adapter")).to(machine.kind)
    watchman = Guard(model, tokenizer, settings.seq_len)
    if not settings.steps:
        steps = math.ceil(settings.epochs * len(parts["train"]) / settings.batch_size)
        settings = settings.model_copy(update={"steps": steps})
    world = parallel.join()
    task = _task(parts, settings, watchman, stage.seed, machine.kind, world)
    task = adapters.with_dropout(task, settings.adapter, stage.seed).shared(world, stage.name)
    figures = run_loop(model, task, settings, stage)
    if not world.main:
        return {}
    threshold, measured = _measure(watchman, parts, settings.false_positive_rate)
    figures |= {"examples": len(examples), "unsafe": sum(example.unsafe for example in examples), **measured}
    _save(stage, settings, watchman, threshold, measured)
    adapters.write(model, stage, folder, settings.adapter)
    if not measured["beats_baselines"]:
        best = measured["best_baseline"]
        stage.console.say(
            f"{stage.name}: accuracy {measured['accuracy']} is not clearly above the baseline '{best}' "
            f"({measured['baselines'][best]}); label more texts before you rely on it",
            style="yellow",
        )
    return figures


def windows(tokenizer: Tokenizer, text: str, seq_len: int) -> list[list[int]]:
    """A text in ids, in parts of ``seq_len`` at most that overlap by half, each between the vocabulary's ends."""
    ids, room = tokenizer.encode(text), seq_len - 2
    step = max(1, room // 2)
    starts = range(0, max(1, len(ids) - room + step), step)
    return [[tokenizer.bos, *ids[start : start + room], tokenizer.eos] for start in starts]


def _task(
    parts: dict[str, list[Example]], settings: GuardSettings, watchman: Guard, seed: int, place: str,
    world: parallel.World,
) -> Task:  # fmt: skip
    tokenizer, train = watchman.tokenizer, parts["train"]
    ids = [windows(tokenizer, example.text, settings.seq_len)[0] for example in train]
    share = sum(example.unsafe for example in train) / len(train)
    weights = [0.5 / share if example.unsafe else 0.5 / (1 - share) for example in train]
    cursor, size = Cursor(len(train), seed, "guard"), settings.rows(world)

    def batch(rows: Sequence[int]) -> _Batch:
        tokens, lengths = _pad([ids[row] for row in rows], tokenizer.pad, place)
        unsafe = torch.tensor([float(train[row].unsafe) for row in rows], device=place)
        return _Batch(tokens, lengths, unsafe, torch.tensor([weights[row] for row in rows], device=place))

    def batches(step: int) -> list[_Batch]:
        chosen = sorted(cursor.batch(step, settings.batch_size), key=lambda row: len(ids[row]))
        return [batch(chosen[i : i + size]) for i in range(0, len(chosen), size)]

    def evaluate(model: Decoder) -> dict[str, float]:
        unsafe = [example.unsafe for example in parts["calibration"]]
        found = watchman.scores([example.text for example in parts["calibration"]])
        return {"val_auc": verdicts.auc(found, unsafe) or 0.0}

    return Task(batches=batches, loss=guard_loss, evaluate=evaluate)


def guard_loss(model: Decoder, batch: _Batch) -> LossOutput:
    """Binary cross entropy, in which both kinds of text weigh the same however many there are of each."""
    found: Tensor = model(batch.tokens, batch.lengths)
    loss = F.binary_cross_entropy_with_logits(found, batch.unsafe, batch.weights, reduction="sum")
    right = float(((found > 0) == (batch.unsafe > 0)).sum())
    return LossOutput(loss, len(found), int(batch.lengths.sum()), sums={"accuracy": right})


def _pad(rows: Sequence[list[int]], padding: int, place: str) -> tuple[Tensor, Tensor]:
    """(B, T) ids filled up on the right, and (B,) lengths."""
    width = max(map(len, rows))
    tokens = torch.tensor([row + [padding] * (width - len(row)) for row in rows], device=place)
    return tokens, torch.tensor([len(row) for row in rows], device=place)


def _check(parts: dict[str, list[Example]]) -> None:
    for part in PARTS:
        for kind, n in (
            ("unsafe", sum(e.unsafe for e in parts[part])),
            ("safe", sum(not e.unsafe for e in parts[part])),
        ):
            if n < _FEWEST:
                raise UserError(
                    f"guard.data has {n} {kind} texts for {part} and {_FEWEST} are the least; label more of them"
                )


def _measure(watchman: Guard, parts: dict[str, list[Example]], rate: float) -> tuple[float, dict[str, Any]]:
    """The threshold from one part of what was held out, and figures from the other."""
    scored = {
        part: ([e.unsafe for e in parts[part]], watchman.scores([e.text for e in parts[part]])) for part in PARTS[1:]
    }
    unsafe, scores = scored["calibration"]
    # Where the kinds lie far apart the line would lie close to the safe ones: never below even odds.
    threshold = max(0.0, verdicts.threshold_at(scores, unsafe, rate))
    unsafe, scores = scored["test"]
    called = [score >= threshold for score in scores]
    often = sum(e.unsafe for e in parts["train"]) * 2 > len(parts["train"])
    rules = read_rules()
    others = {
        "majority": verdicts.verdict([often] * len(unsafe), unsafe),
        "rules": verdicts.verdict([bool(rules.scan(e.text, "prompt")) for e in parts["test"]], unsafe),
    }
    baselines = {name: found["accuracy"] or 0.0 for name, found in others.items()}
    best = max(baselines, key=lambda name: baselines[name])
    return threshold, {
        **verdicts.verdict(called, unsafe), "auc": verdicts.auc(scores, unsafe), "tested": len(unsafe),
        "rules": others["rules"], "baselines": baselines, "best_baseline": best,
        "beats_baselines": verdicts.clearly_above(called, unsafe, baselines[best]),
    }  # fmt: skip


def _save(stage: Stage, settings: GuardSettings, watchman: Guard, threshold: float, measured: dict[str, Any]) -> None:
    facts = {key: measured[key] for key in ("precision", "recall", "false_positive_rate", "auc")}
    what = "A guard: it gives a text one number, the higher the more likely it is unsafe."
    card = {"title": "danlu guard", "what": what, "stage": stage.name, "threshold": round(threshold, 4), **facts}
    hub.save(watchman.model, stage.dir / "model", watchman.tokenizer, card=card)
    said = {"threshold": threshold, "seq_len": settings.seq_len, "false_positive_rate": settings.false_positive_rate}
    write_json(stage.dir / "model" / SETTINGS, said)
