"""Text comes out whole: no half characters, no piece of a stop string, however it is cut into tokens."""

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from danlu.infer.detokenize import Detokenizer, StopScanner

TEXT = st.text(alphabet="ab月é👩🚀\u200d\n", max_size=30)
STOPS = st.lists(st.text(alphabet="ab月é\n", min_size=1, max_size=4), max_size=3)


class Bytes:
    """A vocabulary whose tokens are arbitrary byte strings: any split of a text into tokens is possible."""

    def __init__(self, pieces):
        self.pieces = pieces

    def token_bytes(self, id):
        return self.pieces[id]


def cut(data: bytes, places: list[int]) -> list[bytes]:
    edges = sorted({0, len(data), *(p % (len(data) + 1) for p in places)})
    return [data[a:b] for a, b in pairwise(edges)]


def until_stop(text: str, stops: list[str]) -> str:
    """Character by character: the first moment at which the text ends in a stop string."""
    for end in range(1, len(text) + 1):
        found = [len(stop) for stop in stops if text[:end].endswith(stop)]
        if found:
            return text[: end - max(found)]
    return text


@given(TEXT, STOPS, st.lists(st.integers(0, 200), max_size=40))
def test_pieces_add_up_and_none_shows_too_much(text, stops, places):
    pieces = cut(text.encode(), places)
    detokenizer = Detokenizer(Bytes(pieces), stops)
    wanted, shown = until_stop(text, stops), ""
    for token in range(len(pieces)):
        shown += detokenizer.feed(token)
        assert wanted.startswith(shown), "showed half a character or a piece of a stop string"
    assert shown + detokenizer.finish() == wanted
    assert detokenizer.stopped == any(stop in text for stop in stops)


@given(st.binary(max_size=20), st.lists(st.integers(0, 200), max_size=20))
def test_broken_bytes_become_what_decoding_at_once_makes_of_them(data, places):
    pieces = cut(data, places)
    detokenizer = Detokenizer(Bytes(pieces))
    text = "".join(detokenizer.feed(token) for token in range(len(pieces))) + detokenizer.finish()
    assert text == data.decode("utf-8", errors="replace")


def test_nothing_is_held_back_without_need():
    scanner = StopScanner(["。\n\n"])
    assert [scanner.feed(piece) for piece in ("花落", "知。", "多少", "。\n")] == ["花落", "知", "。多少", ""]
    assert scanner.finish() == "。\n"


def test_real_tokens_say_what_the_tokenizer_says(tokenizer):
    text = "花落知多少。👩‍🚀 naïve"
    ids = [tokenizer.bos, *tokenizer.encode(text), tokenizer.eos]
    detokenizer = Detokenizer(tokenizer)
    pieces = [detokenizer.feed(id) for id in ids]
    assert "".join(pieces) + detokenizer.finish() == tokenizer.decode(ids) == text
    assert all("\ufffd" not in piece for piece in pieces)
