"""Instruction tasks made from documents: poems to write and continue, prose to go on with.

In:  documents; or a prompt that somebody typed.
Out: conversations, each naming its document; or what a prompt asks of a poem.
Left out: judging the answers (``evals``); instructions that no document can answer truthfully.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

from pydantic import Field

from danlu.corpus.langid import HAN
from danlu.recipe import Settings
from danlu.records import Conversation, Document, Message
from danlu.streams import stream_seed
from danlu.train.rhymebook import RhymeBook

QUATRAIN = 4
FORMS = {5: "五言绝句", 7: "七言绝句"}
TITLE = "写一首题为《{title}》的{form}。"
STYLE = "模仿{author}，写一首题为《{title}》的{form}。"
RHYMED = "写一首题为《{title}》的{form}，押“{foot}”韵。"
LINE = "续写成一首{form}：{first}，"
COUPLET = "续写：{first}，{second}。"
AUTHOR = "{first}，{second}。这两句诗的作者是谁？"
RHYME = "押“{foot}”韵的字。"
NAMELESS = frozenset(("不详", "无名氏", "佚名", "无名", "失名"))
_LONGEST_TITLE, _RHYMES = 20, 8


class PoemMix(Settings):
    """How many conversations of each kind a quatrain gives, on average: 1 is every quatrain, 0.3 three in ten.

    Regular verse of eight lines counts as two quatrains.
    """

    title: float = Field(default=1.0, ge=0, le=1)
    """Write a quatrain on its title."""
    style: float = Field(default=0.3, ge=0, le=1)
    """The same, in the manner of its author."""
    rhymed: float = Field(default=0.5, ge=0, le=1)
    """The same, with the rhyme given by its first character, as poets who shared out rhymes among them wrote."""
    line: float = Field(default=1.0, ge=0, le=1)
    """Continue from its first line."""
    couplet: float = Field(default=0.5, ge=0, le=1)
    """Continue from its first two lines."""
    author: float = Field(default=0.1, ge=0, le=1)
    """Name the author of its first two lines."""
    rhyme: float = Field(default=0.5, ge=0, le=1)
    """Name characters that rhyme with the poem's first foot, out of a rhyme book compiled from the training poems."""


@dataclass(frozen=True)
class PoemRequest:
    """What a prompt asks of a poem.

    Attributes:
        lines: of the whole poem, given ones included.
        line_length: Han characters in each.
        given: the lines that the prompt has already; the answer starts after them.
        title: the title asked for, if any.
    """

    lines: int
    line_length: int
    given: tuple[str, ...] = ()
    title: str | None = None


@dataclass(frozen=True)
class Verse:
    """Four or eight lines of five or of seven Han characters, and whose they are."""

    title: str
    author: str
    lines: tuple[str, ...]

    @property
    def form(self) -> str:
        """五言绝句 or 七言绝句."""
        return FORMS[len(self.lines[0])]

    @property
    def feet(self) -> str:
        """The characters that rhyme: the ends of the even lines."""
        return "".join(line[-1] for line in self.lines[1::2])


# ----------------------------------------------------------------------------------------------- poems


def regular_verse(document: Document) -> Verse | None:
    """The regular verse (絕句 of four lines, 律詩 of eight) that a document is; None if it is anything else.

    A row of the text is verse if it ends in punctuation; title and author, which do not, may stand above.
    """
    rows = [row.strip() for row in document.text.splitlines()]
    verse = "".join(row for row in rows if row.endswith(tuple("，。！？；、")))
    lines = tuple(line for line in re.split(r"[，。！？；、]", verse) if line)
    if len(lines) not in (QUATRAIN, 2 * QUATRAIN) or {len(line) for line in lines} not in ({5}, {7}):
        return None
    if not all(re.fullmatch(f"{HAN}+", line) for line in lines):
        return None
    title, author = (str(document.attributes.get(key) or "").strip() for key in ("title", "author"))
    return Verse(title, author, lines)


def compile_rhymes(documents: Iterable[Document]) -> RhymeBook:
    """The rhyme book of all verse among some documents."""
    book = RhymeBook()
    for poem in filter(None, map(regular_verse, documents)):
        book.add(poem.feet)
    return book


