"""What danlu exports as GGUF, run by llama.cpp: the same ids, the same greedy answers, the same perplexity?

In:  nothing; SmolLM2-135M-Instruct, which danlu fetches and imports; and, if given, a run of ``tang``.
Out: ``results/llamacpp-*.json`` and the table.
Left out: speed, which belongs to the engine's bench.

    python bench/llamacpp.py [RUN]
"""

from __future__ import annotations

import itertools
import math
import sys
import tempfile
from pathlib import Path
from typing import Any

import llama_cpp
import torch
import torch.nn.functional as F

from danlu import hub
from danlu.hub.gguf import open_gguf
from danlu.infer.generate import Generator
from danlu.infer.sampler import Sampling
from danlu.model import Decoder
from danlu.places import find_model
from danlu.records import Message, read_documents
from danlu.tokens import chat
from danlu.tokens.tokenizer import Tokenizer
from table import HERE, row, save

PEER = f"llama.cpp (llama-cpp-python {llama_cpp.__version__})"
ENGLISH = (
    "What is the capital of France?", "Write two sentences about the sea.", "Name three primary colours.",
    "How do I boil an egg?", "What is 7 times 8?", "Explain photosynthesis to a child.",
    "Give me a title for a story about a lost dog.", "Why is the sky blue?", "List two uses of a hammer.",
    "Translate 'good morning' into Spanish.",
)  # fmt: skip
TITLES = "春晓 月夜 登高 江雪 送别 秋思 怀古 山居 夜泊 早行"
CHINESE = tuple(f"写一首题为《{title}》的五言绝句。" for title in TITLES.split())
NEW, WINDOW, WINDOWS = 64, 512, 8


@torch.no_grad()
def our_perplexity(model: Decoder, ids: list[int]) -> float:
    """Perplexity of windows of ``WINDOW`` ids, each on its own."""
    losses = [
        F.cross_entropy(model(torch.tensor([part]))[0, :-1], torch.tensor(part[1:]))
        for part in (ids[at : at + WINDOW] for at in range(0, len(ids), WINDOW))
    ]
    return math.exp(float(torch.stack(losses).mean()))


def their_perplexity(model: llama_cpp.Llama, ids: list[int]) -> float:
    """The same by llama.cpp."""
    losses = []
    for at in range(0, len(ids), WINDOW):
        part = ids[at : at + WINDOW]
        model.reset()
        model.eval(part)
        logits = torch.from_numpy(model.scores[: len(part)].copy())
        losses.append(F.cross_entropy(logits[:-1], torch.tensor(part[1:])))
    return math.exp(float(torch.stack(losses).mean()))


def their_answer(model: llama_cpp.Llama, prompt: list[int], stop: tuple[int, ...]) -> list[int]:
    """Greedy ids, without the one that ends."""
    found: list[int] = []
    model.reset()
    for id in model.generate(prompt, temp=0.0, repeat_penalty=1.0):
        if id in stop or len(found) == NEW:
            break
        found.append(id)
    return found


def compare(name: str, folder: Path, prompts: tuple[str, ...], text: str, kind: str) -> list[dict[str, Any]]:
    """One model in one type: ids of texts, greedy answers, perplexity."""
    with tempfile.TemporaryDirectory() as place:
        file = Path(place) / "model.gguf"
        hub.export_gguf(folder, file, kind)
        opened = open_gguf(file, torch.float32)
        ours = Decoder(opened.model.config).eval()
        ours.load_state_dict(dict(opened.state))
        theirs = llama_cpp.Llama(str(file), n_ctx=1024, logits_all=True, verbose=False, n_threads=2)
        return _rows(f"GGUF {kind}, {name}", ours, opened.tokenizer, theirs, prompts, text)


def _rows(
    what: str, ours: Decoder, tokenizer: Tokenizer, theirs: llama_cpp.Llama, prompts: tuple[str, ...], text: str
) -> list[dict[str, Any]]:
    lines = [line for line in text.splitlines() if line.strip()]
    same = [theirs.tokenize(line.encode(), add_bos=False, special=False) == tokenizer.encode(line) for line in lines]
    ids = tokenizer.encode(text)[: WINDOW * WINDOWS]
    mine, other = our_perplexity(ours, ids), their_perplexity(theirs, ids)
    asked = [chat.encode_prompt(tokenizer, (Message("user", prompt),)) for prompt in prompts]
    sampling = Sampling(temperature=0.0, max_new_tokens=NEW)
    stop = chat.stop_ids(tokenizer)
    answers = Generator(ours, tokenizer).generate(asked, sampling, [0] * len(asked))
    equal = [
        [id for id in answer.tokens if id not in stop] == their_answer(theirs, prompt, stop)
        for answer, prompt in zip(answers, asked, strict=True)
    ]
    rounded = " Q" in what
    return [
        row(f"{what}: perplexity", [mine], "", "within 0.5 %", abs(mine / other - 1) < 0.005, peer=other,
            peer_name=PEER, note=f"{len(ids):,} ids in windows of {WINDOW}"),
        row(f"{what}: equal greedy answers of {NEW} tokens", [sum(equal) / len(equal)], "",
            "reported" if rounded else "all", rounded or all(equal), peer_name=PEER,
            note=f"{len(equal)} prompts" + ("; llama.cpp rounds activations to 8 bits there" if rounded else "")),
        row(f"{what}: lines of text with equal ids", [sum(same) / len(same)], "", "all", all(same), peer_name=PEER,
            note=f"{len(lines):,} lines"),
    ]  # fmt: skip


def main() -> None:
    """Compare and write the results."""
    english = "\n".join(path.read_text(encoding="utf-8") for path in sorted((HERE.parent / "docs").glob("*.md")))
    smollm2 = find_model(Path("smollm2"))
    rows = [r for kind in ("F32", "F16", "Q8_0") for r in compare("smollm2", smollm2, ENGLISH, english, kind)]
    if len(sys.argv) > 1:
        run = Path(sys.argv[1])
        documents = itertools.islice(read_documents(run / "corpus" / "documents"), 2000)
        text = "\n".join(document.text for document in documents)
        rows += [r for kind in ("F32", "Q8_0") for r in compare("tang", find_model(run, "ppo"), CHINESE, text, kind)]
    for item in rows:
        print(f"{item['what']:<64}{item['ours']:>10.4g} {item['peer'] or ''}")
    print(save("llamacpp", rows))


if __name__ == "__main__":
    main()
