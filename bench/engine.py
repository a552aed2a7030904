"""Decoding of SmolLM2-135M beside llama.cpp and transformers: one stream, 8 and 16 streams, and the first token.

In:  nothing; ``smollm2``, which danlu fetches and imports. With --random weights are drawn; with --bits 8 they are
     rounded to 8 bits, the head's too, here and in llama.cpp (Q8_0).
Out: ``results/engine-*.json`` and the table.
Left out: the server (``serve.py``), quality.

    python bench/engine.py [--rounds 5] [--bits 8] [--peer-python PYTHON]

Each round measures ours and every peer in turn, for each number of streams: prompts of 64 tokens, 128 new ones, greedy,
nothing stops early. Decoding is ``127 B / (seconds of 128 tokens - seconds of the first)``. llama.cpp runs in a process
of its own (two thread pools in one process would disturb each other), which sleeps while we are measured; --peer-python
names an interpreter that has llama-cpp-python.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

with contextlib.suppress(ImportError):  # the interpreter that has llama-cpp-python may have nothing else
    import torch

NEW, PROMPT, STREAMS = 128, 64, (1, 8, 16)
Speeds = tuple[float, float]  # tokens a second of decoding, seconds to the first token


def ours(generator: Any) -> Callable[[int], Speeds]:
    """Our engine, as the server runs it."""
    from danlu.infer import Request, Sampling

    engines: dict[int, Any] = {}

    def measure(streams: int) -> Speeds:
        if streams not in engines:
            engines[streams] = generator.engine(streams, budget=PROMPT * streams + streams, expected=PROMPT + NEW)
        engine = engines[streams]
        started = time.perf_counter()
        for prompt in prompts(streams, generator.tokenizer.vocab_size):
            engine.add(Request(prompt, Sampling(temperature=0.0, max_new_tokens=NEW), 0))
        first = 0.0
        while engine.running or engine.waiting:
            if engine.step() and not first:
                first = time.perf_counter() - started
        return speeds(streams, first, time.perf_counter() - started)

    return measure


def prompts(streams: int, vocab_size: int) -> list[tuple[int, ...]]:
    """Different prompts, so that nobody reads one for all."""
    rng = random.Random(0)
    return [tuple(rng.randrange(1000, vocab_size - 1000) for _ in range(PROMPT)) for _ in range(streams)]


def speeds(streams: int, first: float, whole: float) -> Speeds:
    """From seconds to speeds."""
    return streams * (NEW - 1) / (whole - first), first


def theirs(folder: Path, device: str, dtype: torch.dtype) -> Callable[[int], Speeds]:
    """transformers with a static cache."""
    import transformers

    transformers.logging.set_verbosity_error()
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=dtype).to(device).eval()
    vocab = model.config.vocab_size

    def generate(streams: int, new: int) -> float:
        tokens = torch.tensor(prompts(streams, vocab), device=device)
        started = time.perf_counter()
        model.generate(
            tokens, attention_mask=torch.ones_like(tokens), max_new_tokens=new, min_new_tokens=new, do_sample=False,
            cache_implementation="static", disable_compile=True, pad_token_id=0,
        )  # fmt: skip
        if device == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter() - started

    def measure(streams: int) -> Speeds:
        return speeds(streams, generate(streams, 1), generate(streams, NEW))

    return measure


class LlamaCpp:
    """llama.cpp in a process of its own."""

    def __init__(self, python: str, file: Path, threads: int) -> None:
        command = [python, __file__, "--llama", str(file), "--threads", str(threads)]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.name = str(self._answer())

    def __call__(self, streams: int) -> Speeds:
        assert self._process.stdin is not None
        self._process.stdin.write(f"{streams}\n")
        self._process.stdin.flush()
        decode, first = self._answer()
        return decode, first

    def close(self) -> None:
        """End the process."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()

    def _answer(self) -> Any:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            if line.startswith("{"):
                return json.loads(line)["answer"]
        raise SystemExit("llama.cpp did not answer; is llama-cpp-python installed where --peer-python says?")


