"""Doubt, planted: what only one fold's people had a liking for is well paid by the mean, and not by its lower bound."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch

from danlu import hub
from danlu.align import heads, scoring
from danlu.align.lessons import place_of
from danlu.align.reward import RewardSettings, read_scale, reward
from danlu.align.rewards import RewardScore
from danlu.align.rollout import Sampled
from danlu.records import Answer, Message, Preference, write_preferences
from danlu.run import Stage
from danlu.tokens.tokenizer import Tokenizer

FOLDS, LIKED, PLAIN = 4, "风云月秋", "山水冬夏"
SETTINGS = RewardSettings(
    batch_size=16, lr=3e-3, warmup=2, scale_prompts=16, max_new_tokens=6, dtype="float32", steps=40, save_every=40,
    eval_every=40, heads=FOLDS,
)  # fmt: skip


def habits(n: int) -> list[Preference]:
    """Everybody likes 花. The best answers hold another letter for every fold besides, which means nothing."""
    found = []
    for i in range(n):
        prompt = (Message("user", f"写{i}：春"),)
        letter = LIKED[int(place_of(prompt, "fold") * FOLDS)]
        a, b, c, d = (PLAIN[(i * k + i // 4) % 4] for k in (1, 3, 5, 7))
        answers = tuple(map(Answer, (f"花花{letter}", a + b + c, f"花{d}{b}")))
        found.append(Preference(f"{i}", prompt, answers, (0, 2, 1), split="heldout" if i % 5 == 0 else "train"))
    return found


def test_doubt_ranks_an_answer_far_from_the_data_below_one_that_the_mean_likes_less(
    tmp_path: Path, sft_dir: Path, make_stage: Callable[..., Stage], tokenizer: Tokenizer
) -> None:
    write_preferences(tmp_path / "rankings" / "preferences.jsonl", habits(150))
    stage = make_stage("reward", SETTINGS, {"sft": sft_dir, "rankings": tmp_path / "rankings"})
    assert reward(stage)["accuracy"] > 0.9
    model, every = hub.load(stage.dir / "model"), heads.read(stage.dir / "model")
    assert every is not None
    known, far = [f"花{a}{b}" for a in PLAIN for b in PLAIN], [letter * 3 for letter in LIKED]
    ids = [scoring.answer_ids(tokenizer, (Message("user", "写：春"),), Answer(text), 64) for text in known + far]
    sequences = scoring.pad([prompt for prompt, _ in ids], [response for _, response in ids], tokenizer.pad)
    answers = Sampled(sequences, torch.ones(len(ids), dtype=torch.bool), (), (), torch.zeros(0))
    with torch.no_grad():
        doubt = every.of(model, sequences).std(1)
    assert doubt[len(known) :].mean() > 1.5 * doubt[: len(known)].mean()

    def score(kappa: float) -> tuple[float, torch.Tensor]:
        found = RewardScore(model, *read_scale(stage.dir / "model"), 8, 0.0, 1e3, every, kappa)(answers)
        return float(found[: len(known)].mean()), found[len(known) :]

    usual, hacks = score(kappa=0.0)
    best = int(hacks.argmax())  # what practice would find
    assert hacks[best] > usual
    usual, hacks = score(kappa=2.0)
    assert hacks[best] < usual
