"""Copying and variety against brute force; intervals against published values."""

from __future__ import annotations

import random
import time

import pytest

from danlu.evals.intervals import wilson
from danlu.evals.variety import CopyIndex, distinct_2

POEMS = ["春眠不觉晓，处处闻啼鸟。\n夜来风雨声，花落知多少。", "床前明月光，疑是地上霜。\n举头望明月，低头思故乡。"]


def longest_by_brute_force(answer: str, texts: list[str]) -> int:
    letters = "".join(filter(str.isalnum, answer))
    cleaned = ["".join(filter(str.isalnum, text)) for text in texts]
    runs = (letters[i:j] for i in range(len(letters)) for j in range(i + 4, len(letters) + 1))
    return max((len(run) for run in runs if any(run in text for text in cleaned)), default=0)


def test_longest_run_equals_brute_force() -> None:
    rng = random.Random(0)
    texts = ["".join(rng.choices("山水风月花，。\n", k=rng.randrange(60))) for _ in range(60)]
    index = CopyIndex(texts)
    answers = ["".join(rng.choices("山水风月花x，。", k=rng.randrange(40))) for _ in range(300)]
    found = [index.longest_run(answer) for answer in answers]
    assert found == [longest_by_brute_force(answer, texts) for answer in answers]
    assert max(found) >= 8


def test_a_run_crosses_lines_and_punctuation_but_not_poems() -> None:
    index = CopyIndex(POEMS)
    assert index.longest_run("不觉晓 处处闻啼鸟") == 8
    assert index.longest_run("花落知多少，床前明月光") == 5
    assert index.longest_run("落花流水春去也") == 0


def test_a_copy_holds_a_run_of_ten() -> None:
    index = CopyIndex(POEMS)
    nine, ten = "春眠不觉晓，处处闻啼山。", "春眠不觉晓，处处闻啼鸟。"
    assert [index.is_copy(nine), index.is_copy(ten)] == [False, True]


def test_an_empty_corpus_has_nothing_to_copy() -> None:
    assert CopyIndex([]).longest_run("春眠不觉晓") == 0
    assert not CopyIndex(["", "山"]).is_copy("春眠不觉晓处处闻啼鸟")


def test_letters_beyond_16_bits_and_english() -> None:
    index = CopyIndex(["𠀀𠀁𠀂𠀃𠀄", "The cat sat on the mat."], copy_run=6)
    assert index.longest_run("𠀀𠀁𠀂𠀃") == 4
    assert index.longest_run("A cat sat, on!") == 8


def test_a_million_letters_are_indexed_in_seconds() -> None:
    rng = random.Random(1)
    alphabet = [chr(0x4E00 + i) for i in range(3000)]
    texts = ["".join(rng.choices(alphabet, k=1000)) for _ in range(1000)]
    started = time.monotonic()
    index = CopyIndex(texts)
    assert all(index.is_copy(text[17:37]) for text in texts)
    assert time.monotonic() - started < 60


def test_distinct_2_by_hand() -> None:
    assert distinct_2(["春风春风"]) == pytest.approx(2 / 3)  # 春风 风春 春风
    assert distinct_2(["春风，春雨", "春风"]) == pytest.approx(2 / 3)  # 春风 春雨 春风
    assert distinct_2(["山", "，"]) == 0


def test_wilson_interval() -> None:
    low, high = wilson(8, 10)
    assert (low, high) == (pytest.approx(0.4902, abs=1e-4), pytest.approx(0.9433, abs=1e-4))
    assert wilson(0, 0) == (0, 1)
    low, high = wilson(0, 20)
    assert low == 0
    assert 0.1 < high < 0.2
    assert wilson(20, 20)[1] == pytest.approx(1)
    with pytest.raises(ValueError, match="not a rate"):
        wilson(3, 2)
