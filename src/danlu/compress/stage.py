"""The stage ``compress``: the aligned model made smaller in three ways, compared, and one of them kept.

In:  the aligned model; training text and conversations to calibrate on; held-out text and prompts to compare on.
Out: ``int8/``, ``magnitude/``, ``sparsegpt/``, ``model/`` (a copy of the one that is kept), ``table.json``.
Left out: the methods themselves (``quantize``, ``prune``, ``sparsegpt``) and the comparison (``report``).
"""

from __future__ import annotations

import copy
import shutil
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from itertools import islice
from typing import Any, Literal, cast

import numpy as np
from pydantic import Field
from torch import Tensor

from danlu import hub
from danlu.compress.calibrate import Site, matrices, walk
from danlu.compress.prune import magnitude
from danlu.compress.quantize import quantize
from danlu.compress.report import ReportSettings, compare
from danlu.compress.sparsegpt import sparsegpt
from danlu.errors import UserError
from danlu.files import atomic_directory, write_json
from danlu.model.decoder import Decoder
from danlu.records import read_conversations
from danlu.run import Stage
from danlu.streams import stream_seed
from danlu.tokens import chat
from danlu.tokens.loader import Batch, one_pass
from danlu.tokens.pack import pack
from danlu.tokens.shards import read_shards, write_shards
from danlu.tokens.tokenizer import Tokenizer


class CompressSettings(ReportSettings):
    """The section ``compress``."""

    keep: Literal["auto", "int8", "magnitude", "sparsegpt", "dense"] = "auto"
    """Which model people get. auto: int8 where the architecture has such a form on disk, else dense."""
    sparsity: float = Field(0.5, ge=0, le=1)
    """Share of zeros in every pruned matrix."""
    sequences: int = Field(128, ge=1)
    """Rows of calibration text for SparseGPT, half from documents and half from conversations."""
    seq_len: int = Field(256, ge=8)
    """Tokens in a row of calibration text, or the model's context if that is shorter."""
    block: int = Field(128, ge=1)
    """Columns whose mask SparseGPT chooses together."""
    damping: float = Field(0.01, ge=0)
    """Share of the mean diagonal that SparseGPT adds to the diagonal of the Hessian."""


def compress(stage: Stage) -> dict[str, Any]:
    """Make, save and compare the variants; a variant that an interrupted run has finished is kept.

    Returns:
        Figures: kept, and of every variant its bytes and bits per byte.

    Raises:
        UserError: ``keep`` names a form that this architecture does not have on disk.
    """
    settings = cast(CompressSettings, stage.settings)
    source = stage.inputs["aligned"] / "model"
    model, tokenizer = hub.load_pretrained(source)
    model.to(settings.machine().kind)
    refusal = _int8_refusal(model)
    kept = settings.keep if settings.keep != "auto" else "dense" if refusal else "int8"
    if kept == "int8" and refusal:
        raise UserError(f"compress.keep is 'int8', and {refusal}; keep 'dense' or 'auto'")
    methods = ["magnitude", "sparsegpt"] if refusal else ["int8", "magnitude", "sparsegpt"]
    for name in methods:
        if not (stage.dir / name).exists():
            stage.console.say(f"compress: {name}")
            facts = {"title": f"danlu {name}", "method": name, "parent": hub.model_hash(source)}
            if name != "int8":
                facts["sparsity"] = str(settings.sparsity)
            hub.save(_variant(name, stage, settings, model, tokenizer), stage.dir / name, tokenizer, card=facts)
    folders = {"dense": source, **{name: stage.dir / name for name in methods}}
    table = compare(stage, settings, folders)
    if refusal:
        table["notes"].append(f"There is no int8 variant: {refusal}.")
    write_json(stage.dir / "table.json", table)
    with atomic_directory(stage.dir / "model") as beside:
        shutil.copytree(folders[kept], beside, dirs_exist_ok=True)
    figures = {f"{what}_{row['variant']}": row[what] for row in table["rows"] for what in ("bytes", "bpb")}
    return {"kept": kept, **figures}


def _int8_refusal(model: Decoder) -> str | None:
    """Why this architecture has no INT8 form on disk, or None."""
    try:
        hub.hf_config(replace(model.config, quantization="int8", n_mtp=0), model.head_kind)
    except UserError as refusal:
        return str(refusal)
    return None


def _variant(name: str, stage: Stage, settings: CompressSettings, model: Decoder, tokenizer: Tokenizer) -> Decoder:
    """A compressed copy of the model."""
    if name == "int8":
        return quantize(model)
    pruned = copy.deepcopy(model)
    if name == "magnitude":
        for weight in matrices(pruned.blocks).values():
            weight.copy_(magnitude(weight, settings.sparsity))
    else:
        batches = calibration(stage, settings, tokenizer, model.config.max_seq_len)
        with stage.console.task(f"prune by {name}", len(pruned.blocks), "blocks") as task:
            walk(pruned, batches, partial(_solve, settings), task.advance)
    return pruned


def _solve(settings: CompressSettings, site: Site) -> Tensor:
    """New weights of one matrix; by magnitude where no calibration token came by (an expert that nobody chose)."""
    if site.inputs == 0:
        return magnitude(site.weight, settings.sparsity)
    return sparsegpt(site.weight, site.hessian, settings.sparsity, block=settings.block, damping=settings.damping)


def calibration(stage: Stage, settings: CompressSettings, tokenizer: Tokenizer, max_seq_len: int) -> list[Batch]:
    """Rows of training text, one batch each eight of them; nothing held out is among it.

    Half of the tokens are from the token shards and half from the conversations, because people talk to the model and
    its knowledge came from documents; all are from conversations where there are no shards.
    """
    seq_len = min(settings.seq_len, max_seq_len)
    conversations, _ = read_conversations(stage.inputs["sft"] / "conversations" / "train.jsonl")
    encoded = (chat.encode_conversation(tokenizer, conversations[i])[0] for i in _shuffled(len(conversations), stage))
    wanted = settings.sequences * seq_len
    if "tokens" in stage.inputs:
        shards = read_shards(stage.inputs["tokens"] / "shards" / "train", tokenizer)
        texts = np.split(shards.tokens, shards.ends[:-1].astype(np.int64))
        documents = (texts[i].tolist() for i in _shuffled(len(texts), stage))
        chosen = [*_take(documents, wanted // 2), *_take(encoded, wanted // 2)]
    else:
        chosen = _take(encoded, wanted)
    write_shards(stage.dir / "calibration", ((ids, None) for ids in chosen), tokenizer)
    text = read_shards(stage.dir / "calibration", tokenizer)
    rows = pack(text, seq_len, "stream", stage.seed)
    return list(islice(one_pass(text, rows, 8), -(-settings.sequences // 8)))


def _shuffled(count: int, stage: Stage) -> Iterator[int]:
    order = np.random.default_rng(stream_seed(stage.seed, "calibration")).permutation(count)
    return (int(place) for place in order)


def _take(sequences: Iterator[list[int]], n_tokens: int) -> list[list[int]]:
    """Sequences until they have so many tokens together."""
    taken: list[list[int]] = []
    for ids in sequences:
        if n_tokens <= 0:
            break
        taken.append(ids)
        n_tokens -= len(ids)
    return taken
