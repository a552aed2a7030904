import pytest

from danlu.records import Document
from danlu.train.continuations import prose_tasks
from danlu.train.instructions import (
    PoemMix,
    PoemRequest,
    compile_rhymes,
    parse_request,
    poem_tasks,
    regular_verse,
    write_lines,
)
from danlu.train.rhymebook import RhymeBook

VERSE = "春眠不觉晓，处处闻啼鸟。\n夜来风雨声，花落知多少？"
SPRING = Document("d1", f"春晓\n孟浩然\n{VERSE}", "test", "zh", "", {"title": "春晓", "author": "孟浩然"})
ALL = PoemMix(title=1, style=1, line=1, couplet=1, author=1, rhyme=1, rhymed=1)
BOOK = RhymeBook()
BOOK.add("鸟少")
GOLDEN = {
    "title": ("写一首题为《春晓》的五言绝句。", "春眠不觉晓，处处闻啼鸟。\n夜来风雨声，花落知多少。"),
    "style": ("模仿孟浩然，写一首题为《春晓》的五言绝句。", "春眠不觉晓，处处闻啼鸟。\n夜来风雨声，花落知多少。"),
    "line": ("续写成一首五言绝句：春眠不觉晓，", "处处闻啼鸟。\n夜来风雨声，花落知多少。"),
    "couplet": ("续写：春眠不觉晓，处处闻啼鸟。", "夜来风雨声，花落知多少。"),
    "author": ("春眠不觉晓，处处闻啼鸟。这两句诗的作者是谁？", "孟浩然"),
    "rhyme": ("押“鸟”韵的字。", "少"),
    "rhymed": ("写一首题为《春晓》的五言绝句，押“鸟”韵。", "春眠不觉晓，处处闻啼鸟。\n夜来风雨声，花落知多少。"),
}


def poem(text, title="题", author="李白", id="x"):
    return Document(id, text, "test", "zh", "", {"title": title, "author": author})


def test_golden_table_of_poem_tasks():
    found = {c.source: tuple(m.content for m in c.messages) for c in poem_tasks(SPRING, ALL, BOOK, seed=0)}
    assert found == {f"poems:{name}:d1": pair for name, pair in GOLDEN.items()}


@pytest.mark.parametrize(
    ("prompt", "request_"),
    [
        (GOLDEN["title"][0], PoemRequest(4, 5, (), "春晓")),
        (GOLDEN["rhymed"][0], PoemRequest(4, 5, (), "春晓")),
        (GOLDEN["style"][0], PoemRequest(4, 5, (), "春晓")),
        (GOLDEN["line"][0], PoemRequest(4, 5, ("春眠不觉晓",))),
        (GOLDEN["couplet"][0], PoemRequest(4, 5, ("春眠不觉晓", "处处闻啼鸟"))),
        (GOLDEN["author"][0], None),
        ("写一首题为《咏鹅 二首》的七言绝句", PoemRequest(4, 7, (), "咏鹅 二首")),
        (" 续写成一首七言绝句：两个黄鹂鸣翠柳 ", PoemRequest(4, 7, ("两个黄鹂鸣翠柳",))),
        ("续写成一首七言绝句：春眠不觉晓，", None),  # asks for seven characters, gives five
        ("续写：春眠不觉晓，两个黄鹂鸣翠柳。", None),
        ("续写：从前有一座山，山里有一座庙。", None),
        ("续写：从前有座山。", None),
        ("你好", None),
        ("", None),
    ],
)
def test_parse_request_reads_what_the_templates_write(prompt, request_):
    assert parse_request(prompt) == request_


@pytest.mark.parametrize("name", ["title", "style", "line", "couplet"])
@pytest.mark.parametrize(
    "lines", [("白日依山尽", "黄河入海流", "欲穷千里目", "更上一层楼"), ("故人西辞黄鹤楼", "烟花三月下扬州") * 2]
)
def test_the_answer_completes_what_the_request_asks_for(name, lines):
    tasks = poem_tasks(poem(write_lines(lines), title="楼《》" if name == "line" else "楼"), ALL, BOOK, seed=0)
    chosen = next(c for c in tasks if c.source.split(":")[1] == name)
    asked = parse_request(chosen.messages[0].content)
    assert write_lines(lines[len(asked.given) :]) == chosen.messages[1].content
    assert (asked.lines, asked.line_length) == (4, len(lines[0]))


@pytest.mark.parametrize(
    "text",
    [
        "春眠不觉晓，处处闻啼鸟。",  # two lines
        "春眠不觉晓，处处闻啼鸟。\n夜来风雨声，花落知多少。\n春眠不觉晓，处处闻啼鸟。",  # six
        "春眠不觉晓，处处闻啼鸟。\n夜来风雨声，花落知多。",  # uneven
        "春眠不觉x，处处闻啼鸟。\n夜来风雨声，花落知多少。",  # not Han
        "长安道人无，衣马无草何，\n不归来山中老，",
    ],
)
def test_only_real_quatrains_are_used(text):
    assert regular_verse(poem(text)) is None
    assert poem_tasks(poem(text), ALL, BOOK, 0) == []


