"""Every family against transformers, on shapes that hypothesis draws: logits, gradients, files there and back.

Norms, biases and the router's bias are random: their first values would hide half of all faults.
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file
from torch import Tensor, nn

from danlu import hub
from danlu.model import Decoder

transformers = pytest.importorskip("transformers")
transformers.logging.disable_progress_bar()

VOCAB, LENGTH = 97, 40
Keys = dict[str, Any]


def either(**options: Any) -> st.SearchStrategy[Keys]:
    """One value for every key."""
    return st.fixed_dictionaries({key: st.sampled_from(values) for key, values in options.items()})


def merged(*parts: st.SearchStrategy[Keys]) -> st.SearchStrategy[Keys]:
    """All keys of all parts."""
    return st.tuples(*parts).map(lambda found: {key: value for part in found for key, value in part.items()})


def heads(d_model: int = 48, divides: bool = False) -> st.SearchStrategy[Keys]:
    """Heads in groups of every size, as wide as they like unless they must divide the model."""
    counts = st.sampled_from([(4, 4), (4, 2), (4, 1), (6, 3), (2, 1)])
    widths = st.sampled_from([8, 12, 24])
    return st.tuples(counts, widths).map(
        lambda drawn: {
            "num_attention_heads": drawn[0][0], "num_key_value_heads": drawn[0][1], "hidden_size": d_model,
            **({} if divides else {"head_dim": drawn[1]}),
        }
    )  # fmt: skip


ROPE = st.sampled_from([
    {"rope_type": "default", "rope_theta": 10000.0},
    {"rope_type": "linear", "rope_theta": 5e3, "factor": 3.0},
    {"rope_type": "llama3", "rope_theta": 5e5, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
     "original_max_position_embeddings": 16},
    {"rope_type": "yarn", "rope_theta": 1e4, "factor": 4.0, "original_max_position_embeddings": 16},
    {"rope_type": "yarn", "rope_theta": 1e4, "factor": 10.0, "original_max_position_embeddings": 16, "mscale": 0.7,
     "mscale_all_dim": 0.9, "beta_fast": 16, "beta_slow": 2},
    {"rope_type": "yarn", "rope_theta": 1e4, "factor": 2.0, "original_max_position_embeddings": 16,
     "attention_factor": 1.3, "truncate": False},
]).map(lambda keys: {"rope_parameters": keys})  # fmt: skip
BASE = either(
    num_hidden_layers=[2, 3], intermediate_size=[40, 96], rms_norm_eps=[1e-5, 1e-6], tie_word_embeddings=[True, False],
    max_position_embeddings=[64],
)  # fmt: skip
LLAMA_LIKE = merged(BASE, ROPE)
GPT = either(n_embd=[32, 48], n_layer=[2, 3], n_head=[1, 2, 4], n_positions=[64], tie_word_embeddings=[True, False])
WINDOWS = either(use_sliding_window=[True, False], sliding_window=[3, 7, 64], max_window_layers=[0, 1, 2])
MLA = either(
    hidden_size=[48], num_attention_heads=[2, 4], q_lora_rank=[None, 24], kv_lora_rank=[16], qk_rope_head_dim=[8],
    qk_nope_head_dim=[16], v_head_dim=[12, 24], n_routed_experts=[8], num_experts_per_tok=[2, 3],
    moe_intermediate_size=[32], first_k_dense_replace=[0, 1], n_shared_experts=[1, 2], routed_scaling_factor=[1.0, 2.5],
).map(lambda keys: {**keys, "num_key_value_heads": keys["num_attention_heads"]})  # fmt: skip
V2_GROUPS = st.sampled_from([
    {"topk_method": "greedy", "n_group": None, "topk_group": None},
    {"topk_method": "group_limited_greedy", "n_group": 4, "topk_group": 2},
])  # fmt: skip
V3_GROUPS = st.sampled_from([{"n_group": 1, "topk_group": 1}, {"n_group": 4, "topk_group": 2}])
FAMILIES: dict[str, tuple[str, st.SearchStrategy[Keys]]] = {
    "gpt1": ("OpenAIGPT", GPT),
    "gpt2": ("GPT2", merged(GPT, either(n_inner=[None, 80], layer_norm_epsilon=[1e-5, 1e-6]))),
    "llama": ("Llama", merged(LLAMA_LIKE, heads(), either(attention_bias=[True, False], mlp_bias=[True, False]))),
    "qwen2": ("Qwen2", merged(LLAMA_LIKE, heads(divides=True), WINDOWS)),
    "qwen3": ("Qwen3", merged(LLAMA_LIKE, heads(), WINDOWS, either(attention_bias=[True, False]))),
    "mixtral": (
        "Mixtral",
        merged(LLAMA_LIKE, heads(), either(
            num_local_experts=[4, 8], num_experts_per_tok=[1, 2], sliding_window=[None, 5]
        )),
    ),
    "qwen3_moe": (
        "Qwen3Moe",
        merged(LLAMA_LIKE, heads(), either(
            num_experts=[4, 8], num_experts_per_tok=[1, 3], moe_intermediate_size=[24], norm_topk_prob=[True, False],
            attention_bias=[True, False], mlp_only_layers=[[], [0]], use_sliding_window=[True, False],
            sliding_window=[5],
        )),
    ),
    "deepseek_v2": ("DeepseekV2", merged(LLAMA_LIKE, MLA, V2_GROUPS)),
    "deepseek_v3": (
        "DeepseekV3",
        merged(LLAMA_LIKE, MLA, V3_GROUPS, either(
            norm_topk_prob=[True, False], rope_interleave=[True, False],
            num_nextn_predict_layers=[0],
        )),
    ),
}  # fmt: skip


def their_model(name: str, keys: Keys) -> nn.Module:
    """A model of transformers' with nothing at its first value."""
    family, _ = FAMILIES[name]
    config = getattr(transformers, f"{family}Config")(
        vocab_size=VOCAB, bos_token_id=1, eos_token_id=2, pad_token_id=0, attn_implementation="eager", **keys
    )
    torch.manual_seed(17)
    model = getattr(transformers, family + ("LMHeadModel" if "GPT" in family else "ForCausalLM"))(config).eval()
    with torch.no_grad():
        for value in [*model.parameters(), *(b for n, b in model.named_buffers() if "e_score" in n)]:
            value.add_(torch.randn_like(value) * (0.3 if value.ndim == 1 else 0.1))
    assert isinstance(model, nn.Module)
    return model


