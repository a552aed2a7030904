"""The block manager against a plain model of it, and names that nobody else can have."""

import random

import pytest

from danlu.infer.blocks import SIZE, BlockManager, digests


def test_names_depend_on_everything_before_and_on_the_salt():
    tokens = list(range(3 * SIZE + 5))
    names = digests(tokens, "")
    assert len(names) == 3
    assert digests(tokens[: 2 * SIZE], "") == names[:2]
    assert digests([9999, *tokens[1:]], "")[2] != names[2], "a block is known by its whole prefix"
    assert not set(digests(tokens, "somebody else")) & set(names)
    assert digests([], "") == []


def test_blocks_are_found_again_until_they_are_needed():
    blocks, names = BlockManager(4), digests(range(3 * SIZE), "")
    mine = blocks.take(3)
    for block, name in zip(mine, names, strict=True):
        assert blocks.publish(block, name)
    blocks.release(mine)
    assert blocks.available == 4
    assert blocks.match(names) == mine
    assert (blocks.available, blocks.hits, blocks.queries) == (1, 3, 3)
    blocks.release(mine)
    blocks.take(2)  # the free one, then the end of the sequence: its beginning is worth most
    assert blocks.match(names) == mine[:2]
    with pytest.raises(MemoryError, match="1 blocks wanted, 0 left"):
        blocks.take(1)


def test_ten_thousand_random_steps_leak_nothing():
    """Users, free blocks and names are those of a model that is too simple to be wrong."""
    rng, blocks = random.Random(0), BlockManager(40)
    held: list[tuple[list[int], list[bytes]]] = []
    for _ in range(10_000):
        deed = rng.random()
        if deed < 0.45:
            length = rng.randrange(1, 7)
            # Few openings, so that sequences meet.
            names = digests([rng.randrange(2) for _ in range(length) for _ in range(SIZE)][: length * SIZE], "")
            found = blocks.match(names)
            if length - len(found) > blocks.available:
                blocks.release(found)
                continue
            fresh = blocks.take(length - len(found))
            assert not set(fresh) & {block for row, _ in held for block in row}, "a block in use was given away"
            held.append(([*found, *fresh], names))
        elif deed < 0.6 and held:
            row, names = rng.choice(held)
            for block, name in zip(row, names, strict=True):
                blocks.publish(block, name)
        elif deed < 0.7 and held:  # a twin shares some of a row
            row, names = rng.choice(held)
            cut = rng.randrange(1, len(row) + 1)
            for block in row[:cut]:
                blocks.use(block)
            held.append((row[:cut], names[:cut]))
        elif held:
            row, _ = held.pop(rng.randrange(len(held)))
            blocks.release(row)
        used = {block for row, _ in held for block in row}
        assert blocks.used == len(used)
        assert blocks.available == 40 - len(used)
    for row, _ in held:
        blocks.release(row)
    assert blocks.available == 40
    assert sorted(blocks.take(40)) == list(range(40))
    blocks.release([0])
    with pytest.raises(AssertionError, match="released too often"):
        blocks.release([0])
