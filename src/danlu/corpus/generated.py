"""Two small corpora that danlu makes itself, for a first run without network: stories and quatrains.

In:  nothing.
Out: records, the same ones everywhere: short English stories, and Chinese poems of four lines that mostly rhyme.
Left out: any claim that they are good reading; they are small enough for a toy model to learn, and they hold planted
    copies and near-copies, so that there is something to find.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from danlu.streams import stream_seed

STORIES, POEMS = 360, 400
COPIES = 12  # planted exact copies, and as many near-copies, in each corpus
RHYMING = 0.85  # share of poems whose second and fourth line rhyme

_NAMES = ("Anna", "Ben", "Clara", "David", "Emma", "Felix", "Grace", "Hugo", "Iris", "Jonas", "Karin", "Leo")
_BEINGS = ("fox", "heron", "hedgehog", "crow", "goat", "turtle", "mouse", "badger", "owl", "hare", "donkey", "otter")
_KINDS = ("old", "quiet", "clever", "tired", "cheerful", "hungry", "shy", "proud", "careful", "young")
_PLACES = ("mill", "harbour", "orchard", "bridge", "forest", "well", "market", "lighthouse", "valley", "garden")
_TIMES = ("One morning", "On a rainy day", "Late in autumn", "Before sunrise", "In the first snow", "One hot evening")
_THINGS = ("lantern", "key", "basket of pears", "drum", "letter", "blue stone", "kite", "loaf of bread", "rope", "map")
_LOSSES = (
    "had rolled into the river", "was hanging from the tallest branch", "had been traded for a song",
    "lay under a heap of wet leaves", "was locked in the miller's cupboard", "had gone missing in the night",
)  # fmt: skip
_ADVICE = (
    "Ask the one who was here first", "Look where nobody wants to look", "Wait until the wind has turned",
    "Share your supper and listen", "Follow the water, it knows the way", "Count your steps and do not hurry",
)  # fmt: skip
_WORK = (
    "They walked until the path ended and then a little further", "They built a ladder out of fence posts",
    "They dug with spoons and sang to keep warm", "They asked every house, and every house knew something else",
    "They tied their scarves together and let them down", "They waited so long that the moon came to look",
)  # fmt: skip
_ENDS = (
    "and nobody ever asked how it had come back", "and they ate what was left of the bread",
    "and from that day the two of them were friends", "and the whole village came to see it",
    "and it was worth the wet feet", "and they promised to come again next year",
)  # fmt: skip

# Words of two characters, written without gaps, by the final that they rhyme on.
_RHYMES = {
    "ang": "晓霜月光路长花香故乡夜凉夕阳叶黄草堂衣裳山庄清江",
    "ou": "早秋水流小舟高楼客愁白头旧游夜幽沙鸥渡头汀洲神州",
    "an": "远天晚烟水边去年月前客眠稻田心弦白莲酒筵南川林泉远山夜寒平安倚看竹竿雨残江干酒阑长安云间柴关雁还",
    "ing": "月明水清晨星驿亭晚晴客情细听沙汀浮萍山青风铃前庭",
    "ai": "花开雁来绿苔钓台手栽门开满怀楼台古槐蓬莱徘徊尘埃",
}
# Oblique tones end the first and third line, which do not rhyme.
_OBLIQUE = "小径远浦旧路古寺野渡晚照细草暮雨落日翠竹石壁浅水客梦牧笛"
_HEADS = "清风明月白云孤舟细雨落花归雁疏钟寒灯春雨渔火松影飞鸟晴雪"
_VERBS = "送照入过映到上伴对近随隔"
_OPENINGS = "千里昨夜此地门外何处一片万古江南独坐回首遥望秋深岁晚天涯"
_SEASONS, _SCENES = "春夏秋冬", ("江", "山", "村", "溪", "湖", "楼")
_OCCASIONS = ("晚望", "夜坐", "早行", "闲居", "送别", "听雨", "寄友", "小饮")
_AUTHORS = ("青崖", "石泉", "南溪", "听松", "云樵", "半舫", "渔隐", "竹坡")


def stories() -> list[dict[str, Any]]:
    """Records with ``title`` and ``text``: a grammar's stories, then planted copies and near-copies."""
    rows = [_story(number) for number in range(STORIES)]
    copies = [dict(rows[7 * n]) for n in range(COPIES)]
    near = [{**rows[11 * n], "text": rows[11 * n]["text"].replace(". ", ", they say. ", 1)} for n in range(COPIES)]
    return rows + copies + near


