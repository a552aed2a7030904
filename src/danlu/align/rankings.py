"""Stage ``rankings``: a simulated human ranks answers of mixed origins, so that a reward model can be trained at once.

In:  the SFT model and the prompts it was trained on; a judge that plays the human.
Out: ``preferences.jsonl``: comparisons of two kinds, ranked by the judge's score as a fallible person would see it;
an empty one where no ranking is wanted.
Left out: real people. Their votes come from the preference store and meet these rankings in the reward stage.

One kind holds the person's own answer and samples of the model. Alone it would teach to tell a machine's writing from a
person's. The other kind, for poems, holds copies of the person's answer with other last lines: real verse throughout,
different in little but rhyme, so it teaches what to look for. The person's own last line is not among them; it would be
known by its sense. This kind costs no sampling, and as its answers begin alike, little to learn from (``comparisons``).
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
from pydantic import Field

from danlu import hub
from danlu.align.preferences import split_of
from danlu.corpus.langid import HAN
from danlu.device import ComputeSettings
from danlu.errors import UserError
from danlu.evals.judge import Judge, judge
from danlu.infer.generate import Generator
from danlu.infer.sampler import Sampling
from danlu.records import Answer, Conversation, Preference, read_conversations, write_preferences
from danlu.run import Stage
from danlu.streams import stream_seed
from danlu.tokens import chat
from danlu.tokens.tokenizer import Tokenizer

_LAST_LINE = re.compile(f"({HAN}+)[^{HAN[1:-1]}]*$")


class RankingsSettings(ComputeSettings):
    """The section ``rankings``."""

    judge: str = "prose"
    """Who plays the human: "poems" or "prose"."""
    prompts: int = Field(3000, ge=0)
    """Prompts to rank samples for; 0, and 0 ``endings``, where people's votes alone are to teach."""
    temperatures: tuple[float, ...] = (0.7, 1.0)
    """One sample of the SFT model per prompt and entry, at that temperature."""
    endings: int = Field(0, ge=0)
    """Further prompts, to rank copies of the person's poem with other last lines; judge "poems" only."""
    swaps: int = Field(8, ge=2)
    """Such copies in a comparison: half of them the judge's best and half its worst."""
    tries: int = Field(40, ge=2)
    """Copies from which those are chosen."""
    noise: float = 0.2
    """Standard deviation of the human's mood, in units of the judge's total."""
    tie_width: float = 0.1
    """Answers whose scores fall into one step of this width tie."""
    max_new_tokens: int = 48
    """Where a sample is cut off."""


@dataclass(frozen=True)
class Candidate:
    """An answer to be ranked: where it comes from ("person", "swap", "sample") and the judge's true score."""

    origin: str
    answer: Answer
    score: float


def rankings(stage: Stage) -> dict[str, Any]:
    """Make ``preferences.jsonl``.

    Returns:
        How many comparisons and pairs, the share of pairs that the noisy human ranks as the judge would, and the
        judge's mean score by origin.
    """
    settings = cast(RankingsSettings, stage.settings)
    human = judge(settings.judge)
    if settings.endings and settings.judge != "poems":
        raise UserError(f"rankings.endings ranks last lines of poems; with rankings.judge={settings.judge} set it to 0")
    if not settings.prompts + settings.endings:
        return _kept(stage, [], [])
    place = settings.machine()
    folder = stage.inputs["sft"] / "model"
    model, tokenizer = hub.load_pretrained(folder)
    longest = model.config.max_seq_len - settings.max_new_tokens
    chosen = _choose(stage, settings, human, tokenizer, longest)
    cut = round(len(chosen) * settings.prompts / (settings.prompts + settings.endings))
    generator = Generator(model.to(place.kind), tokenizer, place.compute_dtype)
    pools = _sample(stage, settings, human, chosen[:cut], generator, hub.model_hash(folder))
    pools += _swap(stage, settings, human, chosen[cut:])
    preferences, kept = [], []
    for index, (conversation, pool) in enumerate(zip(chosen, pools, strict=True)):
        different = list({candidate.answer.text: candidate for candidate in pool}.values())
        if len(different) > 1:
            preferences.append(_rank(conversation, different, settings, stage.seed, index))
            kept.append(different)
    return _kept(stage, preferences, kept)


def last_line(text: str) -> str:
    """The last run of Han characters of a text; the text itself if it has none."""
    found = _LAST_LINE.search(text)
    return found[1] if found else text


def swap_last_line(text: str, line: str) -> str | None:
    """``text`` with its last run of Han characters replaced by ``line``; None if lengths differ or nothing changes."""
    found = _LAST_LINE.search(text)
    if found is None or len(found[1]) != len(line) or found[1] == line:
        return None
    return text[: found.start(1)] + line + text[found.end(1) :]


def rank(scores: Sequence[float], noise: float, tie_width: float, seed: int) -> tuple[int, ...]:
    """Ranks of scores as seen through Gaussian noise, 0 the best; scores in one step of ``tie_width`` tie."""
    seen = np.asarray(scores) + noise * np.random.default_rng(seed).standard_normal(len(scores))
    steps = np.round(seen / tie_width) if tie_width else seen
    order = {step: place for place, step in enumerate(sorted(set(steps.tolist()), reverse=True))}
    return tuple(order[step] for step in steps.tolist())


