"""CUDA graphs of the decode step: hundreds of small kernels are launched by one call.

In:  pages, one new token per row.
Out: logits of the next tokens.
Left out: prompts and guesses, whose shapes change with every step (``forward``); CPUs, which have no launches to save.

A graph is recorded for every number of rows and of blocks per row that comes up, rounded up so that there are few; rows
that are missing write into a block that nobody reads. All graphs share one memory pool, which is safe because none is
replayed before the logits of the last have been drawn from.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from danlu.infer.forward import Forward
from danlu.infer.storage import Pages, Storage, blocks_for
from danlu.model import Decoder

_MOST_ROWS = 64  # more are busy enough to hide what launching costs
_BLOCK_STEP = 8


@dataclass(frozen=True)
class _Graph:
    """A recorded step and the tensors that it reads and writes."""

    graph: torch.cuda.CUDAGraph
    tokens: Tensor
    positions: Tensor
    table: Tensor
    logits: Tensor


class GraphedForward(Forward):
    """A forward whose single-token steps are replayed.

    Args:
        model: its weights in the dtype they are multiplied in; they may change their values and not their place.
        output_weight: (V, D) the rows that may be drawn.
        pages: where keys and values lie.
        rows: answers under way at most.
    """

    def __init__(self, model: Decoder, output_weight: Tensor, pages: Pages, rows: int) -> None:
        super().__init__(model, output_weight)
        self._pages, self._most = pages, min(rows, _MOST_ROWS)
        self._graphs: dict[tuple[int, int], _Graph] = {}
        self._memory = torch.cuda.graph_pool_handle()

    def decode(
        self, storage: Storage, rows: Sequence[Sequence[int]], read: Sequence[int], needs: Sequence[int]
    ) -> Tensor:
        """Logits (R, T, V) behind every token of the first rows."""
        if len(rows) > self._most or max(map(len, rows)) > 1:
            return super().decode(storage, rows, read, needs)
        count, blocks = _rounded(len(rows)), -(-blocks_for(max(read) + 1) // _BLOCK_STEP) * _BLOCK_STEP
        graph = self._graphs.get((count, blocks)) or self._record(count, blocks)
        table = self._pages.table()[: len(rows), :blocks]
        graph.table.fill_(self._pages.padding)
        graph.table[: len(rows), : table.shape[1]] = table
        inputs = torch.zeros(2, count, 1, dtype=torch.int64)
        inputs[0, : len(rows)], inputs[1, : len(rows), 0] = torch.tensor(rows), torch.tensor(read)
        graph.tokens.copy_(inputs[0])
        graph.positions.copy_(inputs[1])
        graph.graph.replay()
        return graph.logits[: len(rows)]

    def _record(self, count: int, blocks: int) -> _Graph:
        tokens = torch.zeros(count, 1, dtype=torch.int64, device=self.device)
        positions = torch.zeros_like(tokens)
        table = torch.full((count, blocks), self._pages.padding, device=self.device)

        def step() -> Tensor:
            cache = self._pages.pool.paged(table)
            return self.logits(self._model.hidden(tokens, positions, cache=cache).states)

        aside = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        aside.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(aside):  # libraries allocate what they need before anything is recorded
            step()
        torch.cuda.current_stream().wait_stream(aside)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self._memory):
            logits = step()
        self._graphs[count, blocks] = _Graph(graph, tokens, positions, table, logits)
        return self._graphs[count, blocks]


def _rounded(rows: int) -> int:
    """1, 2, 4, then steps of eight."""
    return rows if rows < 3 else 4 if rows < 5 else -(-rows // 8) * 8