def poems() -> list[dict[str, Any]]:
    """Records with ``title``, ``author`` and ``paragraphs`` (two couplets), then copies under other names.

    The near-copies differ from their original in one character.
    """
    rows = [_poem(number) for number in range(POEMS)]
    copies = [{**rows[7 * n], "title": _title("copy", n), "author": _AUTHORS[n % 8]} for n in range(COPIES)]
    near = [{**rows[11 * n], "paragraphs": _varied(rows[11 * n]["paragraphs"])} for n in range(COPIES)]
    return rows + copies + near


CORPORA: dict[str, Callable[[], list[dict[str, Any]]]] = {"stories": stories, "poems": poems}


def _story(number: int) -> dict[str, Any]:
    def pick(bank: Sequence[str], *what: object) -> str:
        return _pick(bank, "story", number, *what)

    name, thing, place = pick(_NAMES, "name"), pick(_THINGS, "thing"), pick(_PLACES, "place")
    being = f"{pick(_KINDS, 'kind')} {pick(_BEINGS, 'being')}"
    text = (
        f"{pick(_TIMES, 'time')}, {name} came to the {place} to look for a {thing}. It {pick(_LOSSES, 'loss')}. "
        f'Near the {pick(_PLACES, "second")} sat a {being}. "{pick(_ADVICE, "advice")}," said the {being}. '
        f'{pick(_WORK, "work")}. "{pick(_ADVICE, "again")}," said {name} this time. '
        f"At the end the {thing} stood by the {place}, {pick(_ENDS, 'end')}."
    )
    return {"title": f"{name} and the {being}", "text": text}


def _poem(number: int) -> dict[str, Any]:
    length = 5 if number % 2 else 7
    rhymes = {final: _words(bank) for final, bank in _RHYMES.items()}
    finals = sorted(rhymes)
    second = _pick(finals, "final", number)
    rhyming = stream_seed("rhyming", number) % 100 < RHYMING * 100
    fourth = second if rhyming else _pick([final for final in finals if final != second], "other", number)
    ends = [
        _pick(_words(_OBLIQUE), "end", number, 1),
        _pick(rhymes[second], "end", number, 2),
        _pick(_words(_OBLIQUE), "end", number, 3),
        _pick(rhymes[fourth], "end", number, 4),
    ]
    if ends[1][-1] == ends[3][-1]:  # a character does not rhyme with itself
        ends[3] = next(word for word in rhymes[fourth] if word[-1] != ends[1][-1])
    lines = [_line(number, place, end, length) for place, end in enumerate(ends)]
    paragraphs = [f"{lines[0]}，{lines[1]}。", f"{lines[2]}，{lines[3]}。"]
    return {"title": _title("poem", number), "author": _pick(_AUTHORS, "author", number), "paragraphs": paragraphs}


def _line(number: int, place: int, end: str, length: int) -> str:
    opening = _pick(_words(_OPENINGS), "opening", number, place) if length == 7 else ""
    return opening + _pick(_words(_HEADS), "head", number, place) + _pick(_VERBS, "verb", number, place) + end


def _title(kind: str, number: int) -> str:
    parts = (_SEASONS, _SCENES, _OCCASIONS)
    return "".join(_pick(bank, "title", kind, number, place) for place, bank in enumerate(parts))


def _varied(paragraphs: Sequence[str]) -> list[str]:
    """The poem with the last character of its third line changed, as copyists do."""
    third, fourth = paragraphs[1].split("，")
    return [paragraphs[0], f"{third[:-1]}处，{fourth}"]


def _words(bank: str) -> list[str]:
    """A bank's words of two characters."""
    return [bank[place : place + 2] for place in range(0, len(bank), 2)]


def _pick(bank: Sequence[str], *address: object) -> str:
    return bank[stream_seed("generated", *address) % len(bank)]