def test_titles_and_authors_that_cannot_be_asked_for_are_left_out():
    text = "春眠不觉晓，处处闻啼鸟。\n夜来风雨声，花落知多少。"

    def kinds(**attributes):
        return {c.source.split(":")[1] for c in poem_tasks(poem(text, **attributes), ALL, BOOK, 0)}

    assert kinds() == {"title", "style", "rhymed", "line", "couplet", "author", "rhyme"}
    assert kinds(author="无名氏") == {"title", "rhymed", "line", "couplet", "rhyme"}
    assert kinds(title="") == {"line", "couplet", "author", "rhyme"}
    assert kinds(title="和《春晓》") == {"line", "couplet", "author", "rhyme"}
    assert kinds(title="长" * 21) == {"line", "couplet", "author", "rhyme"}


def test_eight_lines_are_two_quatrains():
    text = "春眠不觉晓，处处闻啼鸟。\n夜来风雨声，花落知多少。\n白日依山尽，黄河入海流。\n欲穷千里目，更上一层楼。"
    mix = PoemMix(title=1, style=0, line=0, couplet=0, author=0, rhyme=1, rhymed=0)
    tasks = poem_tasks(poem(text, title="题", author="人"), mix, compile_rhymes([poem(text)]), 0)
    *both, rhyme = [tuple(m.content for m in task.messages) for task in tasks]
    assert both == [
        ("写一首题为《题》的五言绝句。", half) for half in ("\n".join(text.split("\n")[i : i + 2]) for i in (0, 2))
    ]
    assert rhyme[0] == "押“鸟”韵的字。"
    assert sorted(rhyme[1]) == sorted("少流楼")


def test_the_rhyme_book_says_what_poets_rhymed_and_how_often():
    book = RhymeBook()
    for _ in range(50):
        book.add("东风")
    book.add("东空空")
    assert book.rhymes("东", 8, seed=0) in ("风空", "空风")
    assert book.rhymes("风", 8, seed=0) == "东"
    assert book.rhymes("月", 8, seed=0) == ""
    firsts = [book.rhymes("东", 1, seed) for seed in range(200)]
    assert 0.9 < firsts.count("风") / 200 < 1.0
    assert firsts == [book.rhymes("东", 1, seed) for seed in range(200)]


def test_the_mix_decides_how_many_and_the_document_decides_which():
    documents = [poem(SPRING.text, id=f"poem-{i}") for i in range(400)]
    mix = PoemMix(title=0.5, style=0, line=1, couplet=0, author=0.1, rhyme=0, rhymed=0)
    drawn = [[c.source.split(":")[1] for c in poem_tasks(d, mix, BOOK, seed=3)] for d in documents]
    assert drawn == [[c.source.split(":")[1] for c in poem_tasks(d, mix, BOOK, seed=3)] for d in documents]
    count = {kind: sum(kind in kinds for kinds in drawn) for kind in ("title", "style", "line", "couplet", "author")}
    assert count["line"] == 400
    assert count["style"] == count["couplet"] == 0
    assert 150 < count["title"] < 250
    assert 20 < count["author"] < 70
    assert drawn != [[c.source.split(":")[1] for c in poem_tasks(d, mix, BOOK, seed=4)] for d in documents]


def test_prose_is_continued_in_its_own_language_from_sentence_to_sentence():
    english = Document("e", "There was Mr. Fox. He ran 3.5 miles.\n\nThe end came. He laughed.", "t", "en")
    (conversation,) = prose_tasks(english, 3, 0)
    assert [m.content for m in conversation.messages] == [
        "Continue: There was Mr. Fox. He ran 3.5 miles.",
        "The end came. He laughed.",
    ]
    chinese = Document("z", "从前有一座山，山里有一座庙，庙里有和尚。他说：“讲个故事。”小和尚听了。", "t", "zh")
    (conversation,) = prose_tasks(chinese, 3, 0)
    assert [m.content for m in conversation.messages] == [
        "续写：从前有一座山，山里有一座庙，庙里有和尚。",
        "他说：“讲个故事。”小和尚听了。",
    ]
    assert prose_tasks(Document("s", "Only one sentence.", "t", "en"), 3, 0) == []


@pytest.mark.parametrize(
    "text",
    ["山高水长，" * 400, "山高水长" * 500, "他走了很远的路，到了山里。" * 200, "one word after another " * 200],
    ids=["no full stop", "no pause", "sentences", "english"],
)
def test_whatever_the_text_there_are_tasks_that_fit(text):
    tasks = prose_tasks(Document("d", text, "t", "zh"), 9, 0, size=lambda piece: len(piece.encode()), room=104)
    assert len(tasks) == 9
    for task in tasks:
        start, answer = task.messages[0].content.removeprefix("续写："), task.messages[1].content
        assert start
        assert answer
        assert len((start + answer).encode()) <= 104
        assert start in text
        assert answer in text


def test_long_prose_gives_as_many_passages_as_asked_for_and_stays_short():
    text = " ".join(f"Sentence number {i} says a little more than the one before." for i in range(60))
    document = Document("long", text, "t", "en")
    assert len(prose_tasks(document, 1, 0)) == 1
    many = prose_tasks(document, 99, 0)
    assert 5 < len(many) < 20
    for conversation in many:
        asked, answer = (m.content for m in conversation.messages)
        assert asked.removeprefix("Continue: ") in text
        assert answer in text
        assert len(answer) <= 300
        assert answer.endswith(".")
