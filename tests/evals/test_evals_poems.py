"""The poem metric on poems whose answer a reader can check by eye."""

from __future__ import annotations

import pytest

from danlu.evals import poems
from danlu.evals.rhyme import GROUPS, rhyme_groups, rhymes

SPRING_DAWN = "春眠不觉晓，处处闻啼鸟。\n夜来风雨声，花落知多少。"
QUIET_NIGHT = "床前明月光，疑是地上霜。\n举头望明月，低头思故乡。"
RIVER_SNOW = "千山鸟飞绝，万径人踪灭。\n孤舟蓑笠翁，独钓寒江雪。"
MAPLE_BRIDGE = "月落乌啼霜满天，江枫渔火对愁眠。\n姑苏城外寒山寺，夜半钟声到客船。"
ASK_5 = "写一首题为《{}》的五言绝句。"
ASK_7 = "写一首题为《{}》的七言绝句。"


@pytest.mark.parametrize(
    ("ask", "title", "poem"),
    [
        (ASK_5, "春晓", SPRING_DAWN),
        (ASK_5, "静夜思", QUIET_NIGHT),
        (ASK_5, "江雪", RIVER_SNOW),
        (ASK_7, "枫桥夜泊", MAPLE_BRIDGE),
    ],
)
def test_the_classics_pass(ask: str, title: str, poem: str) -> None:
    judged = poems.score(ask.format(title), poem)
    assert (judged["form"], judged["rhyme"], judged["repetition"], judged["title"]) == (1, 1, 0, 1)
    assert judged["total"] == pytest.approx(2.1)


def test_three_times_the_moon_is_once_too_often() -> None:
    judged = poems.score(ASK_5.format("静夜思"), "床前明月光，疑是地上霜。举头望明月，低头思月乡。")
    assert judged["repetition"] == pytest.approx(1 / 20)
    assert judged["total"] == pytest.approx(2.1 - 5 / 20)


def test_reduplicated_words_and_repeated_lines() -> None:
    assert poems.repetition(["处处闻啼鸟", "处处是花香"]) == 0
    assert poems.repetition(["处处复处处", "处处是花香"]) == pytest.approx(1 / 10)
    assert poems.repetition(["春眠不觉晓", "处处闻啼鸟", "春眠不觉晓", "花落知多少"]) == pytest.approx(5 / 20)
    assert poems.repetition([]) == 0


@pytest.mark.parametrize(
    ("answer", "right"),
    [
        ("春眠不觉晓，处处闻啼鸟。夜来风雨声，花落知多", 3 / 4),  # last line one short
        ("春眠不觉晓，处处闻啼鸟。夜来风雨声。", 3 / 4),  # a line missing
        (SPRING_DAWN + "春眠不觉晓。", 4 / 5),  # a line too many
        (MAPLE_BRIDGE, 0.0),  # seven where five were asked for
        ("春眠不觉A，处处闻啼鸟。夜来风雨声，花落知多少。", 3 / 4),  # not a Chinese character
        ("", 0.0),
        ("，。，。", 0.0),
    ],
)
def test_wrong_form(answer: str, right: float) -> None:
    judged = poems.score(ASK_5.format("春晓"), answer)
    assert judged["lines_right"] == pytest.approx(right)
    assert judged["form"] == judged["rhyme"] == 0


def test_a_rhyme_needs_two_different_characters() -> None:
    same = "白日依山风，黄河入海东。欲穷千里目，更上一层东。"
    assert poems.score(ASK_5.format("登楼"), same)["rhyme"] == 0
    assert poems.score(ASK_5.format("登楼"), same[:-2] + "空。")["rhyme"] == 1


def test_continuations_are_judged_with_the_lines_that_were_given() -> None:
    rest = "处处闻啼鸟。\n夜来风雨声，花落知多少。"
    judged = poems.score("续写成一首五言绝句：春眠不觉晓，", rest)
    assert (judged["form"], judged["rhyme"]) == (1, 1)
    assert poems.score("续写成一首五言绝句：春眠不觉晓，", SPRING_DAWN)["form"] == 0  # the given line said again
    ending = poems.score("续写：春眠不觉晓，处处闻啼鸟。", "夜来风雨声，花落知多少。")
    assert (ending["form"], ending["rhyme"]) == (1, 1)
    assert poems.score("续写：春眠不觉晓，处处闻啼鸟。", "夜来风雨声，花落知多鸟。")["rhyme"] == 0
    seven = poems.score("续写：月落乌啼霜满天，江枫渔火对愁眠。", "姑苏城外寒山寺，夜半钟声到客船。")
    assert (seven["form"], seven["rhyme"]) == (1, 1)


def test_only_poem_requests_are_judged() -> None:
    assert poems.accepts(ASK_7.format("山行"))
    assert not poems.accepts("春眠不觉晓，处处闻啼鸟。这两句诗的作者是谁？")
    with pytest.raises(ValueError, match="not a poem request"):
        poems.score("你好", "春眠不觉晓")


def test_rhyme_groups() -> None:
    assert len(GROUPS) == 18
    assert len({final for finals in GROUPS.values() for final in finals}) == sum(map(len, GROUPS.values()))
    for character, group in zip("知日齐女月风东云儿", "支支齐鱼皆庚东痕儿", strict=True):
        assert group in rhyme_groups(character), character
    assert rhyme_groups("好") == rhyme_groups("鸟") == {"豪"}
    assert {"庚", "唐"} <= rhyme_groups("行")  # any reading counts
    assert rhyme_groups("A") == rhyme_groups("，") == frozenset()


def test_traditional_characters_rhyme_like_simplified_ones() -> None:
    assert rhymes(["東", "空"])
    assert rhymes(["鳥", "少"])
    assert not rhymes(["知", "齐"])  # both are written with i
    assert not rhymes(["鱼", "模"])
    assert not rhymes(["光", "光"])


ASK = "写一首题为《题》的五言绝句。"


def ending_on(second: str, fourth: str) -> tuple[str, str]:
    return ASK, f"一二三四五，一二三四{second}。\n一二三四五，一二三四{fourth}。"


def test_one_rhyme_for_everything_is_rhyme_by_chance() -> None:
    monotonous = [ending_on("尘", "春"), ending_on("新", "人"), ending_on("身", "真")]
    assert poems.across(monotonous)["rhyme_by_chance"] == 1.0
    fitted = [ending_on("尘", "春"), ending_on("流", "楼"), ending_on("光", "霜")]
    assert all(poems.score(*answered)["rhyme"] for answered in fitted)
    assert poems.across(fitted)["rhyme_by_chance"] == 0.0


def test_wrong_forms_count_as_no_rhyme_by_chance() -> None:
    answered = [ending_on("尘", "春"), ending_on("新", "人"), (ASK, "一二三"), (ASK, "")]
    assert poems.across(answered)["rhyme_by_chance"] == 0.5
    assert poems.across(answered[2:])["rhyme_by_chance"] == 0.0
    assert poems.across([])["rhyme_by_chance"] == 0.0
