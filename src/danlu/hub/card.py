"""README.md of a model directory: what the model is, where it comes from, how to use it.

In:  a configuration and facts given by whoever made the model.
Out: Markdown with the front matter that Hugging Face reads.
Left out: figures that nobody measured.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import yaml

from danlu.hub.families import Family
from danlu.model.config import ModelConfig

_WHAT = {
    "lm": ("text-generation", "A language model: it continues text, token by token."),
    "mlm": ("fill-mask", "An encoder: it tells which token is behind a mask."),
    "classes": ("text-classification", "An encoder: it says to which class a text belongs."),
    "scalar": ("text-classification", "A reward model: it gives an answer one number, the higher the better."),
}
_MATTER = {"license": "licence", "language": "language", "base_model": "base_model"}


def model_card(config: ModelConfig, head: str, family: Family, n_parameters: int, facts: Mapping[str, Any]) -> str:
    """The card's text.

    Args:
        config: the shape.
        head: ``"lm"``, ``"scalar"``, ``"mlm"`` or ``"classes"``.
        family: the Hugging Face architecture it is stored as.
        n_parameters: how many numbers.
        facts: provenance in the order to be shown (stage, data, parent, seed, figures ...); ``title``, ``licence`` and
            ``language`` also go where Hugging Face looks for them; ``what`` says in a sentence what the model is, where
            its head does not.
    """
    task, what = _WHAT[head]
    what = str(facts.get("what", what))
    title = str(facts.get("title", f"danlu {family.model_type}"))
    matter = {"library_name": "transformers", "pipeline_tag": task, "tags": ["danlu"]}
    matter |= {key: str(facts[fact]) for key, fact in _MATTER.items() if facts.get(fact)}
    lines = ["---", yaml.safe_dump(matter, sort_keys=False).strip(), "---", "", f"# {title}", "", what, ""]
    shape = f"{family.architectures[head]}, {n_parameters:,} parameters, {config.n_layers} layers of width "
    lines += ["| | |", "| --- | --- |", f"| shape | {shape}{config.d_model}, context {config.max_seq_len:,} |"]
    if config.quantization != "none":
        lines.append(f"| weights of linear layers | {config.quantization}, one scale per output channel |")
    lines += [f"| {_cell(key)} | {_cell(value)} |" for key, value in facts.items() if key not in ("title", "what")]
    needs = "" if config.quantization == "none" else " (the package `compressed-tensors` has to be installed)"
    lines += ["", f"Made by danlu. It loads with `transformers`, without remote code{needs}.", ""]
    return "\n".join(lines)


def _cell(value: Any) -> str:
    return " ".join(str(value).split()).replace("|", "\\|")
