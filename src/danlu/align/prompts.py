"""Prompts to practise on: where they come from, and what is kept away from them.

In:  the SFT stage's conversations, people's votes, a file of the user's, or what the SFT model asks by itself.
Out: prompts for training and prompts for looks from outside; how many were left out, and why.
Left out: what order they are drawn in (``rollout.Cursor``).

The looks always come from the SFT stage's held-out conversations. Prompts from anywhere else are sifted: said before,
unsafe by the rules of ``evals.hazards``, or near a held-out one, they are left out.
"""

from __future__ import annotations

import json
import sys
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from danlu.align.judgements import UNDECIDED, VOTES
from danlu.align.rollout import Prompt, fitting_prompts, gather_prompts
from danlu.errors import UserError, nearest
from danlu.evals.hazards import read_rules
from danlu.evals.judge import judge
from danlu.infer.generate import Sampler
from danlu.infer.sampler import Sampling
from danlu.records import Message, check_messages, parse_conversation, read_conversations, read_preferences
from danlu.run import Stage
from danlu.tokens import chat
from danlu.tokens.tokenizer import Tokenizer
from danlu.train.parallel import ALONE, World

MADE = ("sft", "votes", "self")
_GRAM = 3
_NEAR = 0.8
_SHOWN = 5

Turns = tuple[Message, ...]


def check_source(value: str) -> str:
    """The setting ``prompts`` if it is one that can be.

    Raises:
        ValueError: it is neither a known name nor a file's.
    """
    if value not in MADE and not Path(value).suffix:
        raise ValueError(f"unknown source '{value}'{nearest(value, MADE)}; or give a .jsonl or .txt file")
    return value


def file_of(source: str) -> dict[str, Path]:
    """The user's file among the sources, for the ``reads`` of a section."""
    return {} if source in MADE else {"prompts": Path(source)}


def gather(
    stage: Stage, source: str, judge_name: str, tokenizer: Tokenizer, longest: int, ask: Callable[[], Sequence[str]]
) -> tuple[list[Prompt], list[Prompt]]:
    """Prompts to practise on, and held-out ones to look at.

    Args:
        stage: with the input ``sft``, and ``votes`` outside if those are wanted.
        source: the setting ``prompts``.
        judge_name: judge; of what the SFT model knows and asks, only prompts that it can judge are practised on.
        tokenizer: the models'.
        longest: tokens of a prompt, so that an answer fits too.
        ask: lets the SFT model ask.

    Raises:
        UserError: nothing to practise on, nothing held out, or no votes where they are wanted.
    """
    accepts, folder = judge(judge_name).accepts, stage.inputs["sft"] / "conversations"
    heldout = gather_prompts(read_conversations(folder / "heldout.jsonl")[0], tokenizer, accepts, longest)
    if source == "sft":
        every = gather_prompts(read_conversations(folder / "train.jsonl")[0], tokenizer, accepts, sys.maxsize)
        train = [prompt for prompt in every if len(prompt.ids) <= longest]
        left = {"too long": len(every) - len(train)}
    else:
        found, apart, left = _found(stage, source, accepts, ask)
        kept, why = sift(found, [*apart, *(prompt.text for prompt in heldout)])
        train = list(fitting_prompts(kept, tokenizer, longest))
        left = {**left, **why, "too long": len(kept) - len(train)}
    told = ", ".join(f"{count} {reason}" for reason, count in left.items() if count)
    if source != "sft" or told:
        stage.console.say(f"{stage.name} practises on {len(train)} prompts from {source}; left out: {told or 'none'}")
    if not train or not heldout:
        raise UserError(
            f"{stage.name} has {len(train)} prompts to practise on and {len(heldout)} to watch of at most "
            f"{longest} tokens that the judge '{judge_name}' can judge; it needs at least one of each"
        )
    return train, heldout


def sift(found: Iterable[Turns], apart: Iterable[str]) -> tuple[list[Turns], dict[str, int]]:
    """The prompts that are new, safe and not near one of ``apart``, in order; and how many were not, by reason.

    Near is a Jaccard similarity of at least 0.8 of the sets of three letters in a row that two texts hold.
    """
    rules, near = read_rules(), _Near(apart)
    kept: dict[Turns, None] = {}
    left: Counter[str] = Counter()
    for turns in found:
        if turns in kept:
            left["said before"] += 1
        elif rules.scan("\n".join(m.content for m in turns if m.role == "user"), "prompt"):
            left["unsafe"] += 1
        elif near.holds(turns[-1].content):
            left["near held-out ones"] += 1
        else:
            kept[turns] = None
    return list(kept), dict(left)


