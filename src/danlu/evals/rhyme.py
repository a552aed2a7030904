"""Which Chinese characters rhyme: the eighteen rhyme groups of modern Mandarin.

In:  characters, simplified or traditional.
Out: the rhyme groups each can be read in, and whether characters rhyme.
Left out: tones (level and oblique rhyme alike here) and the Tang rhyme books: the metric judges by ear of today, so a
true Tang rhyme that a thousand years have pulled apart (斜 and 家) does not always count.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence

# 中华新韵 (1941), eighteen groups. Finals as pypinyin spells them, v for ü. "-i" is the vowel of zhi chi shi ri zi ci
# si, which pinyin writes like the i of qi and which does not rhyme with it.
GROUPS: dict[str, tuple[str, ...]] = {
    "麻": ("a", "ia", "ua"),
    "波": ("o", "uo"),
    "歌": ("e",),
    "皆": ("ie", "ve", "ê"),
    "支": ("-i",),
    "儿": ("er",),
    "齐": ("i",),
    "微": ("ei", "uei"),
    "开": ("ai", "uai"),
    "模": ("u",),
    "鱼": ("v",),
    "侯": ("ou", "iou"),
    "豪": ("ao", "iao"),
    "寒": ("an", "ian", "uan", "van"),
    "痕": ("en", "in", "uen", "vn"),
    "唐": ("ang", "iang", "uang"),
    "庚": ("eng", "ing", "ueng"),
    "东": ("ong", "iong"),
}
_GROUP_OF = {final: group for group, finals in GROUPS.items() for final in finals}
_BUZZING = ("zh", "ch", "sh", "r", "z", "c", "s")


@functools.cache
def rhyme_groups(character: str) -> frozenset[str]:
    """The groups a character belongs to, one per reading; empty for what is not a Chinese character."""
    from pypinyin import Style, pinyin  # its table of phrases takes half a second, and few verbs ask for rhyme

    readings = pinyin(character, style=Style.NORMAL, heteronym=True, errors="ignore")
    finals = {_final(syllable) for syllable in (readings[0] if readings else ())}
    return frozenset(_GROUP_OF[final] for final in finals if final in _GROUP_OF)


def rhymes(characters: Sequence[str]) -> bool:
    """Whether all the characters are different and share a rhyme group in some reading of each.

    Args:
        characters: two or more single characters, the ends of the lines that should rhyme.
    """
    if len(set(characters)) < len(characters):
        return False
    return bool(frozenset.intersection(*(rhyme_groups(character) for character in characters)))


def _final(syllable: str) -> str:
    """The final of a toneless syllable, with the buzzing i told apart."""
    from pypinyin.contrib.tone_convert import to_finals

    final: str = to_finals(syllable, strict=True)
    return "-i" if final == "i" and syllable.startswith(_BUZZING) else final
