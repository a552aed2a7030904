"""The stage ``sft``: a model that answers.

In:  the base model; documents to make instructions from, or the user's own conversations.
Out: ``model/``, ``conversations/train.jsonl`` and ``heldout.jsonl``, figures.
Left out: templates and loss mask (``tokens.chat``), adapters themselves (``adapters``).
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any, cast

from pydantic import Field, field_validator

from danlu import hub
from danlu.corpus.split import fitting_share, is_heldout, read_share
from danlu.errors import UserError, nearest
from danlu.files import hash_value
from danlu.hub.rows import train_rows
from danlu.model.decoder import Decoder
from danlu.records import Conversation, read_conversations, read_documents, write_conversations
from danlu.run import Stage
from danlu.streams import stream_seed
from danlu.tokens import chat
from danlu.tokens.shards import read_shards, write_shards
from danlu.tokens.tokenizer import Tokenizer
from danlu.train import adapters, parallel
from danlu.train.continuations import prose_tasks
from danlu.train.instructions import PoemMix, compile_rhymes, poem_tasks
from danlu.train.language import LanguageSettings, Text, continuation, evaluate_text, language_task
from danlu.train.loop import run_loop
from danlu.train.pretrain import count, save_model, untaught_of

MADE = ("poems", "prose")
PARTS = ("train", "heldout")
_PROBLEMS_SHOWN = 5
_FEW_TASKS = 200  # from a handful of long documents come as many as these
_TEMPLATE_TOKENS = 24  # of turns and of 续写：, which a small vocabulary spells in bytes


class SFTSettings(LanguageSettings, adapters.Adaptable):
    """The section ``sft``."""

    source: str = "prose"
    """poems or prose, for tasks made from the corpus; or a JSONL file in the OpenAI, ShareGPT or Alpaca form."""
    poems: PoemMix = PoemMix()
    """Which tasks a quatrain gives, for source poems."""
    prose_per_document: int = Field(default=1, ge=1)
    """At most so many tasks from one document, for source prose; more where there are few documents."""
    heldout: float = Field(default=0.02, gt=0, lt=1)
    """Share of a file's prompts kept from training; tasks made from documents go by the corpus's own share."""
    epochs: float = Field(default=2.0, gt=0)
    """Times that training reads every conversation; used if ``steps`` is 0."""
    steps: int = Field(default=0, ge=0)
    """Optimizer steps; 0 goes by ``epochs``."""
    lr: float = Field(default=5e-4, gt=0)
    """Peak learning rate, of AdamW's size for either optimizer."""
    weight_decay: float = Field(default=0.0, ge=0)
    """Decoupled weight decay of matrices; embeddings, norms and biases are not decayed."""

    def reads(self) -> dict[str, Path]:
        """The user's conversations."""
        return {} if self.source in MADE else {"source": Path(self.source)}

    @field_validator("source")
    @classmethod
    def _is_known(cls, value: str) -> str:
        if value not in MADE and not Path(value).suffix:
            raise ValueError(f"unknown source '{value}'{nearest(value, MADE)}; or give a .jsonl file")
        return value


def sft(stage: Stage) -> dict[str, Any]:
    """Tune the base model on conversations; only the assistant's words and stop tokens are learnt.

    Returns:
        Figures: conversations, heldout, parameters_total, parameters_active, steps, skipped_steps, tokens,
        tokens_per_second, val_loss (nats per answer token).

    Raises:
        UserError: nothing to learn from or nothing held out, or rows longer than the base model can read.
    """
    settings = cast(SFTSettings, stage.settings)
    base = stage.inputs["pretrain"] / "model"
    model, tokenizer = hub.load_pretrained(base)
    if settings.seq_len > model.config.max_seq_len:
        longest = model.config.max_seq_len
        raise UserError(f"sft.seq_len ({settings.seq_len}) is more than the base model can read ({longest})")
    world = parallel.join()
    if world.main:
        _write(stage, settings, tokenizer)
    world.wait()
    train, val = (Text.lay_out(read_shards(stage.dir / "shards" / p), settings, stage.seed) for p in PARTS)
    if not settings.steps:
        steps = math.ceil(settings.epochs * train.pack.n_rows / settings.batch_size)
        settings = settings.model_copy(update={"steps": steps})
    _attach(model, tokenizer, stage, settings.adapter)
    task = language_task(train, val, settings, model, tokenizer, stage.seed, world, _sample(stage, tokenizer))
    task = adapters.with_dropout(task, settings.adapter, stage.seed)
    figures = run_loop(model, task, settings, stage)
    figures |= evaluate_text(model, val, settings.micro_batch or settings.batch_size)
    if world.main:
        save_model(model, tokenizer, stage, {key: figures[key] for key in ("steps", "tokens", "val_loss")})
        adapters.write(model, stage, base, settings.adapter)
    n_train, n_val = (text.shards.manifest["documents"] for text in (train, val))
    return {"conversations": n_train, "heldout": n_val, **count(model), **figures}


