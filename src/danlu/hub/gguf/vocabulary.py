r"""The tokenizer inside a GGUF file, both ways.

In:  a ``Tokenizer``, or a file's metadata.
Out: the other of the two.
Left out: vocabularies that are not byte-level BPE (SentencePiece, WordPiece), which danlu does not use.

A file does not say how text is cut into pieces before BPE; it gives a name, and every reader knows what is meant. The
rules here are those of the tokenizers of that name on Hugging Face. The rule of vocabularies trained by danlu has no
name in llama.cpp. They are written as ``qwen2``, whose pieces are longer. Merges exist only inside danlu's pieces, so
ids differ only where the end of one and the beginning of the next are a merge that another text has made.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from typing import Any

import tokenizers
from gguf import TokenType
from tokenizers import AddedToken, Regex, decoders, models, normalizers, pre_tokenizers

from danlu.errors import UserError, unknown
from danlu.tokens.bpe import split_pattern
from danlu.tokens.tokenizer import Tokenizer

_KEY = "tokenizer.ggml."
_TEMPLATE = "tokenizer.chat_template"
_ROLES = {"bos": "bos_token", "eos": "eos_token", "unknown": "unk_token", "padding": "pad_token"}
_DANLU = "qwen2"  # what a vocabulary trained here is called, for want of a name of its own

_GPT2 = r"'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"


def _gpt4(digits: str) -> str:
    """GPT-4's rule with digits cut in another way."""
    return (
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|" + digits + r"| ?[^\s\p{L}\p{N}]+[\r\n]*"
        r"|\s*[\r\n]+|\s+(?!\S)|\s+"
    )


