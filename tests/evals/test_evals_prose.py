"""The prose metric prefers what a reader would prefer, and judges are found by name."""

from __future__ import annotations

import pytest

from danlu.errors import UserError
from danlu.evals import judge, prose

ASK = "Tell a story about a fox."
GOOD = "A small fox lived near the river. One day it met an old crow and they became friends."


def test_a_whole_story_is_sound() -> None:
    judged = prose.score(ASK, GOOD)
    assert (judged["ended"], judged["length_right"], judged["language"], judged["sound"]) == (1, 1, 1, 1)
    assert judged["total"] == pytest.approx(3)


@pytest.mark.parametrize(
    ("answer", "component"),
    [
        (GOOD[:-1], "ended"),
        ("A fox.", "length_right"),
        ("从前有一只小狐狸住在河边的树林里。", "language"),
        ("the fox ran and " * 20 + "slept.", "repetition"),
        ("", "ended"),
    ],
)
def test_faults_lower_the_total_and_are_named(answer: str, component: str) -> None:
    good, bad = prose.score(ASK, GOOD), prose.score(ASK, answer)
    assert bad["total"] < good["total"]
    assert bad["sound"] == 0
    assert bad[component] != good[component]


def test_chinese_is_judged_by_characters() -> None:
    judged = prose.score("讲一个狐狸的故事。", "从前有一只小狐狸住在河边的树林里。有一天它遇见了乌鸦，成了朋友！”")
    assert judged["sound"] == 1
    assert prose.score("讲一个狐狸的故事。", "好。")["length_right"] == pytest.approx(1 / 8)


def test_saying_the_prompt_again_is_an_echo() -> None:
    assert prose.score(ASK, "Tell a story about a fox.")["echo"] == 1
    assert prose.score(ASK, GOOD)["echo"] == 0


def test_judges_by_name() -> None:
    assert judge("poems").accepts("写一首题为《春晓》的五言绝句。")
    assert not judge("poems").accepts(ASK)
    assert judge("prose").accepts(ASK)
    with pytest.raises(UserError, match="did you mean 'poems'"):
        judge("poem")
