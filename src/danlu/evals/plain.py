"""Text as a reader takes it, whatever it was dressed up as: what rules about words look at.

In:  text as it came.
Out: ``views`` of it in plain letters, each character knowing where in the text it stands, and how much is settled.
Left out: pinyin, synonyms, languages but Chinese and English, and meaning: that is the guard's (``align.guard``).

Every character is plain by itself: compatibility forms (NFKD), marks, zero-width characters, letters of other scripts
that look Latin, capitals, Traditional Chinese. Only then neighbours are looked at: letters and Han characters that
are spelt apart ("b o m b", "炸-药") come together, and digits inside words are read as the letters that they resemble.
Nothing here looks further than a few characters, so a text that grows gets the same views, however it was cut.
"""

from __future__ import annotations

import functools
import re
import unicodedata
from dataclasses import dataclass

import opencc

# Lower-case look-alikes of Latin letters that compatibility forms do not cover (a choice from Unicode's confusables).
_LOOKS = {
    "a": "аαɑᴀ", "b": "ьвβʙ", "c": "сϲᴄ", "d": "ԁᴅ", "e": "еєεҽᴇ", "f": "ғꜰ", "g": "ցɡɢ", "h": "һнʜ",
    "i": "іιıɩӏɪ", "j": "јᴊ", "k": "кκᴋ", "l": "ⅼʟ", "m": "мᴍ", "n": "пηոɴ", "o": "оοօσᴏ", "p": "рρᴘ", "q": "ԛզ",
    "r": "гʀ", "s": "ѕꜱ", "t": "тτᴛ", "u": "υսᴜ", "v": "ѵνᴠ", "w": "ѡԝɯᴡ", "x": "хχ", "y": "уγүʏ", "z": "ᴢ",
}  # fmt: skip
_LATIN = {ord(other): latin for latin, others in _LOOKS.items() for other in others}
# Letters in black boxes and of flags: three alphabets that have no compatibility form.
_LATIN |= {start + i: chr(97 + i) for start in (0x1F150, 0x1F170, 0x1F1E6) for i in range(26)}
_LEET = str.maketrans("0134578@$!|", "oieastba" + "sil")

_HAN = "\u3400-\u4dbf\u4e00-\u9fff\U00020000-\U0003134f"
# What may stand between characters without ending a sentence, and what may not.
_SIGNS = r" \t\-_*.·•~+=/\\|^`'\"#…—"
_STOPS = r"，。、；：！？,;:!?"
_APART = re.compile(
    rf"(?<=[{_HAN}])[{_SIGNS}]{{1,4}}(?=[{_HAN}])"  # 炸 药, 炸--药
)
_DEALT = re.compile(  # 制，造，炸，药: four characters and a stop between any two of them
    rf"(?<![{_HAN}])[{_HAN}][{_STOPS}](?:[{_HAN}][{_STOPS}]){{2,60}}[{_HAN}](?![{_HAN}])"
)
_SPELT = re.compile(rf"(?<![a-z0-9])[a-z0-9@$!](?:[{_SIGNS}{_STOPS}][a-z0-9@$!]){{2,60}}(?![a-z0-9])")
_SPACE = re.compile(r"\s+")
_MIXED = re.compile(r"(?<![a-z0-9@$!|])(?=[0-9@$!|]{0,20}[a-z])[a-z0-9@$!|]{2,39}[a-z0-9@$](?![a-z0-9@$])")
_LAST_WORD = re.compile(r"[a-z0-9@$!|]{1,40}\Z")
SLACK = 8  # characters at the end of a view that what follows may still change: spelling apart takes a few to show


