"""What can go wrong before anybody is served: each is one sentence."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import uvicorn

from danlu import hub
from danlu.errors import UserError
from danlu.model import Decoder
from danlu.serve import create_app, run_server
from danlu.serve.models import Models
from danlu.serve.server import ADDRESS, listen


def test_a_taken_port_is_told_before_models_are_loaded(tmp_path):
    with listen(0) as taken:
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(UserError, match=rf"cannot listen on 127\.0\.0\.1:{port}.*another --port"):
            run_server({"none": tmp_path}, tmp_path / "votes.db", port)


def test_only_this_machine_is_listened_to():
    assert ADDRESS == "127.0.0.1"
    with listen(0) as socket:
        assert socket.getsockname()[0] == "127.0.0.1"


def test_a_reward_model_is_not_served(model_dirs, tmp_path):
    model, tokenizer = hub.load_pretrained(model_dirs["knows"])
    hub.save(Decoder(model.config, head="scalar"), tmp_path / "reward", tokenizer, card={"name": "reward"})
    with pytest.raises(UserError, match="is a reward model"):
        Models.load({"reward": tmp_path / "reward"})


def test_the_first_line_says_where_votes_go(model_dirs, tmp_path, monkeypatch):
    monkeypatch.setattr(uvicorn.Server, "run", lambda *_, **__: None)
    told: list[str] = []
    run_server({"knows": model_dirs["knows"]}, tmp_path / "votes.db", 0, SimpleNamespace(say=told.append))
    assert f"votes go to {tmp_path / 'votes.db'} " in told[-1]


def test_nothing_to_serve():
    with pytest.raises(UserError, match="at least one model"):
        create_app({}, store=None)
