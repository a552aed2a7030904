"""A small real tokenizer and small models of every attention and cache kind."""

import pytest
import torch

from danlu.model import Decoder, ModelConfig
from danlu.tokens.bpe import train_bpe
from danlu.tokens.chat import SPECIALS, TOKENIZER_CONFIG
from danlu.tokens.tokenizer import Tokenizer

TEXTS = [
    "春眠不觉晓，处处闻啼鸟。夜来风雨声，花落知多少。",
    "The quick brown fox jumps over the lazy dog. " * 3,
    "émigré naïve 👩‍🚀",
]

SHAPES = {
    "gpt2": {
        "norm": "layer", "positions": "learned", "n_heads": 4, "n_kv_heads": 4, "head_dim": 16, "feedforward": "mlp",
        "activation": "gelu_tanh", "qkv_bias": True, "out_bias": True, "ffn_bias": True, "d_ff": 128,
    },
    "llama": {"n_heads": 4, "n_kv_heads": 2, "head_dim": 16, "d_ff": 96},
    "deepseek": {
        "attention": "mla", "rope_layout": "interleaved", "norm_eps": 1e-6, "n_heads": 4, "n_kv_heads": 4, "q_rank": 24,
        "kv_rank": 16, "nope_dim": 16, "rope_dim": 8, "v_dim": 16, "d_ff": 96, "n_experts": 8, "top_k": 2,
        "d_expert": 32, "n_shared_experts": 1, "n_dense_layers": 1, "router_groups": 4, "router_groups_kept": 2,
        "routed_scale": 1.5, "tie_embeddings": False,
    },
}  # fmt: skip


def build_model(name: str, vocab_size: int, **changes) -> Decoder:
    """A model with lively distributions: nothing is left at its neutral first value."""
    torch.manual_seed(7)
    shape = {"n_layers": 2, "d_model": 64, "max_seq_len": 96, **SHAPES[name], **changes}
    model = Decoder(ModelConfig(vocab_size=vocab_size, **shape))
    with torch.no_grad():
        for tensor in (*model.parameters(), *model.buffers()):
            tensor.add_(torch.randn_like(tensor) * 0.15)
    return model


@pytest.fixture(autouse=True)
def one_thread():
    """The models are tiny: threads would only wait for each other."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def build():
    return build_model


@pytest.fixture(scope="session")
def tokenizer() -> Tokenizer:
    backend = train_bpe(TEXTS, vocab_size=384, han_run=1, min_frequency=2, specials=SPECIALS)
    return Tokenizer(backend, TOKENIZER_CONFIG)


@pytest.fixture(scope="session")
def prompts(tokenizer) -> list[list[int]]:
    """Of different lengths."""
    texts = [TEXTS[0][:n] for n in (1, 4, 9, 2)] + [TEXTS[1][:n] for n in (3, 30)]
    return [[tokenizer.bos, *tokenizer.encode(text)] for text in texts]


@pytest.fixture(scope="session", params=list(SHAPES))
def model(request, tokenizer) -> Decoder:
    return build_model(request.param, tokenizer.vocab_size)


@pytest.fixture(scope="session")
def llama(tokenizer) -> Decoder:
    return build_model("llama", tokenizer.vocab_size)