@dataclass(frozen=True)
class View:
    """Plain letters.

    Attributes:
        text: lower case, one space where there was white space.
        starts: for every character of ``text``, where in the original it begins; then the original's length.
    """

    text: str
    starts: tuple[int, ...]

    def place(self, start: int, end: int) -> tuple[int, int]:
        """Where in the original the characters from ``start`` to ``end`` of the view stand."""
        return self.starts[start], self.starts[end - 1] + 1

    def settled(self) -> int:
        """How much of the view will stay as it is when the text goes on: not its last characters, nor a word begun."""
        last = _LAST_WORD.search(self.text)
        return max(0, min(len(self.text) - SLACK, last.start() if last else len(self.text)))

    def without(self, gaps: list[tuple[int, int]]) -> View:
        """The view without some stretches of it, given in order."""
        if not gaps:
            return self
        kept = [i for (_, a), (b, _) in zip([(0, 0), *gaps], [*gaps, (len(self.text), 0)], strict=True)
                for i in range(a, b)]  # fmt: skip
        return View("".join(self.text[i] for i in kept), (*(self.starts[i] for i in kept), self.starts[-1]))


def views(text: str) -> list[View]:
    """The ways in which a text may be read, all different: as it stands, with spelling apart undone, without leet."""
    plain = _plain(text)
    stretches = sorted({*_inner(_DEALT, plain.text, _STOPS), *_inner(_SPELT, plain.text, _SIGNS + _STOPS),
                        *(m.span() for m in _APART.finditer(plain.text))})  # fmt: skip
    joined = _spaced(plain.without(_disjoint(stretches)))
    found = [_spaced(plain), joined, _articles_apart(plain, stretches), _unleet(joined)]
    return list({view.text: view for view in found}.values())


@functools.lru_cache(maxsize=65536)
def letter(character: str) -> str:
    """A character in plain letters: none, one or several."""
    kept = []
    for part in unicodedata.normalize("NFKD", character):
        if part.isspace():
            kept.append("\n" if part in "\n\r\u2028\u2029" else " ")
        elif unicodedata.category(part) not in ("Mn", "Me", "Cf", "Cc", "Cn", "Co", "Cs"):
            low = part.casefold().translate(_LATIN)
            kept.append(low if low.isascii() else _converter().convert(low))
    return "".join(kept)


@functools.cache
def _converter() -> opencc.OpenCC:
    return opencc.OpenCC("t2s")


def _plain(text: str) -> View:
    letters: list[str] = []
    starts: list[int] = []
    for place, character in enumerate(text):
        plain = letter(character)
        letters.append(plain)
        starts += [place] * len(plain)
    return View("".join(letters), (*starts, len(text)))


def _inner(pattern: re.Pattern[str], text: str, between: str) -> list[tuple[int, int]]:
    """The separators inside everything that is spelt apart."""
    found = []
    for match in pattern.finditer(text):
        found += [m.span() for m in re.compile(f"[{between}]").finditer(text, *match.span())]
    return found


def _disjoint(stretches: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """Stretches in order, without those that begin inside another."""
    kept: list[tuple[int, int]] = []
    for stretch in stretches:
        if not kept or stretch[0] >= kept[-1][1]:
            kept.append(stretch)
    return kept


def _articles_apart(plain: View, stretches: list[tuple[int, int]]) -> View:
    """The joined view in which "a b o m b" is "a bomb": a first letter that is a word by itself stays one."""
    words = {m.end(): m.start() + 1 for m in re.finditer(r"(?<![a-z0-9])[ai] (?=[a-z0-9])", plain.text)}
    kept = [gap for gap in _disjoint(stretches) if not (gap[1] in words and gap[0] == words[gap[1]])]
    return _spaced(plain.without(kept))


def _spaced(view: View) -> View:
    """One space, or one newline, for every run of white space."""
    gaps = []
    for match in _SPACE.finditer(view.text):
        start, end = match.span()
        if end - start > 1:
            keep = view.text.find("\n", start, end)  # a new line says more than a space
            keep = start if keep < 0 else keep
            gaps += [gap for gap in ((start, keep), (keep + 1, end)) if gap[0] < gap[1]]
    return view.without(gaps)


def _unleet(view: View) -> View:
    """Digits and signs inside words as the letters that they resemble; same length."""
    return View(_MIXED.sub(lambda match: match[0].translate(_LEET), view.text), view.starts)
