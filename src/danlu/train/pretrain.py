"""The stage ``pretrain``: a model that has read the corpus; or one from elsewhere, adopted.

In:  token shards and their tokenizer; or a model directory.
Out: ``model/``, a Hugging Face directory; beside it the ids of tokens that nobody has taught it; figures.
Left out: the loop (``loop``), the loss (``language``), going on with the pre-training of an adopted model.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields, replace
from pathlib import Path
from typing import Any, cast

import torch
from pydantic import Field, TypeAdapter, ValidationError, field_validator, model_validator

from danlu import hub
from danlu.console import Console
from danlu.errors import UserError, unknown
from danlu.files import read_json, write_json
from danlu.model.config import ModelConfig
from danlu.model.count import parameters
from danlu.model.decoder import Decoder
from danlu.model.presets import PRESETS
from danlu.recipe import nearest_key
from danlu.run import MANIFEST, Stage
from danlu.streams import stream_seed
from danlu.tokens import chat
from danlu.tokens.shards import read_shards
from danlu.tokens.tokenizer import Tokenizer
from danlu.train import parallel
from danlu.train.language import LanguageSettings, Text, continuation, evaluate_text, language_task
from danlu.train.loop import run_loop

UNTAUGHT = "untaught.json"
_PROMPT_TOKENS = 8
_PRESET = "llama-tang"
_ANY = 64  # a vocabulary, where only the shape matters
_CONFIG = TypeAdapter(ModelConfig)  # takes 1e6, which YAML calls a string, for the number that it is


class PretrainSettings(LanguageSettings):
    """The section ``pretrain``."""

    model: dict[str, Any] = Field(default_factory=lambda: {"preset": _PRESET}, validate_default=True)
    """The shape: ``preset`` names one to start from, any other key is a field of the model and overrides it."""
    base: str = ""
    """A model to adopt instead of training one: a directory, a GGUF file, or a name such as smollm2."""

    def reads(self) -> dict[str, Path]:
        """The base model, if it is on this disk."""
        return {"base": Path(self.base)} if self.base and not hub.is_remote(Path(self.base)) else {}

    def check_processes(self, world: parallel.World, stage: str) -> None:
        """A batch is cut only if there is one: a base is adopted by one process."""
        if not self.base:
            super().check_processes(world, stage)

    @field_validator("model")
    @classmethod
    def _spelled_out(cls, value: dict[str, Any]) -> dict[str, Any]:
        """Every field of the shape: a preset that changes is another model, whatever it is called."""
        shape = _shape(value, vocab_size=_ANY).to_dict()
        del shape["vocab_size"]
        return {"preset": value.get("preset", _PRESET), **shape}

    @model_validator(mode="after")
    def _shape_can_be_saved(self) -> PretrainSettings:
        """Refuse at once a shape that could be trained for hours and then not be written."""
        if not self.base:
            hub.check_counterpart(self.shape(_ANY))
        return self

    def shape(self, vocab_size: int) -> ModelConfig:
        """The model's config for a vocabulary of this size.

        Raises:
            UserError: rows are longer than the model can read.
        """
        config = _shape(self.model, vocab_size)
        if self.seq_len > config.max_seq_len:
            raise UserError(f"pretrain.seq_len ({self.seq_len}) is more than model.max_seq_len ({config.max_seq_len})")
        return config


def _shape(model: Mapping[str, Any], vocab_size: int) -> ModelConfig:
    """The config that the keys of ``pretrain.model`` describe.

    Raises:
        UserError: unknown preset or field, a value of another kind, or sizes that do not go together.
    """
    overrides = dict(model)
    name = str(overrides.pop("preset", _PRESET))
    if name not in PRESETS:
        raise unknown("preset", name, PRESETS, "pretrain.model")
    valid = {f.name for f in fields(ModelConfig)} - {"vocab_size"}  # the tokenizer decides the vocabulary
    for key in overrides:
        if key not in valid:
            raise UserError(f"unknown key 'pretrain.model.{key}'{nearest_key(key, valid | {'preset'})}")
    try:
        return _CONFIG.validate_python({**PRESETS[name], **overrides, "vocab_size": vocab_size})
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(("pretrain.model", *map(str, first["loc"])))
        raise UserError(f"{where}: {first['msg'].removeprefix('Value error, ')}") from None


def pretrain(stage: Stage) -> dict[str, Any]:
    """Train a model from random weights, or adopt ``base``.

    Returns:
        Figures: parameters_total, parameters_active, and for a trained model steps, skipped_steps, tokens,
        tokens_per_second, val_loss (nats per token) and bpb over the whole held-out text.
    """
    settings = cast(PretrainSettings, stage.settings)
    if not settings.base:
        return _train(stage, settings)
    return _adopt(stage, Path(settings.base)) if parallel.join().main else {}


def _train(stage: Stage, settings: PretrainSettings) -> dict[str, Any]:
    tokenizer = Tokenizer.load(stage.inputs["tokenizer"] / "model")
    shards = stage.inputs["tokens"] / "shards"
    found = (read_shards(shards / part, verify=True) for part in ("train", "val"))
    train, val = (Text.lay_out(text, settings, stage.seed) for text in found)
    model = new_model(settings.shape(tokenizer.vocab_size), stage.seed)
    prompt = val.shards.tokens[: min(_PROMPT_TOKENS, int(val.shards.ends[0]))].tolist()
    world = parallel.join()
    task = language_task(train, val, settings, model, tokenizer, stage.seed, world, continuation(tokenizer, prompt))
    figures = run_loop(model, task, settings, stage)
    figures |= evaluate_text(model, val, settings.micro_batch or settings.batch_size)
    if world.main:
        write_json(stage.dir / UNTAUGHT, chat.turn_ids(tokenizer))
        save_model(model, tokenizer, stage, {key: figures[key] for key in ("steps", "tokens", "val_loss", "bpb")})
    return count(model) | figures


def new_model(config: ModelConfig, seed: int) -> Decoder:
    """A model with random weights that depend on the seed alone."""
    torch.manual_seed(stream_seed(seed, "weights"))
    return Decoder(config)


def _adopt(stage: Stage, base: Path) -> dict[str, Any]:
    """Make ``base`` the model of this stage, in the layout that every later stage reads.

    A base model that was never a chat model has no tokens for turns. It gets danlu's, and rows for them.

    Raises:
        UserError: ``base`` is no model directory that danlu can read, or not a model to go on training.
    """
    folder = hub.obtain(base, stage.console) if hub.is_named(base) else base
    model, tokenizer = hub.load_pretrained(folder)
    if model.head_kind != "lm" or model.config.quantization != "none":
        raise UserError(f"pretrain.base {base} is a reward model or compressed; it must be a plain language model")
    stage.console.say(f"{stage.name} adopts {base}")
    untaught: list[int] = []
    if not chat.knows_turns(tokenizer):
        known, tokenizer = tokenizer.specials, chat.with_turns(tokenizer)
        untaught = [tokenizer.specials[name] for name in chat.SPECIALS if name not in known]
        model = with_vocabulary(model, tokenizer.vocab_size, stream_seed(stage.seed, "turns"))
        stage.console.say(f"  it knows no turns of a dialogue and gets {len(chat.SPECIALS)} tokens for them")
    write_json(stage.dir / UNTAUGHT, untaught)
    save_model(model, tokenizer, stage, {"base": base.name})
    return count(model)


def with_vocabulary(model: Decoder, vocab_size: int, seed: int) -> Decoder:
    """The same model with rows for at least ``vocab_size`` tokens.

    New rows are the mean of the old ones, which no prompt makes likely, and a tenth of their deviation in noise, which
    tells them apart (Hewitt 2021, "Initializing new word embeddings for pretrained language models").
    """
    if vocab_size <= model.config.vocab_size:
        return model
    grown = Decoder(replace(model.config, vocab_size=vocab_size))
    state = model.state_dict()
    noise = torch.Generator().manual_seed(seed)
    for name in ("embed.weight", "head.weight"):
        if name in state:
            old = state[name]
            new = torch.randn(vocab_size - len(old), old.shape[1], generator=noise) * (0.1 * old.std(0)) + old.mean(0)
            state[name] = torch.cat([old, new.to(old.dtype)])
    grown.load_state_dict(state, assign=True)
    return grown


def untaught_of(folder: Path, tokenizer: Tokenizer, console: Console) -> list[int]:
    """Ids of tokens that occur in dialogues alone, so that a finished stage ``pretrain`` has taught the model nothing
    of them; none if it adopted a chat model.

    A stage that was made before these were noted had taught its own model none of the tokens for turns. Of a model that
    it adopted nobody knows, and a line says so.
    """
    if (folder / UNTAUGHT).is_file():
        return list(read_json(folder / UNTAUGHT))
    base = read_json(folder / MANIFEST)["settings"].get("base")
    if not base:
        return chat.turn_ids(tokenizer)
    console.say(f"{base} was adopted before danlu noted which tokens nobody had taught it, so the adapter leaves all "
                f"rows as they are; if it was no chat model, remove {folder} and adopt it again")  # fmt: skip
    return []


def count(model: Decoder) -> dict[str, int]:
    """The figures that tell a model's size."""
    size = parameters(model.config)
    return {"parameters_total": size.total, "parameters_active": size.active}


def save_model(model: Decoder, tokenizer: Tokenizer, stage: Stage, facts: dict[str, Any]) -> None:
    """Write ``model/`` of a stage: what it is, which stage made it, and facts that a resumed run would repeat."""
    hub.save(model, stage.dir / "model", tokenizer, card={"title": f"danlu {stage.name}", "seed": stage.seed, **facts})
