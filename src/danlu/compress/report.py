"""What compression costs and gains, measured on the saved models, side by side.

In:  model directories, held-out text and prompts.
Out: one row per variant (bytes, zeros, bits per byte of answers, the judge's rates, decode speed), intervals, and plain
     sentences on what a variant does not gain.
Left out: a choice; ``compress.keep`` is the user's.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from pydantic import Field

from danlu import hub
from danlu.compress.calibrate import matrices
from danlu.device import ComputeSettings
from danlu.evals import answer, bits_per_byte, heldout_answers, heldout_prompts, judge, judged, measure
from danlu.infer.generate import Generator
from danlu.infer.sampler import Sampling
from danlu.model.decoder import Decoder
from danlu.model.quantized import QuantLinear
from danlu.run import Stage
from danlu.streams import stream_seed
from danlu.tokens import chat

_ROUNDS = 6
_NOTICEABLE = 0.95  # of the dense speed; closer than that is noise


class ReportSettings(ComputeSettings):
    """What the comparison is made on."""

    judge: str = "prose"
    """Who scores the answers: poems or prose."""
    prompts: int = Field(128, ge=1)
    """Held-out prompts that every variant answers once."""
    max_new_tokens: int = Field(64, ge=1)
    """Where an answer is cut off."""
    bpb_tokens: int = Field(50_000, ge=1)
    """Held-out tokens on whose answers bits per byte are measured, about."""
    speed_tokens: int = Field(64, ge=1)
    """Tokens that every variant decodes per round of the speed measurement; there are six rounds."""


def compare(stage: Stage, settings: ReportSettings, folders: Mapping[str, Path]) -> dict[str, Any]:
    """Measure every variant.

    Args:
        stage: with the input ``sft``.
        settings: what to measure on.
        folders: variant -> model directory; "dense", the original, first.

    Returns:
        ``rows`` (one per variant), ``intervals`` (variant -> rate -> 95 % interval), ``notes`` (sentences).
    """
    machine = settings.machine()
    loaded = {name: hub.load_pretrained(folder) for name, folder in folders.items()}
    models = {name: model.to(machine.kind).compute_in(machine.compute_dtype) for name, (model, _) in loaded.items()}
    tokenizer = loaded["dense"][1]
    generators = {name: Generator(model, tokenizer, machine.compute_dtype) for name, model in models.items()}
    context, by = models["dense"].config.max_seq_len, judge(settings.judge)
    text = heldout_answers(stage, tokenizer, context, settings.bpb_tokens)
    conversations, room = stage.inputs["sft"] / "conversations" / "heldout.jsonl", context - settings.max_new_tokens
    prompts = heldout_prompts(conversations, by, tokenizer, room, settings.prompts, stage.seed)
    sampling, seed = Sampling(max_new_tokens=settings.max_new_tokens), stream_seed(stage.seed, "compress")
    speeds = decode_speeds(generators, chat.encode_prompt(tokenizer, prompts[0]), settings.speed_tokens)
    rows, intervals = [], {}
    with stage.console.task("compare", len(models), "models") as task:
        for name, model in models.items():
            answers = answer(generators[name], tokenizer, prompts, sampling, seed)
            exam = measure(by, judged(by, prompts, answers))
            intervals[name] = exam["intervals"]
            rows.append({
                "variant": name,
                "bytes": sum(file.stat().st_size for file in folders[name].glob("*.safetensors")),
                "zeros": zeros(model),
                "bpb": bits_per_byte(model, text),
                **{f"{rate}_rate": exam[f"{rate}_rate"] for rate in by.rates},
                "tokens_per_second": round(speeds[name], 1),
            })  # fmt: skip
            task.advance()
    return {"rows": rows, "intervals": intervals, "notes": notes(rows)}


@torch.no_grad()
def zeros(model: Decoder) -> float:
    """Share of zeros among the weights of the matrices that compression works on."""
    weights = [*matrices(model.blocks).values()]
    weights += [module.weight for module in model.modules() if isinstance(module, QuantLinear)]
    return sum(int((weight == 0).sum()) for weight in weights) / sum(weight.numel() for weight in weights)


def decode_speeds(generators: Mapping[str, Generator], prompt: Sequence[int], n_tokens: int) -> dict[str, float]:
    """Tokens per second of one answer at a time: the best of several rounds in which every variant has its turn.

    Turns, not blocks, because a shared machine drifts; the best, because whatever disturbs a round only slows it. Stop
    tokens are ignored, so that all decode equally much.
    """
    seconds: dict[str, list[float]] = {name: [] for name in generators}
    for _ in range(_ROUNDS):
        for name, generator in generators.items():
            room = generator.model.config.max_seq_len - len(prompt)
            sampling = Sampling(max_new_tokens=min(n_tokens, room))
            stop, generator.stop_ids = generator.stop_ids, ()
            started = time.perf_counter()
            try:
                generator.generate([prompt], sampling, [0])
            finally:
                generator.stop_ids = stop
            seconds[name].append((time.perf_counter() - started) / sampling.max_new_tokens)
    return {name: 1 / min(times) for name, times in seconds.items()}


def notes(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Plain sentences on every variant that does not gain what a person may expect of it; the first row is dense."""
    dense, *others = rows
    said = []
    for row in others:
        ratio = row["tokens_per_second"] / dense["tokens_per_second"]
        if ratio < _NOTICEABLE:
            speeds = f"{row['tokens_per_second']:.0f} instead of {dense['tokens_per_second']:.0f} tokens per second"
            said.append(f"{row['variant']} is slower than dense on this machine: {speeds}.")
        if row["bytes"] >= dense["bytes"] and row["zeros"] > dense["zeros"]:
            share = f"{row['zeros']:.0%} of its matrices are zeros"
            said.append(f"{row['variant']} takes as much space as dense: {share}, stored like any other number.")
    return said