_V3_WORDS = (
    r"""[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+| ?[\p{P}\p{S}]+[\r\n]*"""
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
# What cuts a text, one rule after another, by the name in the file.
_RULES: dict[str, tuple[str, ...]] = {
    "gpt-2": (_GPT2,),
    "smollm": (r"\p{N}", _GPT2),
    "llama-bpe": (_gpt4(r"\p{N}{1,3}"),),
    "qwen2": (_gpt4(r"\p{N}"),),
    "deepseek-v3": (r"\p{N}{1,3}", r"[\u4E00-\u9FA5\u3040-\u309F\u30A0-\u30FF]+", _V3_WORDS),
}
_SAME_AS = {"default": "gpt-2", "llama3": "llama-bpe", "llama-v3": "llama-bpe", "deepseek-r1-qwen": "qwen2"}
_WHOLE_WORDS = ("llama-bpe",)  # a piece that is a token by itself is not merged
_COMPOSED = ("qwen2",)  # characters are composed first (NFC)


def read_tokenizer(metadata: Mapping[str, Any]) -> Tokenizer:
    """The tokenizer that a file describes.

    Raises:
        UserError: there is none, or not one that is known here.
    """
    kind = metadata.get(f"{_KEY}model")
    if kind != "gpt2":
        raise UserError(f"its tokenizer is of kind '{kind}', which is not byte-level BPE; no other is used here")
    name = str(metadata.get(f"{_KEY}pre", "default"))
    name = _SAME_AS.get(name, name)
    if name not in _RULES:
        raise unknown("rule to cut text (tokenizer.ggml.pre)", name, (*_RULES, *_SAME_AS))
    tokens, kinds = metadata.get(f"{_KEY}tokens"), metadata.get(f"{_KEY}token_type")
    if not isinstance(tokens, list) or not tokens or (kinds is not None and len(kinds) != len(tokens)):
        raise UserError("its tokenizer has no tokens, or not a kind for each; fetch the file again")
    backend = _backend(name, tokens, metadata.get(f"{_KEY}merges", []))
    for token, kind in zip(tokens, kinds or [TokenType.NORMAL] * len(tokens), strict=True):
        special = kind in (TokenType.CONTROL, TokenType.UNKNOWN, TokenType.UNUSED)
        if special or kind == TokenType.USER_DEFINED:
            added = AddedToken(token, normalized=False, special=special)
            (backend.add_special_tokens if special else backend.add_tokens)([added])
    return Tokenizer(str(backend.to_str()), _config(metadata, tokens))


def _backend(name: str, tokens: list[str], merges: list[str]) -> tokenizers.Tokenizer:
    vocab = {token: id for id, token in enumerate(tokens)}
    if len(vocab) != len(tokens):
        raise UserError("its tokenizer has a token twice; fetch the file again")
    pairs = []
    for merge in map(str, merges):
        left, space, right = merge.partition(" ")
        if not left or not space or not right or " " in right:
            raise UserError("its tokenizer has a merge that is not of two tokens; fetch the file again")
        pairs.append((left, right))
    try:
        model = models.BPE(vocab=vocab, merges=pairs, ignore_merges=name in _WHOLE_WORDS)
    except Exception as error:  # the library raises bare Exception
        raise UserError(f"its tokenizer contradicts itself ({error}); fetch the file again") from None
    backend = tokenizers.Tokenizer(model)
    if name in _COMPOSED:
        backend.normalizer = normalizers.NFC()
    splits = [pre_tokenizers.Split(Regex(rule), behavior="isolated") for rule in _RULES[name]]
    as_bytes = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.pre_tokenizer = pre_tokenizers.Sequence([*splits, as_bytes])
    backend.decoder = decoders.ByteLevel()
    return backend


def _config(metadata: Mapping[str, Any], tokens: list[str]) -> dict[str, Any]:
    """The content of a tokenizer_config.json."""
    config: dict[str, Any] = {"tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": False}
    for role, name in _ROLES.items():
        id = metadata.get(f"{_KEY}{role}_token_id")
        if isinstance(id, int) and 0 <= id < len(tokens):
            config[name] = tokens[id]
    if isinstance(metadata.get(_TEMPLATE), str):
        config["chat_template"] = metadata[_TEMPLATE]
    return config


def tokenizer_keys(tokenizer: Tokenizer, vocab_size: int) -> dict[str, Any]:
    """What a file says about a tokenizer.

    Args:
        tokenizer: any byte-level BPE.
        vocab_size: rows of the model's table; rows beyond the tokenizer's ids are called unused.

    Raises:
        UserError: it is not BPE, or cuts text in a way that has no name in llama.cpp.
    """
    spec = json.loads(tokenizer.spec)
    if spec["model"].get("type") != "BPE":
        raise UserError(f"the tokenizer is {spec['model'].get('type')}; llama.cpp's kind 'gpt2' is BPE")
    added = {row["id"]: row for row in spec["added_tokens"]}
    names = {id: token for token, id in spec["model"]["vocab"].items()} | {i: r["content"] for i, r in added.items()}
    kinds = {i: TokenType.CONTROL if row["special"] else TokenType.USER_DEFINED for i, row in added.items()}
    ids = range(vocab_size)
    keys: dict[str, Any] = {
        "model": "gpt2",
        "pre": _rule_name(spec),
        "tokens": [names.get(id, f"[PAD{id}]") for id in ids],
        "token_type": [int(kinds.get(i, TokenType.NORMAL) if i in names else TokenType.UNUSED) for i in ids],
        "merges": [m if isinstance(m, str) else " ".join(m) for m in spec["model"]["merges"]],
        "bos_token_id": tokenizer.bos,
        "eos_token_id": tokenizer.eos,
        "padding_token_id": tokenizer.pad,
        "add_bos_token": False,  # the template writes it where it belongs
        "add_space_prefix": False,
    }
    keys = {_KEY + key: value for key, value in keys.items()}
    template = tokenizer.config.get("chat_template")
    if isinstance(template, str):  # other readers of templates do not know transformers' markers
        keys[_TEMPLATE] = re.sub(r"\{%-?\s*(end)?generation\s*-?%\}", "", template)
    return keys


def _rule_name(spec: Mapping[str, Any]) -> str:
    """The name under which llama.cpp knows a tokenizer's rule; found by what it does, not by its spelling."""
    here = _cuts(spec["pre_tokenizer"])
    for name in _RULES:
        if _cuts(json.loads(_backend(name, ["a"], []).to_str())["pre_tokenizer"]) == here:
            return name
    patterns = json.dumps(spec["pre_tokenizer"])
    if any(json.dumps(split_pattern(run))[1:-1] in patterns for run in range(1, 65)):
        return _DANLU
    raise UserError("llama.cpp has no name for how this tokenizer cuts text before BPE; export the model as hf")


_PROBE = (
    "I'll say: it's 1234567 o'clock,\r\n\n  naïve café—DON'T!! \t x_y  a.b(c)  春眠不觉晓，处处闻啼鸟。カタカナ"
    " ひらがな 123元 don't  3.14\n\n\n   end   "
)


def _cuts(rule: Mapping[str, Any]) -> list[str]:
    backend = tokenizers.Tokenizer.from_str(json.dumps({**_EMPTY, "pre_tokenizer": rule}))
    pieces: Iterable[tuple[str, Any]] = backend.pre_tokenizer.pre_tokenize_str(_PROBE) if backend.pre_tokenizer else ()
    return [piece for piece, _ in pieces]


_EMPTY = json.loads(tokenizers.Tokenizer(models.BPE()).to_str())
