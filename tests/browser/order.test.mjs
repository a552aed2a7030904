import assert from "node:assert/strict";
import { test } from "node:test";
import { beside, put, ranks, step, untouched } from "../../web/src/ops/order.ts";

test("at first all tie", () => {
  assert.deepEqual(untouched(3), [[0, 1, 2]]);
  assert.deepEqual(ranks(untouched(3)), [0, 0, 0]);
});

test("steps lead out of a tie, then past others, and stop at the ends", () => {
  assert.deepEqual(step([[0, 1, 2]], 1, -1), [[1], [0, 2]]);
  assert.deepEqual(step([[0, 1, 2]], 1, 1), [[0, 2], [1]]);
  assert.deepEqual(step([[0], [1, 2], [3]], 3, -1), [[0], [3], [1, 2]]);
  assert.deepEqual(step([[0], [1, 2], [3]], 0, 1), [[1, 2], [0], [3]]);
  assert.deepEqual(step([[0], [1]], 0, -1), [[0], [1]]);
  assert.deepEqual(step([[0], [1]], 1, 1), [[0], [1]]);
});

test("a number puts an answer at the rank that is shown with it", () => {
  assert.deepEqual(put([[0, 1, 2]], 1, 1), [[0, 2], [1]]);
  assert.deepEqual(put([[0, 2], [1]], 2, 1), [[0], [1, 2]]);
  assert.deepEqual(put([[0], [1], [2]], 0, 2), [[1], [0, 2]]);
  assert.deepEqual(put([[0], [1], [2]], 2, 0), [[0, 2], [1]]);
  assert.deepEqual(put([[0], [1]], 0, 5), [[1], [0]]);
  assert.deepEqual(put([[0], [1]], 1, 1), [[0], [1]]);
});

test("an answer that is dragged stands beside the one it was dropped at", () => {
  assert.deepEqual(beside([[0, 1, 2]], 2, 0, 0), [[2], [0, 1]]);
  assert.deepEqual(beside([[0], [1], [2]], 0, 2, 1), [[1], [2], [0]]);
  assert.deepEqual(beside([[0], [1], [2]], 2, 0, 1), [[0], [2], [1]]);
  assert.deepEqual(beside([[0, 1]], 1, 1, 0), [[0, 1]]);
});

test("ranks are told by place and have no gaps, whatever was done before", () => {
  let seed = 1;
  const draw = (n) => (seed = (seed * 48271) % 2147483647) % n;
  for (let round = 0; round < 300; round++) {
    const n = 2 + draw(5);
    let tiers = untouched(n);
    for (let move = 0; move < 12; move++) {
      const place = draw(n);
      const moves = [
        () => step(tiers, place, -1), () => step(tiers, place, 1), () => put(tiers, place, draw(6)),
        () => beside(tiers, place, draw(n), draw(2)),
      ];
      tiers = moves[draw(4)]();
      assert.deepEqual(tiers.flat().sort(), [...Array(n).keys()]);
      assert.deepEqual([...new Set(ranks(tiers))].sort(), [...Array(tiers.length).keys()]);
    }
  }
});