def as_ours(theirs: Any, folder: Path) -> Decoder:
    theirs.save_pretrained(folder)
    return hub.load(folder)


def check_logits(theirs: Any, ours: Decoder, tokens: Tensor) -> None:
    with torch.no_grad():
        torch.testing.assert_close(ours(tokens), theirs(tokens).logits, atol=1e-5, rtol=1e-5)


def check_files(ours: Decoder, folder: Path, back: Path) -> None:
    """What we write of what we read is what was read, tensor by tensor."""
    hub.save(ours, back, None, card={"title": "back"})
    before, after = (load_file(place / "model.safetensors") for place in (folder, back))
    assert before.keys() == after.keys()
    for name, tensor in before.items():
        assert torch.equal(tensor, after[name]), name
    read = json.loads((back / "config.json").read_text(encoding="utf-8"))
    assert hub.read_config(back)[0] == ours.config, read


def check_gradients(theirs: Any, ours: Decoder, tokens: Tensor, folder: Path) -> None:
    """Their gradients, written where their weights were, come back through the same tables as the weights did."""
    targets = tokens.roll(-1, 1).flatten()
    for logits in (theirs(tokens).logits, ours(tokens)):
        F.cross_entropy(logits.flatten(0, 1), targets).backward()
    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter.copy_(torch.zeros_like(parameter) if parameter.grad is None else parameter.grad)
    wanted = dict(as_ours(theirs, folder).named_parameters())
    for name, parameter in ours.named_parameters():
        assert parameter.grad is not None, f"{name} gets no gradient"
        off = (parameter.grad - wanted[name]).norm()
        assert off <= 1e-4 * wanted[name].norm() + 1e-7, name  # a router of one expert has none but rounding


@pytest.mark.parametrize("name", FAMILIES)
@settings(
    max_examples=3, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True, phases=[Phase.generate]
)  # fmt: skip
@given(data=st.data())
def test_a_family_is_transformers_own(name: str, data: st.DataObject) -> None:
    keys = data.draw(FAMILIES[name][1])
    theirs = their_model(name, keys)
    tokens = torch.randint(0, VOCAB, (2, LENGTH), generator=torch.Generator().manual_seed(3))
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        ours = as_ours(theirs, folder / "theirs")
        check_logits(theirs, ours, tokens)
        check_files(ours, folder / "theirs", folder / "back")
        again, info = type(theirs).from_pretrained(folder / "back", output_loading_info=True)
        assert not any(info.values()), info
        check_logits(again.eval(), ours, tokens)
        check_gradients(theirs, ours, tokens, folder / "gradients")


def test_old_spellings_of_scaled_positions_are_read(tmp_path: Path) -> None:
    theirs = their_model("llama", {"hidden_size": 48, "num_attention_heads": 4, "num_hidden_layers": 2,
                                   "intermediate_size": 40, "max_position_embeddings": 64})  # fmt: skip
    theirs.save_pretrained(tmp_path)  # type: ignore[operator]
    path = tmp_path / "config.json"
    keys = json.loads(path.read_text(encoding="utf-8"))
    del keys["rope_parameters"]
    scaling = {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16}
    path.write_text(json.dumps({**keys, "rope_theta": 500.0, "rope_scaling": scaling}), encoding="utf-8")
    config, _ = hub.read_config(tmp_path)
    assert (config.rope_theta, config.rope_scaling and config.rope_scaling.factor) == (500.0, 4.0)
    path.write_text(json.dumps({**keys, "rope_scaling": {"type": "dynamic", "factor": 2.0}}), encoding="utf-8")
    with pytest.raises(Exception, match="rope_type is 'dynamic'; valid: default, linear, llama3, yarn"):
        hub.read_config(tmp_path)
