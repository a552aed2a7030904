"""BERT against transformers: both heads, padding, segments, gradients, files there and back."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file
from torch import nn

from danlu import hub
from danlu.errors import UserError
from danlu.model import Encoder

transformers = pytest.importorskip("transformers")

VOCAB, LENGTH = 97, 24
HEADS = {"mlm": "BertForMaskedLM", "classes": "BertForSequenceClassification"}
SHAPES = st.fixed_dictionaries({
    "hidden_size": st.sampled_from([32, 48]), "num_hidden_layers": st.sampled_from([1, 3]),
    "num_attention_heads": st.sampled_from([1, 2, 4]), "intermediate_size": st.sampled_from([40, 96]),
    "type_vocab_size": st.sampled_from([1, 2, 3]), "layer_norm_eps": st.sampled_from([1e-12, 1e-5]),
    "num_labels": st.sampled_from([2, 5]),
})  # fmt: skip


def their_model(head: str, keys: dict[str, Any]) -> nn.Module:
    config = transformers.BertConfig(
        vocab_size=VOCAB, max_position_embeddings=LENGTH, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0,
        attn_implementation="eager", **keys,
    )  # fmt: skip
    torch.manual_seed(5)
    model: nn.Module = getattr(transformers, HEADS[head])(config).eval()
    with torch.no_grad():
        for value in model.parameters():
            value.add_(torch.randn_like(value) * 0.2)
    return model


@pytest.mark.parametrize("head", HEADS)
@settings(
    max_examples=4, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True, phases=[Phase.generate]
)  # fmt: skip
@given(data=st.data())
def test_bert_is_transformers_own(head: str, data: st.DataObject) -> None:
    keys = data.draw(SHAPES)
    theirs: Any = their_model(head, keys)
    draw = torch.Generator().manual_seed(3)
    tokens = torch.randint(0, VOCAB, (3, LENGTH), generator=draw)
    segments = torch.randint(0, keys["type_vocab_size"], (3, LENGTH), generator=draw)
    real = torch.arange(LENGTH) < torch.tensor([[LENGTH], [9], [1]])
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        theirs.save_pretrained(folder / "theirs")
        ours = hub.load_encoder(folder / "theirs")
        wanted = theirs(input_ids=tokens, token_type_ids=segments, attention_mask=real.long()).logits
        found = ours(tokens, segments, real)
        seen = real if head == "mlm" else torch.ones(3, dtype=torch.bool)
        torch.testing.assert_close(found[seen], wanted[seen], atol=1e-5, rtol=1e-5)
        for logits in (found, wanted):
            flat = logits[seen]
            F.cross_entropy(flat, torch.arange(len(flat)) % flat.shape[-1]).backward()
        check_gradients(theirs, ours, folder)
        hub.save(ours, folder / "back", None, card={"title": "back"})
        before, after = (load_file(folder / name / "model.safetensors") for name in ("theirs", "back"))
        assert before.keys() >= after.keys()
        same, info = type(theirs).from_pretrained(folder / "back", output_loading_info=True)
        assert not any(info.values()), info
        with torch.no_grad():
            torch.testing.assert_close(same.eval()(tokens).logits, ours(tokens), atol=1e-5, rtol=1e-5)


def check_gradients(theirs: Any, ours: Encoder, folder: Path) -> None:
    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter.copy_(torch.zeros_like(parameter) if parameter.grad is None else parameter.grad)
    theirs.save_pretrained(folder / "gradients")
    wanted = dict(hub.load_encoder(folder / "gradients").named_parameters())
    for name, parameter in ours.named_parameters():
        assert parameter.grad is not None, f"{name} gets no gradient"
        assert (parameter.grad - wanted[name]).norm() <= 1e-4 * wanted[name].norm() + 1e-7, name


def test_padding_is_seen_by_nobody(tmp_path: Path) -> None:
    their_model("mlm", {"hidden_size": 32, "num_attention_heads": 2, "num_hidden_layers": 2}).save_pretrained(tmp_path)
    model = hub.load_encoder(tmp_path)
    tokens = torch.randint(0, VOCAB, (1, LENGTH))
    real = torch.arange(LENGTH)[None] < 10
    with torch.no_grad():
        padded, alone = model(tokens, None, real)[:, :10], model(tokens[:, :10])
    torch.testing.assert_close(padded, alone, atol=1e-5, rtol=1e-5)


def test_an_encoder_is_no_decoder(tmp_path: Path) -> None:
    their_model("mlm", {"hidden_size": 32, "num_attention_heads": 2, "num_hidden_layers": 1}).save_pretrained(tmp_path)
    with pytest.raises(UserError, match="is an encoder, which reads and cannot write"):
        hub.load(tmp_path)
