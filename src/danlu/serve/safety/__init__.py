"""Two gates, before and after the model: what may be asked, and what may be answered.

In:  prompts, answers that are being written, rules and, if there is one, a trained guard.
Out: ``Safety`` (``open_safety`` makes one): prompts that are blocked, answers that end where they must.
Left out: training the guard (``align.guard``); the review queue (``reviews``).
"""

from danlu.serve.safety.gates import MODES, Origin, Passage, Safety, open_safety
from danlu.serve.safety.holding import FILTERED
from danlu.serve.safety.scanners import Finding

__all__ = ["FILTERED", "MODES", "Finding", "Origin", "Passage", "Safety", "open_safety"]
