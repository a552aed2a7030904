"""The simulated human: mixed candidates, a mood, ties, a split that does not leak."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from danlu.align.preferences import split_of
from danlu.align.rankings import RankingsSettings, last_line, rank, rankings, swap_last_line
from danlu.errors import UserError
from danlu.evals.judge import judge
from danlu.records import Conversation, Message, read_conversations, read_preferences, write_conversations
from danlu.run import Stage

POEM = "床前明月光，疑是地上霜。\n举头望明月，低头思故乡。"


def test_the_last_line_is_swapped_and_nothing_else() -> None:
    assert swap_last_line(POEM, "白云生远山") == "床前明月光，疑是地上霜。\n举头望明月，白云生远山。"
    assert swap_last_line(POEM, "低头思故乡") is None
    assert swap_last_line(POEM, "六个字的一行") is None
    assert swap_last_line("no Han here", "春") is None


def test_ranks_follow_scores_without_mood_and_near_ones_tie() -> None:
    assert rank([0.2, 0.9, 0.5], noise=0.0, tie_width=0.0, seed=1) == (2, 0, 1)
    assert rank([0.51, 0.9, 0.49], noise=0.0, tie_width=0.1, seed=1) == (1, 0, 1)


def test_mood_errs_as_often_as_its_deviation_says() -> None:
    errors = np.mean([rank([0.0, 0.4], noise=0.4, tie_width=0.0, seed=seed) == (0, 1) for seed in range(2000)])
    assert errors == pytest.approx(0.24, abs=0.03)  # P(N(0, 0.4 sqrt 2) > 0.4)
    assert rank([0.0, 0.1], 0.5, 0.0, seed=3) == rank([0.0, 0.1], 0.5, 0.0, seed=3)


@pytest.fixture
def poems_dir(sft_dir: Path) -> Path:
    """Conversations about poems that really exist, three tasks to a poem."""
    poems = [
        ("春眠不觉晓", "处处闻啼鸟", "夜来风雨声", "花落知多少"),
        ("白日依山尽", "黄河入海流", "欲穷千里目", "更上一层楼"),
        ("千山鸟飞绝", "万径人踪灭", "孤舟蓑笠翁", "独钓寒江雪"),
        ("红豆生南国", "春来发几枝", "愿君多采撷", "此物最相思"),
    ]
    tasks = []
    for a, b, c, d in poems:
        for asked, answer in (
            (f"续写：{a}，{b}。", f"{c}，{d}。"),
            (f"续写成一首五言绝句：{a}，", f"{b}。\n{c}，{d}。"),
            (f"{a}，{b}。这两句诗的作者是谁？", "某人"),
        ):
            tasks.append(Conversation((Message("user", asked), Message("assistant", answer)), "test"))
    write_conversations(sft_dir / "conversations" / "train.jsonl", tasks)
    return sft_dir


def test_the_stage_ranks_both_kinds_once_per_poem(poems_dir: Path, make_stage: Callable[..., Stage]) -> None:
    settings = RankingsSettings(
        judge="poems", prompts=10, endings=30, noise=0.0, tie_width=0.01, max_new_tokens=8, dtype="float32"
    )
    stage = make_stage("rankings", settings, {"sft": poems_dir})
    figures = rankings(stage)
    made = read_preferences(stage.dir / "preferences.jsonl")
    assert len(made) == figures["comparisons"] == 4  # one per poem, none for the question about the author
    assert figures["agreement"] == 1.0
    critic = judge("poems")
    for preference in made:
        assert preference.split == split_of(preference.prompt)
        origins = {answer.model for answer in preference.answers}
        assert origins == {"swap"} or "corpus" in origins
        assert ("swap" in origins) != bool([answer for answer in preference.answers if answer.token_ids])
        scores = [critic.score(preference.prompt[-1].content, a.text)["total"] for a in preference.answers]
        assert all(scores[i] > scores[j] for i, j in preference.pairs())
        for answer in preference.answers:
            if answer.token_ids:
                assert answer.sampling["temperature"] in (0.7, 1.0)
                assert answer.sampling["tokenizer"]
    means = figures["judge_by_origin"]
    assert means["person"] >= means["swap"] > means["sample"]


def test_where_none_is_wanted_none_is_made(tmp_path: Path, make_stage: Callable[..., Stage]) -> None:
    stage = make_stage("rankings", RankingsSettings(prompts=0), {"sft": tmp_path / "no model is read"})
    figures = rankings(stage)
    assert (figures["comparisons"], figures["pairs"], figures["agreement"]) == (0, 0, None)
    assert read_preferences(stage.dir / "preferences.jsonl") == []


def test_of_the_tries_the_best_and_the_worst_are_ranked(poems_dir: Path, make_stage: Callable[..., Stage]) -> None:
    settings = RankingsSettings(
        judge="poems", prompts=17, endings=33, swaps=2, tries=40, noise=0.0, max_new_tokens=8, dtype="float32"
    )
    stage = make_stage("rankings", settings, {"sft": poems_dir})
    rankings(stage)
    conversations, _ = read_conversations(poems_dir / "conversations" / "train.jsonl")
    critic = judge("poems")
    made = [p for p in read_preferences(stage.dir / "preferences.jsonl") if p.answers[0].model == "swap"]
    assert len(made) == 3  # the fourth poem went to the other kind
    written = {c.messages[:-1]: c.messages[-1].content for c in conversations}
    lines = [last_line(written[preference.prompt]) for preference in made]
    for preference in made:
        asked, own = preference.prompt[-1].content, written[preference.prompt]
        copies = [text for text in (swap_last_line(own, line) for line in lines) if text]
        totals = sorted(critic.score(asked, text)["total"] for text in copies)
        shown = sorted(critic.score(asked, answer.text)["total"] for answer in preference.answers)
        assert shown == [totals[0], totals[-1]]


def test_a_prompt_that_leaves_no_room_for_an_answer_is_passed_over(
    poems_dir: Path, make_stage: Callable[..., Stage]
) -> None:
    path = poems_dir / "conversations" / "train.jsonl"
    conversations, _ = read_conversations(path)
    long = Message("user", f"写一首题为《{'春' * 60}》的五言绝句。")
    write_conversations(path, [Conversation((long, Message("assistant", POEM)), "test"), *conversations])
    settings = RankingsSettings(judge="poems", prompts=10, max_new_tokens=8, dtype="float32")
    stage = make_stage("rankings", settings, {"sft": poems_dir})
    assert rankings(stage)["comparisons"] == 4
    write_conversations(path, [Conversation((long, Message("assistant", POEM)), "test")])
    with pytest.raises(UserError, match="no prompt of at most 56 tokens"):
        rankings(stage)


def test_endings_need_poems(poems_dir: Path, make_stage: Callable[..., Stage]) -> None:
    settings = RankingsSettings(judge="prose", prompts=1, endings=1, dtype="float32")
    with pytest.raises(UserError, match="last lines of poems"):
        rankings(make_stage("rankings", settings, {"sft": poems_dir}))


def test_the_stage_gives_the_same_bytes_again(poems_dir: Path, make_stage: Callable[..., Stage]) -> None:
    settings = RankingsSettings(judge="poems", prompts=10, endings=30, max_new_tokens=8, dtype="float32")
    contents = []
    for folder in ("one", "two"):
        stage = make_stage("rankings", settings, {"sft": poems_dir}, folder=folder)
        rankings(stage)
        contents.append((stage.dir / "preferences.jsonl").read_bytes())
    assert contents[0] == contents[1]


def test_a_judge_that_can_judge_no_prompt_is_named(sft_dir: Path, make_stage: Callable[..., Stage]) -> None:
    settings = RankingsSettings(judge="poems", prompts=1, dtype="float32")
    with pytest.raises(UserError, match="judge 'poems' can judge"):
        rankings(make_stage("rankings", settings, {"sft": sft_dir}))
