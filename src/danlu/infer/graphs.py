"""CUDA graphs of the decode step: hundreds of small kernels are launched by one call.

In:  pages, one new token per row.
Out: states and logits of the next tokens.
Left out: prompts and guesses, whose shapes change with every step (``forward``); CPUs, which have no launches to save.

A graph is recorded for every number of rows and of blocks per row that comes up often, rounded up so that there are
few; missing rows write into a block that nobody reads. All graphs share one memory pool, which is safe because none
is replayed before the logits of the last have been drawn from. To record costs as much as a few steps that are launched
one kernel at a time: a batch of short answers that end one after the other meets a dozen sizes, each for a step or two.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from danlu.infer.forward import Decoded, Forward
from danlu.infer.storage import Pages, Storage, blocks_for
from danlu.model import Decoder

_MOST_ROWS = 256  # more are busy enough to hide what launching costs
_UNRECORDED = 8  # steps of a size before it is recorded
_BLOCK_STEP = 8


@dataclass
class _Graph:
    """A recorded step and the tensors that it reads and writes.

    Attributes:
        inputs: (2, R) tokens and positions.
        table: (R, n) blocks.
        decoded: states (R, 1, D) and logits (R, 1, V).
        shown: the pages' table that ``table`` was copied from, and how many of its rows.
    """

    graph: torch.cuda.CUDAGraph
    inputs: Tensor
    table: Tensor
    decoded: Decoded
    shown: tuple[Tensor | None, int] = (None, 0)

    def show(self, pages: Pages, rows: int) -> None:
        """Take over the blocks of the first rows; they change only when rows come and go."""
        table = pages.table()
        if self.shown[0] is not table or self.shown[1] != rows:
            part = table[:rows, : self.table.shape[1]]
            self.table.fill_(pages.padding)
            self.table[:rows, : part.shape[1]] = part
            self.shown = table, rows


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
        self._met: Counter[tuple[int, int]] = Counter()
        self._outputs: tuple[Tensor, ...] = ()  # of the most rows; all graphs write into them, and keep nothing else
        self._memory = torch.cuda.graph_pool_handle()

    def decode(
        self, storage: Storage, rows: Sequence[Sequence[int]], read: Sequence[int], needs: Sequence[int]
    ) -> Decoded:
        """States and logits behind every token of the first rows."""
        count = _rounded(len(rows))
        if len(rows) > self._most or count > _recordable(self._model) or max(map(len, rows)) > 1:
            return super().decode(storage, rows, read, needs)
        size = count, _rounded_blocks(blocks_for(max(read) + 1))
        self._met[size] += 1
        if self._met[size] <= _UNRECORDED:
            return super().decode(storage, rows, read, needs)
        graph = self._graphs.get(size) or self._record(*size)
        graph.show(self._pages, len(rows))
        idle = [0] * (count - len(rows))
        graph.inputs.copy_(torch.tensor([[row[0] for row in rows] + idle, [*read, *idle]]))
        graph.graph.replay()
        return Decoded(*(part[: len(rows)] for part in graph.decoded))

    def _record(self, count: int, blocks: int) -> _Graph:
        inputs = torch.zeros(2, count, dtype=torch.int64, device=self.device)
        table = torch.full((count, blocks), self._pages.padding, device=self.device)

        def step() -> Decoded:
            cache = self._pages.pool.paged(table)
            states = self._model.hidden(inputs[0, :, None], inputs[1, :, None], cache=cache).states
            return Decoded(states, self.logits(states))

        aside = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        aside.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(aside):  # libraries allocate what they need before anything is recorded
            shown = step()
        torch.cuda.current_stream().wait_stream(aside)
        self._outputs = self._outputs or tuple(part.new_empty(_rounded(self._most), *part.shape[1:]) for part in shown)
        graph = torch.cuda.CUDAGraph()
        # Other threads may go on: a server loads the next model, a trainer puts the next batch together.
        with torch.cuda.graph(graph, pool=self._memory, capture_error_mode="thread_local"):
            for whole, part in zip(self._outputs, step(), strict=True):
                whole[:count].copy_(part)
        decoded = Decoded(*(whole[:count] for whole in self._outputs))
        self._graphs[count, blocks] = _Graph(graph, inputs, table, decoded)
        return self._graphs[count, blocks]


def _recordable(model: Decoder) -> int:
    """Rows of a step that waits for nothing: the loop over experts, which fp32 is left with, waits for each of them."""
    config = model.config
    if not config.n_experts or model.compute_dtype == torch.bfloat16:
        return _MOST_ROWS
    return config.n_experts // config.top_k  # so few are gathered (``model.moe``)


def _rounded_blocks(blocks: int) -> int:
    """Steps of eight, then of a quarter to an eighth of what there is: a few dozen sizes at most."""
    step = max(_BLOCK_STEP, 1 << max(blocks.bit_length() - 3, 0))
    return -(-blocks // step) * step


def _rounded(rows: int) -> int:
    """1, 2, 4, then steps of eight, from 64 of 32."""
    if rows < 5:
        return rows if rows < 3 else 4
    step = 8 if rows <= 64 else 32
    return -(-rows // step) * step
