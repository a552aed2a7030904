"""Hugging Face families as tables: which configurations they can express, and how they name and lay out weights.

In:  a ``ModelConfig``, or the keys of a config.json.
Out: ``FAMILIES``: per family the other of the two, and an ``Entry`` for every tensor on disk.
Left out: the choice of a family and the keys that all share (``config``), files (``directory``).

Everything a family does differently is a row or a field of its table, so that a new family is a new table. The numbers
stay as Hugging Face lays them out: no rotary dimension is ever permuted.
"""

from danlu.hub.families.bert import BERT
from danlu.hub.families.deepseek import DEEPSEEK_V2, DEEPSEEK_V3
from danlu.hub.families.experts import MIXTRAL, QWEN3_MOE
from danlu.hub.families.family import Family
from danlu.hub.families.gpt import GPT1, GPT2
from danlu.hub.families.grok import GROK
from danlu.hub.families.llama import LLAMA, QWEN2, QWEN3

FAMILIES: dict[str, Family] = {
    family.model_type: family
    for family in (BERT, GPT1, GPT2, LLAMA, QWEN2, QWEN3, MIXTRAL, QWEN3_MOE, DEEPSEEK_V2, DEEPSEEK_V3, GROK)
}

__all__ = ["FAMILIES", "Family"]