def llama(file: str, threads: int) -> None:
    """The other end: reads numbers of streams, prints speeds."""
    import ctypes

    import llama_cpp
    import numpy as np

    @llama_cpp.llama_log_callback
    def silent(*_: object) -> None:
        """llama.cpp says much."""

    llama_cpp.llama_log_set(silent, ctypes.c_void_p(0))
    model = llama_cpp.llama_model_load_from_file(file.encode(), llama_cpp.llama_model_default_params())
    vocab = llama_cpp.llama_vocab_n_tokens(llama_cpp.llama_model_get_vocab(model))

    def measure(streams: int) -> Speeds:
        settings = llama_cpp.llama_context_default_params()
        settings.n_ctx, settings.n_seq_max = streams * (PROMPT + NEW + 64), streams
        settings.n_batch = settings.n_ubatch = 2048
        settings.n_threads = settings.n_threads_batch = threads
        context = llama_cpp.llama_init_from_model(model, settings)
        batch = llama_cpp.llama_batch_init(streams * PROMPT, 0, 1)

        def run(rows: list[list[int]], start: int) -> list[int]:
            at, ends = 0, []
            for stream, row in enumerate(rows):
                for i, token in enumerate(row):
                    batch.token[at], batch.pos[at], batch.n_seq_id[at] = token, start + i, 1
                    batch.seq_id[at][0], batch.logits[at] = stream, i == len(row) - 1
                    at += 1
                ends.append(at - 1)
            batch.n_tokens = at
            if llama_cpp.llama_decode(context, batch):
                raise SystemExit("llama_decode failed")
            logits = (llama_cpp.llama_get_logits_ith(context, end) for end in ends)
            return [int(np.ctypeslib.as_array(row, shape=(vocab,)).argmax()) for row in logits]

        rows = [list(prompt) for prompt in prompts(streams, vocab)]
        started = time.perf_counter()
        drawn = run(rows, 0)
        first = time.perf_counter() - started
        for step in range(NEW - 1):
            drawn = run([[token] for token in drawn], PROMPT + step)
        found = speeds(streams, first, time.perf_counter() - started)
        llama_cpp.llama_batch_free(batch)
        llama_cpp.llama_free(context)
        return found

    print(json.dumps({"answer": f"llama.cpp (llama-cpp-python {llama_cpp.__version__})"}), flush=True)
    for line in sys.stdin:
        print(json.dumps({"answer": measure(int(line))}), flush=True)


def rounds(times: int, runners: dict[str, Callable[[int], Speeds]]) -> dict[int, dict[str, list[Speeds]]]:
    """A B C A B C, by number of streams; the first round warms up and is not kept."""
    found: dict[int, dict[str, list[Speeds]]] = {streams: {name: [] for name in runners} for streams in STREAMS}
    for streams in STREAMS:
        for turn in range(times + 1):
            for name, measure in runners.items():
                seen = measure(streams)
                if turn:
                    found[streams][name].append(seen)
        said = {name: round(statistics.median(s for s, _ in seen), 1) for name, seen in found[streams].items()}
        print(streams, said, flush=True)
    return found


