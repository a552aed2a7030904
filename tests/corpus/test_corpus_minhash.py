from __future__ import annotations

import random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from danlu.corpus import minhash

WORDS = [f"{a}{b}{c}" for a in "bdfgklm" for b in "aeiou" for c in "nrstp"]
HAN = [chr(point) for point in range(0x4E00, 0x4E00 + 2000)]
GOLDEN_VALUES = [
    [2668447602, 2302044057, 1324620462, 3354496149, 2034273680, 2302044057],
    [140428703, 140428703, 1257095107, 1557843798, 1257095107, 1557843798],
]
GOLDEN_KEYS = [144891285154368197, 4096914605898952947]
CHARACTERS = st.one_of(
    st.characters(max_codepoint=0x2FF, exclude_categories=["Cs"]),
    st.characters(min_codepoint=0x370, max_codepoint=0x1FFFF, exclude_categories=["Cs"]),
    st.sampled_from("春眠不觉晓，。ΑΣσＡ８㎏℃Åé\u0301ﾊﾟ\uac00\u1100\u1161…—"),
)


def sign(texts: list[str], length: int = 5) -> np.ndarray:
    return minhash.signatures(*minhash.rolling(*minhash.token_hashes(texts), length))


def planted(bank: list[str], joint: str, seed: int) -> tuple[str, str]:
    """Two texts of 60 to 300 tokens that differ in some of them."""
    random_ = random.Random(seed)
    tokens = random_.choices(bank, k=random_.randint(60, 300))
    other = list(tokens)
    for _ in range(random_.randint(0, len(tokens) // 12)):
        other[random_.randrange(len(other))] = random_.choice(bank)
    return joint.join(tokens), joint.join(other)


def exact(a: str, b: str) -> float:
    sets = [set(minhash.rolling(*minhash.token_hashes([text]), 5)[0].tolist()) for text in (a, b)]
    return len(sets[0] & sets[1]) / len(sets[0] | sets[1])


@settings(max_examples=50, deadline=None)
@given(st.lists(st.text(CHARACTERS, max_size=40), min_size=1, max_size=4), st.integers(1, 6))
def test_fast_path_equals_reference(texts: list[str], length: int) -> None:
    table = sign(texts, length)
    assert table.tolist() == [minhash.signature_reference(text, length) for text in texts]


def test_signature_does_not_depend_on_the_batch() -> None:
    texts = [text for seed in range(20) for text in planted(HAN, "", seed)] + ["", "one", "Ａ wide 一"]
    together = sign(texts)
    for size in (1, 7, 32):
        parts = [sign(texts[first : first + size]) for first in range(0, len(texts), size)]
        assert np.array_equal(np.concatenate(parts), together)


def test_golden_vector() -> None:
    # Frozen: signatures that lie on a disk somewhere must agree with these. A change needs another ALGORITHM.
    table = sign(
        ["春眠不觉晓，处处闻啼鸟。夜来风雨声，花落知多少。", "In the beginning was the word, and Word 1 was: go!"]
    )
    assert minhash.ALGORITHM == "oph-112-v1"
    assert table[:, :6].tolist() == GOLDEN_VALUES
    assert minhash.band_keys(table, 14)[:, 0].tolist() == GOLDEN_KEYS


def test_case_width_and_punctuation_do_not_count() -> None:
    a, b = minhash.token_hashes(["Hello, World! 天地１２", "hello world 天 地 12"])
    assert a[: b[0]].tolist() == a[b[0] :].tolist()


def test_numbers_count() -> None:
    tokens, ends = minhash.token_hashes(["3 + 4 = 7", "3 + 5 = 8"])
    assert tokens[: ends[0]].tolist() != tokens[ends[0] :].tolist()


@pytest.mark.parametrize(("bank", "joint"), [(HAN, ""), (WORDS, " ")], ids=["chinese", "english"])
def test_estimates_jaccard_without_bias(bank: list[str], joint: str) -> None:
    pairs = [planted(bank, joint, seed) for seed in range(500)]
    one, other = sign([a for a, _ in pairs]), sign([b for _, b in pairs])
    true = np.array([exact(a, b) for a, b in pairs])
    error = (one == other).mean(axis=1) - true
    expected = np.sqrt((true * (1 - true) / minhash.BINS).mean())
    assert abs(error.mean()) < 0.006
    assert np.sqrt((error**2).mean()) < 1.15 * expected
    hits = (minhash.band_keys(one, 14) == minhash.band_keys(other, 14)).any(axis=1)
    theory = np.array([minhash.hit_probability(j, 14) for j in true])
    assert abs(hits.mean() - theory.mean()) < 0.03
    assert hits[true >= 0.75].mean() > 0.95


def test_empty_text_has_an_empty_signature() -> None:
    assert (sign(["", "。，！", "天"], 2) == minhash.EMPTY).all()
    assert sign([]).shape == (0, minhash.BINS)