def _choose(
    stage: Stage, settings: RankingsSettings, human: Judge, tokenizer: Tokenizer, longest: int
) -> list[Conversation]:
    """Training conversations that the judge can judge, one per last line of an answer, in a seeded order.

    Prompts of more than ``longest`` tokens leave no room for an answer and are passed over.
    """
    conversations, _ = read_conversations(stage.inputs["sft"] / "conversations" / "train.jsonl")
    fitting = [c for c in conversations if human.accepts(c.messages[-2].content)]
    order = np.random.default_rng(stream_seed(stage.seed, stage.name, "prompts")).permutation(len(fitting))
    chosen: dict[str, Conversation] = {}
    for index in order:
        # Tasks made from one poem share its last line; of those only one is taken, or the held-out split would leak.
        line = last_line(_text(fitting[index]))
        if line not in chosen and any(chat.encode_fitting(tokenizer, [fitting[index].messages[:-1]], longest)):
            chosen[line] = fitting[index]
        if len(chosen) == settings.prompts + settings.endings:
            break
    if not chosen:
        raise UserError(
            f"no prompt of at most {longest} tokens that the judge '{human.name}' can judge is among the conversations "
            "of sft; set judge in rankings, ppo, compress and eval to one that can, or max_new_tokens to fewer"
        )
    return list(chosen.values())


def _sample(
    stage: Stage,
    settings: RankingsSettings,
    human: Judge,
    conversations: Sequence[Conversation],
    generator: Generator,
    name: str,
) -> list[list[Candidate]]:
    """The person's answer and samples of the model called ``name``, one per temperature, for every prompt."""
    tokenizer = generator.tokenizer
    prompts = [chat.encode_prompt(tokenizer, c.messages[:-1]) for c in conversations]
    pools = [[_candidate(human, c, "person", Answer(_text(c), model="corpus"))] for c in conversations]
    for place, temperature in enumerate(settings.temperatures):
        seeds = [stream_seed(stage.seed, stage.name, place, index) for index in range(len(prompts))]
        sampling = Sampling(temperature=temperature, max_new_tokens=settings.max_new_tokens)
        noted = {"temperature": temperature, "max_new_tokens": settings.max_new_tokens, "tokenizer": tokenizer.hash}
        with stage.console.task(f"sample at {temperature}", len(prompts), "answers") as task:
            samples = generator.generate(prompts, sampling, seeds, told=task.advance)
        for pool, conversation, seed, done in zip(pools, conversations, seeds, samples, strict=True):
            pool.append(_candidate(human, conversation, "sample", Answer(done.text, done.tokens, name, noted, seed)))
    return pools


def _swap(
    stage: Stage, settings: RankingsSettings, human: Judge, conversations: Sequence[Conversation]
) -> list[list[Candidate]]:
    """For every poem the best and the worst of some copies with the last line of another poem of equal length."""
    lines: dict[int, list[str]] = {}
    for conversation in conversations:
        line = last_line(_text(conversation))
        lines.setdefault(len(line), []).append(line)
    pools = []
    with stage.console.task("swap last lines", len(conversations), "poems") as task:
        for index, conversation in enumerate(conversations):
            text = _text(conversation)
            others = lines[len(last_line(text))]
            draw = np.random.default_rng(stream_seed(stage.seed, "swap", index))
            drawn = draw.integers(len(others), size=settings.tries)
            texts = dict.fromkeys(swap_last_line(text, others[place]) for place in drawn)
            found = [_candidate(human, conversation, "swap", Answer(t, model="swap")) for t in texts if t is not None]
            found.sort(key=lambda candidate: -candidate.score)
            best = min(settings.swaps, len(found)) // 2
            pools.append([*found[:best], *found[max(best, len(found) - settings.swaps + best) :]])
            task.advance(1)
    return pools


def _candidate(human: Judge, conversation: Conversation, origin: str, answer: Answer) -> Candidate:
    return Candidate(origin, answer, human.score(conversation.messages[-2].content, answer.text)["total"])


def _rank(
    conversation: Conversation, pool: Sequence[Candidate], settings: RankingsSettings, seed: int, index: int
) -> Preference:
    ranks = rank([c.score for c in pool], settings.noise, settings.tie_width, stream_seed(seed, "mood", index))
    prompt = conversation.messages[:-1]
    return Preference(
        id=f"simulated-{index:06d}", prompt=prompt, answers=tuple(c.answer for c in pool), ranks=ranks,
        rater=f"judge:{settings.judge}", display_order=tuple(range(len(pool))), split=split_of(prompt),
    )  # fmt: skip


def _kept(stage: Stage, preferences: Sequence[Preference], pools: Sequence[Sequence[Candidate]]) -> dict[str, Any]:
    """Write the rankings down; returns figures of them."""
    write_preferences(stage.dir / "preferences.jsonl", preferences)
    agreed, by_origin = [], dict[str, list[float]]()
    for preference, pool in zip(preferences, pools, strict=True):
        agreed += [_order(pool[i].score, pool[j].score) for i, j in preference.pairs()]
        for candidate in pool:
            by_origin.setdefault(candidate.origin, []).append(candidate.score)
    means: Mapping[str, float] = {origin: round(float(np.mean(scores)), 4) for origin, scores in by_origin.items()}
    return {
        "comparisons": len(preferences),
        "answers": sum(len(pool) for pool in pools),
        "pairs": len(agreed),
        "heldout": sum(preference.split == "heldout" for preference in preferences),
        "agreement": round(float(np.mean(agreed)), 4) if agreed else None,
        "judge_by_origin": means,
    }


def _order(better: float, worse: float) -> float:
    """1 if the judge agrees that the first is better, 0 if not, a half if the judge sees no difference."""
    return 0.5 + 0.5 * float(np.sign(better - worse))


def _text(conversation: Conversation) -> str:
    return conversation.messages[-1].content