def claims(
    found: dict[int, dict[str, list[Speeds]]], peers: dict[str, str], roof: float | None, bits: int = 16
) -> list[dict[str, Any]]:
    """Rows: ours beside each peer."""
    from table import row

    targets = {("llama", 1): 1.0, ("llama", 8): 1.5, ("llama", 16): 1.5, ("hf", 8): 2.0, ("hf", 16): 2.0}
    rows = []
    best_llama = max(
        (statistics.median(s for s, _ in by["llama"]) for by in found.values() if "llama" in by), default=0.0
    )
    for streams, by in found.items():
        mine = [speed for speed, _ in by["ours"]]
        for key, name in peers.items():
            peer = statistics.median(speed for speed, _ in by[key])
            peer = best_llama if key == "llama" and streams > 1 else peer
            least = targets.get((key, streams))
            met = least is None or statistics.median(mine) >= least * peer
            target = "reported" if least is None else f">= {least:g} x {name}"
            what = f"decoding SmolLM2-135M{', 8 bits' * (bits == 8)}, {streams} stream{'s' * (streams > 1)}"
            rows.append(row(what, mine, "tokens/s", target, met, peer=peer, peer_name=name))
        if "hf" in by and streams == 1:
            firsts = [1000 * first for _, first in by["ours"]]
            peer = 1000 * statistics.median(first for _, first in by["hf"])
            met = statistics.median(firsts) <= peer
            rows.append(row("first token of a prompt of 64", firsts, "ms", "<= transformers", met, peer, peers["hf"]))
        if roof and streams == 1:
            share = [speed / roof for speed in mine]
            met = statistics.median(share) >= 0.8
            rows.append(row("decoding, share of the memory roof", share, "", ">= 0.8", met, note=f"roof {roof:.0f}/s"))
    return rows


def prepared(folder: Path, drawn: bool, bits: int) -> tuple[Any, Path]:
    """Our generator, and a directory that transformers and danlu read."""
    import dataclasses

    from danlu import hub
    from danlu.compress.quantize import quantize
    from danlu.console import Console
    from danlu.device import choose
    from danlu.hub import shelf
    from danlu.infer import Generator
    from danlu.infer.kernels import kernels_for
    from danlu.model import Decoder, preset
    from danlu.tokens.tokenizer import Tokenizer

    place = choose()
    if drawn:
        tokenizer = Tokenizer.load(folder)
        shape = dataclasses.replace(preset("smollm2-135m"), vocab_size=tokenizer.vocab_size)
        torch.manual_seed(0)
        hub.save(Decoder(shape).to(place.compute_dtype), folder / "random", tokenizer, card={"title": "bench"})
        source = folder / "random"
    else:
        source = shelf.obtain(Path("smollm2"), Console())
    model, tokenizer = hub.load_pretrained(source, dtype=None)
    model = quantize(model) if bits == 8 else model
    generator = Generator(model.to(place.kind), tokenizer, place.compute_dtype, kernels_for(place))
    generator.stop_ids = ()  # nothing stops early, here as in the peers
    return generator, source


def main() -> None:
    """Measure and write the results."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--bits", type=int, choices=(8, 16), default=16, help="of weights")
    parser.add_argument("--peer-python", default=sys.executable)
    parser.add_argument("--random", type=Path, metavar="DIR", help="drawn weights, with the tokenizer in DIR")
    parser.add_argument("--roof", type=float, help="bytes a second that the memory gives")
    parser.add_argument("--llama", help=argparse.SUPPRESS)
    parser.add_argument("--threads", type=int, default=2)
    asked = parser.parse_args()
    if asked.llama:
        llama(asked.llama, asked.threads)
        return
    from table import save

    generator, source = prepared(asked.random, asked.random is not None, asked.bits)
    device, dtype = generator.output_weight.device.type, generator.dtype
    runners: dict[str, Callable[[int], Speeds]] = {"ours": ours(generator)}
    peers = {}
    if asked.bits == 16:
        import transformers

        runners["hf"] = theirs(source, device, dtype)
        peers["hf"] = f"transformers {transformers.__version__}, static cache"
    with tempfile.TemporaryDirectory() as folder:
        if device == "cpu" and asked.random is None:
            from danlu.hub.convert import export_gguf

            kind, file = {16: "F16", 8: "Q8_0"}[asked.bits], Path(folder) / "model.gguf"
            export_gguf(source, file, kind)
            runners["llama"] = peer = LlamaCpp(asked.peer_python, file, asked.threads)
            peers["llama"] = f"{peer.name}, {kind}"
        found = rounds(asked.rounds, runners)
    size = sum(weight.nbytes for weight in generator.model.parameters())
    rows = claims(found, peers, asked.roof / size if asked.roof else None, asked.bits)
    print(save("engine" if asked.bits == 16 else "engine-8bit", rows))


if __name__ == "__main__":
    main()
