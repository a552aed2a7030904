"""From what people prefer to a better model: preference store, rankings, reward model, PPO; and a guard.

In:  a model that answers, judgements of its answers.
Out: the stages ``rankings``, ``reward``, ``ppo`` and ``guard``; ``PreferenceStore``, where votes of the chat page land.
Left out: the chat page (``serve``); the judges (``evals``).
"""

from danlu.align.guard import GuardSettings, guard
from danlu.align.learner import PPOSettings
from danlu.align.ppo import ppo
from danlu.align.preferences import PreferenceStore
from danlu.align.rankings import RankingsSettings, rankings
from danlu.align.reward import RewardSettings, reward

# The stages that make a chat model from what people prefer. A run goes on with one of them (``run.aligned``).
ALIGNED = ("ppo",)

__all__ = [
    "ALIGNED",
    "GuardSettings",
    "PPOSettings",
    "PreferenceStore",
    "RankingsSettings",
    "RewardSettings",
    "guard",
    "ppo",
    "rankings",
    "reward",
]
