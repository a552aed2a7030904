"""Training a byte-level BPE vocabulary.

In:  texts, and how large the vocabulary shall be.
Out: the text of a ``tokenizer.json``: bytes, then merges in order of frequency, then specials, to a multiple of 64.
Left out: a trainer of our own; ``tokenizers`` counts and merges, deterministically (a test says so).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import tokenizers
from tokenizers import AddedToken, Regex, decoders, models, pre_tokenizers, trainers

MULTIPLE = 64


def split_pattern(han_run: int) -> str:
    r"""The rule that cuts text into pieces before BPE; merges never cross a cut.

    GPT-4's rule with digits in groups of at most two (nanochat, for small vocabularies), and Han characters taken out
    of the letters into runs of their own. Without that, a Chinese clause is one "word": the trainer holds every
    clause of the corpus in memory, and slogans become tokens.

    Args:
        han_run: longest run of Han characters that a token may cover; 1 makes every character at most one token.
    """
    letter, number = r"[\p{L}&&[^\p{Han}]]", r"[\p{N}&&[^\p{Han}]]"
    alternatives = (
        rf"\p{{Han}}{{1,{han_run}}}",
        r"'(?i:[sdmt]|ll|ve|re)",
        rf"[^\r\n\p{{L}}\p{{N}}\p{{Han}}]?+{letter}+",
        rf"{number}{{1,2}}",
        r" ?[^\s\p{L}\p{N}\p{Han}]++[\r\n]*",
        r"\s*[\r\n]",
        r"\s+(?!\S)",
        r"\s+",
    )
    return "|".join(alternatives)


def train_bpe(
    texts: Iterable[str], *, vocab_size: int, han_run: int, min_frequency: int, specials: Sequence[str]
) -> str:
    """Train on texts and return a ``tokenizer.json``.

    Args:
        texts: what to learn from; the order does not matter.
        vocab_size: ids wanted, specials included; rounded up to a multiple of 64. A small corpus gives fewer merges
            than that, and then the vocabulary is the next smaller multiple of 64 that holds them.
        han_run: see ``split_pattern``.
        min_frequency: a pair seen less often is not merged.
        specials: tokens to reserve at the top.

    Returns:
        The file's text. Ids that only fill up to the multiple are specials named ``<|reserved_0|>`` ...
    """
    backend = tokenizers.Tokenizer(models.BPE())
    split = pre_tokenizers.Split(Regex(split_pattern(han_run)), behavior="isolated")
    as_bytes = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.pre_tokenizer = pre_tokenizers.Sequence([split, as_bytes])
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=_round_up(vocab_size) - len(specials),
        min_frequency=min_frequency,
        show_progress=False,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
    )
    backend.train_from_iterator(texts, trainer)
    used = backend.get_vocab_size() + len(specials)
    reserved = [f"<|reserved_{n}|>" for n in range(_round_up(used) - used)]
    backend.add_special_tokens([AddedToken(name, special=True, normalized=False) for name in (*specials, *reserved)])
    return str(backend.to_str(pretty=True))


def _round_up(size: int) -> int:
    return -(-size // MULTIPLE) * MULTIPLE
