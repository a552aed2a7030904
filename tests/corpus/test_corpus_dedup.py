from __future__ import annotations

import random
from pathlib import Path

import numpy as np

from danlu.console import Console
from danlu.corpus.dedup import LONG, SHORT, Copies, Finder

HAN = [chr(point) for point in range(0x4E00, 0x4E00 + 3000)]


def find(folder: Path, texts: list[str], batch: int = 50, near: bool = True) -> Copies:
    finder = Finder(folder / "tokens.u64", {SHORT: 0.6, LONG: 0.7} if near else {})
    for first in range(0, len(texts), batch):
        finder.add(texts[first : first + batch])
    return finder.find(np.array([len(text) for text in texts]), Console(quiet=True))


def poem(seed: int, length: int = 20) -> str:
    return "".join(random.Random(seed).choices(HAN, k=length))


def varied(text: str, seed: int, changes: int) -> str:
    random_ = random.Random(seed)
    characters = list(text)
    for place in random_.sample(range(len(text)), changes):
        characters[place] = random_.choice(HAN)
    return "".join(characters)


def test_planted_copies_of_short_and_long_texts(tmp_path: Path) -> None:
    quatrains = [poem(n, 20 if n % 2 else 28) for n in range(300)]
    long = [poem(1000 + n, 300) for n in range(50)]
    near = [varied(text, n, 1) for n, text in enumerate(quatrains[:60])]
    near += [varied(text, n, 5) for n, text in enumerate(long[:20])]
    texts = quatrains + long + near + [quatrains[7], long[3]]
    copies = find(tmp_path, texts)
    originals = [*range(60), *range(300, 320), 7, 303]
    assert copies.of.tolist() == [*range(350), *originals]
    assert copies.exact.nonzero()[0].tolist() == [430, 431]
    assert (copies.similarity[350:430] >= 0.6).all()
    assert (copies.limit[350:410] == 0.6).all()
    assert copies.cluster_sizes()[7] == 3


def test_result_does_not_depend_on_batches(tmp_path: Path) -> None:
    texts = [varied(poem(n % 40, 40), n, n % 4) for n in range(200)]
    assert find(tmp_path, texts, 7).of.tolist() == find(tmp_path, texts, 200).of.tolist()


def test_the_longest_stays_and_of_equals_the_first(tmp_path: Path) -> None:
    text = poem(1, 200)
    copies = find(tmp_path, [text[:190], text, text.replace(text[5], text[5] + " "), poem(2, 200)])
    assert copies.of.tolist() == [2, 2, 2, 3]  # two spaces longer, so it stays
    assert find(tmp_path, [text, text]).of.tolist() == [0, 0]


def test_exact_only_leaves_near_copies(tmp_path: Path) -> None:
    text = poem(1, 100)
    copies = find(tmp_path, [text, varied(text, 1, 1), text + "\n"], near=False)
    assert copies.of.tolist() == [2, 1, 2]


def test_sums_that_differ_in_their_numbers_stay(tmp_path: Path) -> None:
    texts = [f"{a} + {b} = {a + b}" for a in range(20) for b in range(20)]
    assert find(tmp_path, texts).of.tolist() == list(range(400))


def test_texts_without_letters_are_not_one_family(tmp_path: Path) -> None:
    assert find(tmp_path, ["!!!", "???", "。", ""]).of.tolist() == [0, 1, 2, 3]


def test_a_pair_that_straddles_the_size_limits_is_found(tmp_path: Path) -> None:
    for length in (34, 35, 36, 37, 66, 67, 68, 69):
        text = poem(length, length)
        assert find(tmp_path, [text, text + "天"]).of.tolist() == [1, 1], length


def test_a_huge_family_stays_one_family(tmp_path: Path) -> None:
    texts = [varied(poem(3, 60), n, 1) for n in range(1000)]
    assert set(find(tmp_path, texts, 500).of.tolist()) == {0}