def _attach(model: Decoder, tokenizer: Tokenizer, stage: Stage, settings: adapters.AdapterSettings) -> None:
    """Give the base model its adapter, if it is to have one, and with it rows for tokens that it was never taught:
    behind a frozen row of noise nothing would tell one turn from another.
    """
    adapters.attach(model, settings, stream_seed(stage.seed, stage.name, "adapter"))
    if settings.kind == "none":
        return
    if ids := untaught_of(stage.inputs["pretrain"], tokenizer, stage.console):
        train_rows(model, ids)
        stage.console.say(f"{stage.name} trains the rows of {len(ids)} tokens for turns with the adapter")


def gather(stage: Stage, settings: SFTSettings, tokenizer: Tokenizer) -> dict[str, list[Conversation]]:
    """The conversations of each part.

    A document's conversations are held out if the document was held out of pre-training; a file's by their prompt, so
    that two answers to one prompt are never divided.

    Raises:
        UserError: no readable file at ``source``, or a part without a single conversation.
    """
    parts: dict[str, list[Conversation]] = {part: [] for part in PARTS}
    found = _made(stage, settings, tokenizer) if settings.source in MADE else _read(stage, settings)
    for heldout, conversation in found:
        parts[PARTS[heldout]].append(conversation)
    for part, conversations in parts.items():
        if not conversations:
            raise UserError(f"sft.source '{settings.source}' gives no conversation for {part}; it needs more text")
    return parts


def _made(stage: Stage, settings: SFTSettings, tokenizer: Tokenizer) -> Iterator[tuple[bool, Conversation]]:
    """Tasks made from the corpus's documents, and whether they are held out."""
    folder, share = stage.inputs["corpus"] / "documents", read_share(stage.inputs["corpus"])
    if settings.source == "poems":
        book = compile_rhymes(d for d in read_documents(folder) if not is_heldout(d.id, share))
        make = functools.partial(poem_tasks, mix=settings.poems, book=book, seed=stage.seed)
    else:
        documents = sum(1 for _ in islice(read_documents(folder), _FEW_TASKS))  # more make no difference
        per_document = max(settings.prose_per_document, math.ceil(_FEW_TASKS / documents))
        make = functools.partial(
            prose_tasks, per_document=per_document, seed=stage.seed,
            size=lambda text: len(tokenizer.encode(text)), room=settings.seq_len - _TEMPLATE_TOKENS,
        )  # fmt: skip
    for document in read_documents(folder):
        heldout = is_heldout(document.id, share)
        yield from ((heldout, task) for task in make(document))


def _read(stage: Stage, settings: SFTSettings) -> Iterator[tuple[bool, Conversation]]:
    """The user's own conversations, and whether they are held out."""
    conversations, problems = read_conversations(Path(settings.source))
    for problem in problems[:_PROBLEMS_SHOWN]:
        stage.console.say(f"left out: {problem}")
    if len(problems) > _PROBLEMS_SHOWN:
        stage.console.say(f"left out: {len(problems) - _PROBLEMS_SHOWN} more lines of {settings.source}")
    prompts = [hash_value(conversation.to_json()["messages"][:-1]) for conversation in conversations]
    share = fitting_share(prompts, settings.heldout)
    yield from ((is_heldout(prompt, share), c) for prompt, c in zip(prompts, conversations, strict=True))


def _write(stage: Stage, settings: SFTSettings, tokenizer: Tokenizer) -> None:
    """Write conversations as JSONL and as token shards with their loss mask; what does not fit a row is left out."""
    for part, conversations in gather(stage, settings, tokenizer).items():
        encoded = []
        with stage.console.task(f"encode for {part}", len(conversations), "conversations") as task:
            for conversation in conversations:
                encoded.append((chat.encode_conversation(tokenizer, conversation), conversation))
                task.advance()
        fitting = [(ids_mask, c) for ids_mask, c in encoded if len(ids_mask[0]) <= settings.seq_len + 1]
        if not fitting:
            raise UserError(f"no conversation for {part} fits in sft.seq_len ({settings.seq_len}); raise it")
        if too_long := len(encoded) - len(fitting):
            stage.console.say(f"left out: {too_long} conversations for {part} longer than sft.seq_len")
        write_conversations(stage.dir / "conversations" / f"{part}.jsonl", (c for _, c in fitting))
        write_shards(stage.dir / "shards" / part, (ids_mask for ids_mask, _ in fitting), tokenizer)


def _sample(stage: Stage, tokenizer: Tokenizer) -> Callable[[Decoder], str]:
    """Answers to the first held-out prompt."""
    first = read_conversations(stage.dir / "conversations" / f"{PARTS[1]}.jsonl")[0][0]
    return continuation(tokenizer, chat.encode_prompt(tokenizer, first.messages[:-1]))
