"""Planted loops are cut, healthy text is not touched, and nothing depends on how an answer came in pieces."""

from __future__ import annotations

import asyncio
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from danlu.infer import Completion, Token
from danlu.serve.jobs import Finished, Piece
from danlu.serve.repair import REPETITION, Repairer, repaired

PARAGRAPH = (
    "The moon rises over the river, and nobody is there to see it but the heron and the reeds. "
    "A boat passes; its lantern is out.\n\n"
)
LOOPS = {
    "a sentence": ("I do not know. ", "I do not know. " * 40),
    "a Chinese clause": ("春眠不觉晓，", "处处闻啼鸟。" + "春眠不觉晓，" * 40),
    "one character": ("哈", "好" + "哈" * 90),
    "a word": ("the ", "It was the " + "the " * 60),
    "a verse": ("白日依山尽，黄河入海流。\n", "登鹳雀楼\n" + "白日依山尽，黄河入海流。\n" * 20),
    "a paragraph": (PARAGRAPH, "Once.\n\n" + PARAGRAPH * 6),
    "a list item": ("- Drink more water\n", "Advice:\n" + "- Drink more water\n" * 30),
}
HEALTHY = {
    "a poem with a refrain": "阳关三叠\n"
    + "渭城朝雨浥轻尘，\n客舍青青柳色新。\n劝君更尽一杯酒，\n西出阳关无故人。\n" * 3,
    "a song": ("Row, row, row your boat,\nGently down the stream.\n" + "Merrily, merrily, merrily, merrily,\n") * 3,
    "laughter": "哈哈哈哈哈哈哈哈！Ha ha ha ha ha, that is so so so funny!!!!!!!!!!",
    "a table": "| a | b | c |\n|---|---|---|\n" + "| 0 | 0 | 0 |\n" * 60 + "that was it",
    "a ruler": "Title\n" + "=" * 120 + "\n" + "-" * 200 + "\ntext",
    "a matrix": "[\n" + "  [0, 0, 0, 0, 0, 0, 0, 0],\n" * 16 + "]",
    "code": "Here:\n```c\nstatic char zeros[] = {" + "0x00, " * 255 + "0x00};\n" + "    NOP();\n" * 30 + "```\nDone.",
    "closing tags": "```html\n" + "</div>\n" * 24 + "```",
    "indented code": "def f():\n    if x:\n        return 1\n\n\n    return 2",
    "a Chinese paragraph": "　　从前有一座山，山里有一座庙。\n　　庙里有个老和尚。",
    "a hard break": "first line  \nsecond line",
    "JSON": '{"rows": [' + '{"a": null, "b": null}, ' * 6 + '{"a": 1}]}',
    "counting": ", ".join(map(str, range(300))),
}


def repair(text: str, cuts: int | None = None) -> tuple[str, bool]:
    repairer, rng, shown, place = Repairer(), random.Random(cuts), "", 0
    while place < len(text):
        n = len(text) if cuts is None else rng.randint(1, 9)
        shown += repairer.feed(text[place : place + n])
        place += n
    shown += repairer.finish()
    assert shown == repairer.text, "what was streamed is not what is kept"
    return shown, repairer.cut


@pytest.mark.parametrize("name", LOOPS)
def test_a_loop_is_cut(name):
    block, text = LOOPS[name]
    shown, cut = repair(text)
    assert cut
    assert text.startswith(shown)
    assert shown.count(block.strip()) <= 9, "the loop is still there"
    assert len(shown) < len(text) / 2
    assert [repair(text, cuts) for cuts in range(5)] == [(shown, cut)] * 5


@pytest.mark.parametrize("name", HEALTHY)
def test_healthy_text_is_not_touched(name):
    text = HEALTHY[name]
    assert repair(text) == (text.rstrip(" \n"), False)
    assert repair(text, 3) == (text.rstrip(" \n"), False)


@given(st.text(alphabet="ab春\n `|.", max_size=200), st.integers(0, 1000))
@settings(max_examples=60, deadline=None)
def test_pieces_make_no_difference(text, cuts):
    assert repair(text, cuts) == repair(text)


def test_blank_space_is_tidied():
    assert repair("\n\n Hello.\n\n\n\n\n\nAgain. \n\n")[0] == "Hello.\n\n\nAgain."
    assert repair("```\na\n\n\n\n\n\nb\n```\n")[0] == "```\na\n\n\n\n\n\nb\n```", "code is not prose"
    assert repair("    code\n")[0] == "    code"
    assert repair(" \n \n") == ("", False)


class Written:
    """What ``repaired`` needs of answers: how many there are, and a way to stop them."""

    def __init__(self, n: int) -> None:
        self.jobs, self.cancelled = [None] * n, False

    def cancel(self) -> None:
        self.cancelled = True


def told(answers: Written, *events) -> list:
    async def source():
        for event in events:
            if answers.cancelled:
                return
            yield event

    async def gathered():
        return [event async for event in repaired(source(), answers)]

    return asyncio.run(gathered())


def test_a_cut_answer_ends_there_and_its_neighbour_goes_on():
    answers = Written(2)
    loop = [Piece(0, "again and ", (Token(i, -1.0),)) for i in range(40)]
    whole = Completion((7, 8), "fine", (-1.0, -1.0), "stop")
    events = told(answers, *loop[:20], Piece(1, "fine", (Token(7, -1.0),)), *loop[20:], Finished(1, whole))
    ends = {event.index: event.completion for event in events if isinstance(event, Finished)}
    assert ends[1] == whole
    assert ends[0].finish_reason == REPETITION
    assert ends[0].text == "".join(e.text for e in events if isinstance(e, Piece) and e.index == 0)
    assert 10 <= len(ends[0].tokens) < 20, "tokens after the cut are no part of the answer"


def test_nothing_more_is_written_once_all_are_cut():
    answers = Written(1)
    events = told(answers, *(Piece(0, "哈", (Token(1, 0.0),)) for _ in range(500)))
    assert answers.cancelled
    assert isinstance(events[-1], Finished)