def read_prompts(path: Path) -> tuple[list[Turns], list[str]]:
    """Prompts of a file: one a line, or JSONL with ``prompt`` (text or messages) or a conversation, whose last answer
    is left away.

    Returns:
        The prompts, and a sentence per line that could not be read.

    Raises:
        UserError: there is no such file.
    """
    if not path.is_file():
        raise UserError(f"no file of prompts at {path}")
    good: list[Turns] = []
    bad: list[str] = []
    for number, line in enumerate(path.read_bytes().splitlines(), 1):
        if not line.strip():
            continue
        try:  # with or without a byte order mark; bytes in another encoding are a bad line and not practised on
            text = line.decode("utf-8-sig")
            good.append(_turns(json.loads(text) if path.suffix == ".jsonl" else text.strip()))
        except (ValueError, TypeError, LookupError, AttributeError) as error:
            bad.append(f"{path}:{number}: {error}")
    return good, bad


def asked_by(
    sampler: Sampler, tokenizer: Tokenizer, seeds: Sequence[int], longest: int, world: World = ALONE
) -> list[str]:
    """What a chat model says when it is given the user's turn and nothing else (Magpie, Xu et al., arXiv 2406.08464).

    Args:
        sampler: of the model.
        tokenizer: its.
        seeds: one per question.
        longest: tokens of a question.
        world: the processes that want them; the first asks, since no prompt may be another one for another process.

    Returns:
        The questions, in order; empty where none came to an end.
    """
    asked: list[str] = world.told(_asked(sampler, tokenizer, seeds, longest) if world.main else None)
    return asked


def _asked(sampler: Sampler, tokenizer: Tokenizer, seeds: Sequence[int], longest: int) -> list[str]:
    opening = chat.encode_opening(tokenizer, "user")
    said = sampler.generate([opening] * len(seeds), Sampling(max_new_tokens=longest), seeds)
    return [each.text.strip() if each.finish_reason == "stop" else "" for each in said]


def _found(
    stage: Stage, source: str, accepts: Callable[[str], bool], ask: Callable[[], Sequence[str]]
) -> tuple[list[Turns], list[str], dict[str, int]]:
    """Prompts as they come, further texts to keep apart from them, and how many were none, by reason."""
    if source == "self":
        asked = ask()
        whole = [text for text in asked if text]
        fitting: list[Turns] = [(Message("user", text),) for text in whole if accepts(text)]
        left = {"without an end": len(asked) - len(whole), "of another kind": len(whole) - len(fitting)}
        return fitting, [], left
    if source == "votes":
        frozen = [stage.outside[kind] for kind in (VOTES, UNDECIDED) if kind in stage.outside]
        if not frozen:
            raise UserError(f"{stage.name}.prompts=votes needs votes, and there are none yet; vote in the chat page")
        voted = [vote for file in frozen for vote in read_preferences(file)]
        apart = [p.prompt[-1].content for p in voted if p.split != "train"]
        return [p.prompt for p in voted if p.split == "train"], apart, {}
    good, bad = read_prompts(Path(source))
    for problem in bad[:_SHOWN]:
        stage.console.say(f"left out: {problem}")
    return good, [], {"unreadable": len(bad)}


def _turns(said: Any) -> Turns:
    """A line's prompt.

    Raises:
        ValueError: it is none.
    """
    prompt = said.get("prompt") if isinstance(said, dict) else said
    if isinstance(prompt, str):
        return check_messages([Message("user", prompt)], answered=False)
    if isinstance(prompt, list):
        if not all(isinstance(m["content"], str) for m in prompt):
            raise ValueError("the content of a turn must be text")
        return check_messages([Message(m["role"], m["content"]) for m in prompt], answered=False)
    if "messages" in said and said["messages"][-1]["role"] == "user":
        return _turns({"prompt": said["messages"]})
    return parse_conversation(said, "").messages[:-1]


class _Near:
    """Texts, found again by what nearly equals them."""

    def __init__(self, texts: Iterable[str]) -> None:
        self._holders: dict[str, list[int]] = {}
        sizes = []
        for number, grams in enumerate(map(_grams, texts)):
            sizes.append(len(grams))
            for gram in grams:
                self._holders.setdefault(gram, []).append(number)
        self._sizes = np.array(sizes, dtype=np.int64)

    def holds(self, text: str) -> bool:
        """Whether one of the texts is near this one."""
        grams = _grams(text)
        holders = [self._holders[gram] for gram in grams if gram in self._holders]
        if not holders:
            return False
        shared = np.bincount(np.concatenate(holders), minlength=len(self._sizes))
        return bool((shared >= _NEAR * (len(grams) + self._sizes - shared)).any())


def _grams(text: str) -> set[str]:
    """Every three letters in a row; a shorter text as a whole."""
    letters = "".join(filter(str.isalnum, unicodedata.normalize("NFKC", text).casefold()))
    return {letters[i : i + _GRAM] for i in range(max(1, len(letters) - _GRAM + 1))}
