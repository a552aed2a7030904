"""Multi-token prediction: transformers' own numbers, documents kept apart, and something learnt."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from danlu import hub
from danlu.model import Decoder, preset
from danlu.tokens.loader import IGNORE, Batch
from danlu.train.language import next_token_loss
from danlu.train.optim import build_optimizer
from danlu.train.pretrain import PretrainSettings

VOCAB, LENGTH = 96, 20


def random_model(n_mtp: int = 2, **changes: Any) -> Decoder:
    torch.manual_seed(2)
    model = Decoder(preset("deepseek-tiny", vocab_size=VOCAB, n_mtp=n_mtp, **changes))
    with torch.no_grad():
        for value in model.parameters():
            value.add_(torch.randn_like(value) * 0.1)
    return model


def test_depths_are_transformers_own(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    layers = pytest.importorskip("transformers.modeling_layers")
    model = random_model().eval()
    hub.save(model, tmp_path, None, card={"title": "t"})
    assert hub.read_config(tmp_path)[0].n_mtp == 2
    main = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, attn_implementation="eager").eval()
    main._keys_to_ignore_on_load_unexpected = [r"model\.layers\.[23]\."]  # it knows the layer of V3 itself only
    theirs = layers.MtpModel.from_pretrained(main).eval()
    tokens = torch.randint(0, VOCAB, (2, LENGTH))
    with torch.no_grad():
        states = main.model(tokens).last_hidden_state
        ours = model.foresee(model.hidden(tokens).states, tokens)
        for k, found in enumerate(ours):
            places = torch.arange(k + 1, LENGTH).expand(2, -1)
            states = theirs.forward_layer(k, states[:, :-1], places, None, input_ids=tokens[:, k + 1 :])
            torch.testing.assert_close(found.states, states, atol=2e-5, rtol=1e-5)


def test_round_trip_and_what_transformers_leaves_out(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    model = random_model()
    hub.save(model, tmp_path / "ours", None, card={"title": "t"})
    again = hub.load(tmp_path / "ours")
    assert all(torch.equal(value, again.state_dict()[name]) for name, value in model.state_dict().items())
    transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "ours").save_pretrained(tmp_path / "theirs")
    plain = hub.load(tmp_path / "theirs")  # its config still counts the layers that it did not write
    assert plain.config.n_mtp == 0
    tokens = torch.randint(0, VOCAB, (1, LENGTH))
    with torch.no_grad():
        assert torch.equal(plain(tokens), model(tokens))


def batch_of(rows: list[list[int]]) -> Batch:
    """One row of documents, packed as the loader packs."""
    tokens = [t for row in rows for t in row[:-1]]
    targets = [t for row in rows for t in row[1:]]
    documents = [i for i, row in enumerate(rows) for _ in row[1:]]
    places = [p for row in rows for p in range(len(row) - 1)]
    as_row = [torch.tensor([values]) for values in (tokens, targets, places, documents)]
    return Batch(as_row[0], as_row[1], as_row[2], as_row[3].int(), len(tokens))


def test_documents_in_a_row_do_not_meet() -> None:
    model = random_model(n_experts=0, top_k=0, n_shared_experts=0, n_dense_layers=0)
    rows = [list(range(5, 14)), list(range(30, 33)), list(range(50, 62))]
    together = next_token_loss(model, batch_of(rows), mtp_weight=0.5)
    apart = [next_token_loss(model, batch_of([row]), mtp_weight=0.5) for row in rows]
    torch.testing.assert_close(together.loss_sum, sum(one.loss_sum for one in apart))  # type: ignore[arg-type]
    assert together.sums["mtp_loss"] == pytest.approx(sum(one.sums["mtp_loss"] for one in apart), rel=1e-5)
    plain = next_token_loss(model, batch_of(rows))
    assert float(together.loss_sum.detach()) == pytest.approx(
        float(plain.loss_sum.detach()) + 0.5 * together.sums["mtp_loss"], rel=1e-6
    )
    assert plain.n == together.n == sum(len(row) - 1 for row in rows)


def test_every_parameter_learns_and_the_second_next_token_is_foreseen() -> None:
    model = random_model(1)
    settings = PretrainSettings(optimizer="muon", steps=60)
    optimizer = build_optimizer(model, settings)
    assert "mtp.0.merge.weight" in optimizer.params
    first = last = 0.0
    for _ in range(60):
        start = torch.randint(0, VOCAB, (16, 1))
        tokens = (start + 7 * torch.arange(LENGTH)) % VOCAB  # the next but one follows from any two
        targets = tokens.roll(-1, 1).index_fill(1, torch.tensor([LENGTH - 1]), IGNORE)
        places, documents = torch.arange(LENGTH).expand(16, -1), torch.zeros_like(tokens, dtype=torch.int32)
        batch = Batch(tokens, targets, places, documents, tokens.numel())
        optimizer.zero_grad()
        output = next_token_loss(model, batch, mtp_weight=0.3)
        output.loss_sum.backward()  # type: ignore[no-untyped-call]
        assert all(p.grad is not None for p in model.parameters())
        assert output.counts is not None
        torch._foreach_mul_([p.grad for p in model.parameters()], 1 / output.n)
        optimizer.step(5e-3)
        model.update_router_bias(output.counts, 1e-3)
        last = output.sums["mtp_loss"] / output.n
        first = first or last
    assert last < 0.3 * first
