"""The server under load: open-loop arrivals at half, once and twice what it can do; or hours of it with people leaving.

In:  a model directory or run; a real ``danlu serve`` in a process of its own.
Out: ``results/serve-*.json`` and the table: time to the first token and between tokens, goodput, what was turned away.
Left out: speed of one answer, which belongs to ``engine.py``.

    python bench/serve.py MODEL [SECONDS]          capacity, then three loads of SECONDS each (30)
    python bench/serve.py MODEL --soak MINUTES     random arrivals and departures; memory must stay flat

Arrivals are Poisson and do not wait for answers (an open loop): a server that slows down is not spared, as it would be
by clients that wait. Prompts are a short and a long kind, answers short and long, drawn from a fixed seed.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx

from table import row, save

TTFT_GOAL, ITL_GOAL = 2.0, 0.25  # seconds: an answer counts as good within both
SHORT, LONG = "写一首五言绝句。", "写一首五言绝句。" * 5
WARM_UP = 4


@dataclass
class Seen:
    """What a client saw: the status, seconds to the first token, between tokens, and to the end."""

    status: int
    first: float = 0.0
    gaps: list[float] = field(default_factory=list)
    tokens: int = 0

    @property
    def good(self) -> bool:
        """Answered in time."""
        return self.status == 200 and self.first <= TTFT_GOAL and statistics.fmean(self.gaps or [0]) <= ITL_GOAL


@contextmanager
def served(model: Path) -> Iterator[tuple[str, list[int]]]:
    """``danlu serve`` on a free port; its address and its processes, the worker last."""
    with tempfile.TemporaryDirectory() as folder:
        command = [
            sys.executable, "-m", "danlu.cli", "serve", str(model), "--port", "8399", "--store", f"{folder}/p.db",
        ]  # fmt: skip
        process = subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True)
        try:
            assert process.stderr is not None
            found = None
            while found is None:
                line = process.stderr.readline()
                if not line:
                    raise SystemExit("the server did not start")
                found = re.search(r"http://[\d.:]+", line)
            children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
            yield found[0], [process.pid, *map(int, children)]
        finally:
            process.terminate()
            process.wait()


async def ask(client: httpx.AsyncClient, model: str, rng: random.Random, patience: float = 600.0) -> Seen:
    """One streamed answer; a client without patience leaves."""
    body = {
        "model": model, "stream": True, "max_tokens": rng.choice((16, 32, 64)), "seed": rng.randrange(10**6),
        "messages": [{"role": "user", "content": LONG if rng.random() < 0.2 else SHORT}], "temperature": 1.0,
        "repair": False,
    }  # fmt: skip
    started = last = time.perf_counter()
    try:
        async with asyncio.timeout(patience), client.stream("POST", "/v1/chat/completions", json=body) as answer:
            seen = Seen(answer.status_code)
            if answer.status_code != 200:
                return seen
            async for line in answer.aiter_lines():
                if '"content"' not in line or not json.loads(line[6:])["choices"][0]["delta"].get("content"):
                    continue
                now = time.perf_counter()
                if seen.tokens:
                    seen.gaps.append(now - last)
                else:
                    seen.first = now - started
                seen.tokens, last = seen.tokens + 1, now
            return seen
    except TimeoutError:
        return Seen(499)


@asynccontextmanager
async def clients(address: str) -> AsyncIterator[tuple[httpx.AsyncClient, str]]:
    """A client with as many connections as it likes, and the name of the model."""
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=64)
    async with httpx.AsyncClient(base_url=address, timeout=600, limits=limits) as client:
        yield client, (await client.get("/v1/models")).json()["data"][0]["id"]


async def capacity(address: str, seconds: float, streams: int = 16) -> float:
    """Answers a second with as many clients as the server has rows, each asking again at once."""
    rng, done = random.Random(0), 0
    async with clients(address) as (client, model):
        await asyncio.gather(*(ask(client, model, rng) for _ in range(WARM_UP)))
        end = time.perf_counter() + seconds

        async def one() -> None:
            nonlocal done
            while time.perf_counter() < end:
                seen = await ask(client, model, rng)
                done += seen.status == 200 and time.perf_counter() < end

        await asyncio.gather(*(one() for _ in range(streams)))
    return done / seconds


async def load(address: str, rate: float, seconds: float, seed: int, leaving: float = 0.0) -> list[Seen]:
    """Poisson arrivals of ``rate`` a second for so long; a share of them leaves at some time within two seconds."""
    rng, tasks = random.Random(seed), []
    async with clients(address) as (client, model):
        end = time.perf_counter() + seconds
        while (left := end - time.perf_counter()) > 0:
            patience = rng.uniform(0, 2) if rng.random() < leaving else 600.0
            tasks.append(asyncio.create_task(ask(client, model, rng, patience)))
            await asyncio.sleep(min(rng.expovariate(rate), left))
        return list(await asyncio.gather(*tasks))


def percentiles(values: list[float]) -> str:
    """Median, 95th and 99th in milliseconds."""
    if not values:
        return "none"
    cuts = statistics.quantiles(values, n=100, method="inclusive") if len(values) > 1 else values * 99
    return " / ".join(f"{1000 * cuts[at - 1]:.0f}" for at in (50, 95, 99))


def p95(values: list[float]) -> float:
    """The 95th percentile."""
    return statistics.quantiles(values, n=100, method="inclusive")[94] if len(values) > 1 else sum(values)


def summary(seen: list[Seen], seconds: float) -> tuple[str, float]:
    """A sentence, and good answers a second."""
    admitted = [one for one in seen if one.status == 200]
    counts = Counter(one.status for one in seen)
    good = sum(one.good for one in seen) / seconds
    gaps = [gap for one in admitted for gap in one.gaps]
    return (
        f"{len(seen)} arrivals, {dict(counts)}; first token {percentiles([o.first for o in admitted])} ms and between "
        f"tokens {percentiles(gaps)} ms (median / p95 / p99); goodput {good:.2f}/s within {TTFT_GOAL:g} s and "
        f"{1000 * ITL_GOAL:.0f} ms"
    ), good


async def three_loads(address: str, seconds: float) -> list[dict[str, Any]]:
    """Rows for half, once and twice the capacity."""
    able = await capacity(address, seconds)
    rows = [row("server: answers a second with 16 clients", [able], "1/s", "reported", True)]
    firsts: dict[float, float] = {}
    for times in (0.5, 1.0, 2.0):
        seen = await load(address, able * times, seconds, seed=int(10 * times))
        note, good = summary(seen, seconds)
        firsts[times] = p95([one.first for one in seen if one.status == 200])
        rows.append(row(f"server: goodput at {times:g}x of capacity", [good], "1/s", "reported", True, note=note))
        refused = {one.status for one in seen} - {200}
        if times == 2.0:
            held = firsts[2.0] <= 2 * firsts[1.0] and refused <= {429, 503}
            what = "server: p95 to the first token at 2x, of admitted requests"
            note = f"{1000 * firsts[1.0]:.0f} ms at 1x; others answered {sorted(refused)}"
            target = "<= 2 x the figure at 1x, the rest 429 or 503"
            rows.append(row(what, [1000 * firsts[2.0]], "ms", target, held, note=note))
    return rows


async def soak(address: str, processes: list[int], minutes: float) -> list[dict[str, Any]]:
    """Memory of server and worker every half minute of random load with people who leave."""
    able = max(await capacity(address, 15), 0.5)
    memory: list[float] = []
    started, seed = time.perf_counter(), 0
    while time.perf_counter() - started < 60 * minutes:
        await load(address, able * random.Random(seed).choice((0.3, 1.0, 1.6)), 28, seed, leaving=0.3)
        await asyncio.sleep(2)
        memory.append(sum(resident(pid) for pid in processes) / 2**20)
        print(f"{(time.perf_counter() - started) / 60:5.1f} min {memory[-1]:8.1f} MiB", flush=True)
        seed += 1
    third = max(len(memory) // 3, 1)
    early, late = statistics.fmean(memory[third : 2 * third] or memory), statistics.fmean(memory[-third:])
    async with httpx.AsyncClient(base_url=address, timeout=60) as client:
        metrics = (await client.get("/metrics")).text
    left = [line for line in metrics.splitlines() if re.match(r"danlu_(running|waiting|kv_cache_usage_ratio)\b", line)]
    note = f"MiB in the middle third {early:.1f}, in the last {late:.1f}; afterwards {'; '.join(left)}"
    what = f"server: memory after {minutes:g} minutes of random load, 30 % leaving"
    return [row(what, memory, "MiB", "last third <= 1.03 x the middle", late <= 1.03 * early, note=note)]


def resident(pid: int) -> int:
    """Bytes of memory that a process holds."""
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * 4096


def main() -> None:
    """Measure and write the results."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", type=Path)
    parser.add_argument("seconds", type=float, nargs="?", default=30.0)
    parser.add_argument("--soak", type=float, metavar="MINUTES")
    asked = parser.parse_args()
    with served(asked.model) as (address, processes):
        if asked.soak:
            rows, name = asyncio.run(soak(address, processes, asked.soak)), "soak"
        else:
            rows, name = asyncio.run(three_loads(address, asked.seconds)), "serve"
    for item in rows:
        print(f"{item['what']:<66}{item['ours']:>10.2f} {item['unit']:<6}{item.get('note', '')}")
    print(save(name, rows))


if __name__ == "__main__":
    main()
