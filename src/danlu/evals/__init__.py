"""Room ``evals``: what a model's words are worth, measured.

In:  model directories, held-out prompts and text, training text.
Out: judges (the hidden human of the rankings), copy and variety measures, bits per byte, the stage ``eval``.
Left out: improving anything (``align``).
"""

from danlu.evals.evaluate import EvalSettings, evaluate
from danlu.evals.exam import answer, heldout_prompts, judged, measure
from danlu.evals.intervals import wilson
from danlu.evals.judge import Judge, judge
from danlu.evals.perplexity import bits_per_byte, heldout_answers, heldout_text, heldout_texts
from danlu.evals.variety import CopyIndex, distinct_2

__all__ = [
    "CopyIndex",
    "EvalSettings",
    "Judge",
    "answer",
    "bits_per_byte",
    "distinct_2",
    "evaluate",
    "heldout_answers",
    "heldout_prompts",
    "heldout_text",
    "heldout_texts",
    "judge",
    "judged",
    "measure",
    "wilson",
]
