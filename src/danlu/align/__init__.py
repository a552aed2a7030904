"""From what people prefer to a better model: preference store, rankings, reward model, practice, DPO; and a guard.

In:  a model that answers, judgements of its answers.
Out: the stages ``rankings``, ``reward``, ``ppo``, ``grpo``, ``online_dpo``, ``best_of``, ``dpo`` and ``guard``;
``PreferenceStore``, where votes of the chat page land.
Left out: the chat page (``serve``); the judges (``evals``).
"""

from danlu.align.answering import AnsweringSettings, PracticeSettings
from danlu.align.best_of import BestOfSettings, best_of
from danlu.align.direct import DPOSettings, dpo
from danlu.align.grpo import GRPOSettings, grpo
from danlu.align.guard import GuardSettings, guard
from danlu.align.online import OnlineDPOSettings, online_dpo
from danlu.align.ppo import PPOSettings, ppo
from danlu.align.preferences import PreferenceStore
from danlu.align.rankings import RankingsSettings, rankings
from danlu.align.reward import RewardSettings, reward

# The stages that make a chat model from what people prefer. A run goes on with one of them (``run.aligned``).
ALIGNED = ("ppo", "grpo", "online_dpo", "best_of", "dpo")

__all__ = [
    "ALIGNED",
    "AnsweringSettings",
    "BestOfSettings",
    "DPOSettings",
    "GRPOSettings",
    "GuardSettings",
    "OnlineDPOSettings",
    "PPOSettings",
    "PracticeSettings",
    "PreferenceStore",
    "RankingsSettings",
    "RewardSettings",
    "best_of",
    "dpo",
    "grpo",
    "guard",
    "online_dpo",
    "ppo",
    "rankings",
    "reward",
]
