"""A tiny model that knows three dialogues by heart, and a real server on a real socket."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
import uvicorn
from fastapi import FastAPI
from torch.nn.functional import cross_entropy
from torch.nn.utils.rnn import pad_sequence

from danlu import hub
from danlu.align.preferences import PreferenceStore
from danlu.device import choose
from danlu.model import Decoder, ModelConfig
from danlu.records import Conversation, Message
from danlu.serve import Options, Rates, create_app
from danlu.serve.server import listen
from danlu.serve.store import ServeStore
from danlu.serve.worker import Setup
from danlu.tokens import chat
from danlu.tokens.bpe import train_bpe
from danlu.tokens.tokenizer import Tokenizer

HOSTILE = "<img src=x onerror=alert(1)> [link](javascript:alert(2)) **bold** ![pixel](http://elsewhere.test/p)"
DIALOGUES = {
    "greet": "Hello, 你好。",
    "attack": HOSTILE,
    # Never learns to end: its last token is not trained. As cells of a table, it is no loop that ``repair`` would cut.
    "count": "and on | " * 30,
}
CONTEXT = 4096


@dataclass(frozen=True)
class Live:
    """A server that runs: its address, its application, its preference store."""

    url: str
    app: FastAPI
    store: PreferenceStore


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> None:
    """Models this small are slower on two threads, and much slower where others compute too."""
    choose()  # sets the number of threads once per process: afterwards ours stays
    torch.set_num_threads(1)


def build_tokenizer() -> Tokenizer:
    texts = [*DIALOGUES, *DIALOGUES.values()]
    return Tokenizer(train_bpe(texts, vocab_size=384, han_run=1, min_frequency=9, specials=chat.SPECIALS),
                     chat.TOKENIZER_CONFIG)  # fmt: skip


def build_model(tokenizer: Tokenizer, seed: int) -> Decoder:
    torch.manual_seed(seed)
    config = ModelConfig(vocab_size=tokenizer.vocab_size, n_layers=2, d_model=64, n_heads=4, n_kv_heads=2, head_dim=16,
                         d_ff=128, max_seq_len=CONTEXT)  # fmt: skip
    return Decoder(config)


def learn_by_heart(model: Decoder, tokenizer: Tokenizer, steps: int = 150) -> None:
    """Overfit the dialogues, so that greedy answers are known word for word."""
    tokens, targets = [], []
    for asked, answer in DIALOGUES.items():
        turns = (Message("user", asked), Message("assistant", answer))
        ids, mask = chat.encode_conversation(tokenizer, Conversation(turns))
        learnt = [id if said else -100 for id, said in zip(ids, mask, strict=True)]
        if asked == "count":
            learnt[-1] = -100
        tokens.append(torch.tensor(ids[:-1]))
        targets.append(torch.tensor(learnt[1:]))
    batch, wanted = pad_sequence(tokens, True, tokenizer.pad), pad_sequence(targets, True, -100)
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3)
    for _ in range(steps):
        optimizer.zero_grad()
        cross_entropy(model(batch).flatten(0, 1), wanted.flatten()).backward()
        optimizer.step()


@pytest.fixture(scope="session")
def model_dirs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """``knows`` has learnt the dialogues; ``random`` has learnt nothing."""
    folder = tmp_path_factory.mktemp("models")
    tokenizer = build_tokenizer()
    knows, random = build_model(tokenizer, 1), build_model(tokenizer, 2)
    learn_by_heart(knows, tokenizer)
    hub.save(knows, folder / "knows", tokenizer, card={"name": "knows"})
    hub.save(random, folder / "random", tokenizer, card={"name": "random"})
    return {"knows": folder / "knows", "random": folder / "random"}


@contextlib.contextmanager
def serving(app: FastAPI, store: PreferenceStore) -> Iterator[Live]:
    """Run an application with uvicorn in a thread."""
    listening = listen(0)
    server = uvicorn.Server(
        uvicorn.Config(app, log_level="warning", timeout_graceful_shutdown=1, timeout_keep_alive=600)
    )
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
    thread.start()
    try:
        while not server.started:
            assert thread.is_alive(), "the server did not start"
            time.sleep(0.02)
        yield Live(f"http://127.0.0.1:{listening.getsockname()[1]}", app, store)
    finally:
        server.should_exit = True
        thread.join()
        listening.close()


@pytest.fixture(scope="session")
def live(model_dirs: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Live]:
    store = PreferenceStore(tmp_path_factory.mktemp("store") / "votes.sqlite")
    options = Options(setup=Setup(rows=2), waiting=2, linger=20.0)
    with serving(create_app(model_dirs, store, options), store) as running:
        yield running
    store.close()


@dataclass(frozen=True)
class Guarded:
    """A server with accounts: alice and bob may chat, the operator may do everything."""

    live: Live
    alice: str
    bob: str
    operator: str
    kept: ServeStore
    clock: Clock


class Clock:
    """Stands still until it is moved."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture(scope="session")
def guarded(model_dirs: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Guarded]:
    store, clock = PreferenceStore(tmp_path_factory.mktemp("guarded") / "votes.sqlite"), Clock()
    kept = ServeStore(store.database)
    alice, bob = (kept.people.add_key(owner, requests=0, tokens=0)[1] for owner in ("alice", "bob"))
    operator = kept.people.add_key("operator", scopes=("chat", "operator"), requests=0, tokens=0)[1]
    app = create_app({"knows": model_dirs["knows"]}, store, Options(rates=Rates(3, 100, clock)))
    with serving(app, store) as running:
        yield Guarded(running, alice, bob, operator, kept, clock)
    store.close()


@pytest.fixture
def restarted(model_dirs: dict[str, Path], live: Live) -> Iterator[Live]:
    """The same store behind another server, which serves one of the models only."""
    with serving(create_app({"knows": model_dirs["knows"]}, live.store), live.store) as running:
        yield running