def write_lines(lines: Iterable[str]) -> str:
    """The last lines of a poem as verse: couplets ``一，二。``, one to a row; an odd line before them ends in 。"""
    rest = list(lines)
    odd = len(rest) % 2
    couplets = [f"{a}，{b}。" for a, b in zip(rest[odd::2], rest[odd + 1 :: 2], strict=True)]
    return "\n".join([f"{line}。" for line in rest[:odd]] + couplets)


def quatrains(poem: Verse) -> list[tuple[str, ...]]:
    """The poem, or the two halves of an eight-line one, each of which rhymes as a quatrain does.

    A quatrain's name, 絕句, "cut lines", was long read as lines cut from regular verse; the Complete Tang Poems have
    one and a half times as many of those poems as of quatrains.
    """
    return [poem.lines[start : start + QUATRAIN] for start in range(0, len(poem.lines), QUATRAIN)]


def poem_tasks(document: Document, mix: PoemMix, book: RhymeBook, seed: int) -> list[Conversation]:
    """The conversations that a document gives; none unless it is verse. Decided by seed, book and document id alone.

    Rhyming is learnt on a task of its own, because in a poem it is one character in ten or fourteen: hard to hear among
    all the others.
    """
    poem = regular_verse(document)
    if poem is None:
        return []
    titled = 0 < len(poem.title) <= _LONGEST_TITLE and not set(poem.title) & set("《》\n")
    signed = bool(poem.author) and poem.author not in NAMELESS
    tasks = []
    for number, lines in enumerate(quatrains(poem)):
        facts = {"title": poem.title, "author": poem.author, "form": poem.form, "first": lines[0], "second": lines[1]}
        facts["foot"] = lines[1][-1]
        of_quatrain = (
            ("title", TITLE, write_lines(lines), mix.title, titled),
            ("style", STYLE, write_lines(lines), mix.style, titled and signed),
            ("rhymed", RHYMED, write_lines(lines), mix.rhymed, titled),
            ("line", LINE, write_lines(lines[1:]), mix.line, True),
            ("couplet", COUPLET, write_lines(lines[2:]), mix.couplet, True),
            ("author", AUTHOR, poem.author, mix.author, signed),
        )
        tasks += [
            _conversation(template.format(**facts), answer, f"poems:{name}:{document.id}")
            for name, template, answer, share, possible in of_quatrain
            if possible and _drawn(share, seed, document.id, name, number)
        ]
    rhymes = book.rhymes(poem.feet[0], _RHYMES, stream_seed(seed, document.id, "rhymes"))
    if rhymes and _drawn(mix.rhyme, seed, document.id, "rhyme"):
        tasks.append(_conversation(RHYME.format(foot=poem.feet[0]), rhymes, f"poems:rhyme:{document.id}"))
    return tasks


def parse_request(prompt: str) -> PoemRequest | None:
    """Read a prompt back; None if it does not ask for a poem. The inverse of the templates above.

    Args:
        prompt: the user's words. The closing punctuation may be missing.
    """
    text = prompt.strip().rstrip("。，")
    for pattern in _PATTERNS:
        match = pattern.fullmatch(text)
        if match is None:
            continue
        found = match.groupdict()
        given = tuple(found[key] for key in ("first", "second") if key in found)
        lengths = {len(line) for line in given}
        if "form" in found:
            lengths.add(next(length for length, name in FORMS.items() if name == found["form"]))
        if len(lengths) == 1 and lengths <= FORMS.keys():
            return PoemRequest(QUATRAIN, lengths.pop(), given, found.get("title"))
    return None


def _pattern(template: str) -> re.Pattern[str]:
    """The regular expression that reads what ``template.format`` wrote."""
    text = re.escape(template.rstrip("。，"))
    groups = {"form": "|".join(FORMS.values()), "first": f"{HAN}+", "second": f"{HAN}+", "foot": HAN}
    groups |= {"title": ".+", "author": ".+?"}
    for name, group in groups.items():
        text = text.replace(re.escape(f"{{{name}}}"), f"(?P<{name}>{group})")
    return re.compile(text)


_PATTERNS = tuple(_pattern(template) for template in (TITLE, STYLE, RHYMED, LINE, COUPLET))


def _conversation(asked: str, answer: str, source: str) -> Conversation:
    return Conversation((Message("user", asked), Message("assistant", answer)), source)


def _drawn(share: float, *address: object) -> bool:
    """Whether a draw addressed by ``address`` falls within ``share``."""
    return stream_seed(*address) < share * 2.0**63
