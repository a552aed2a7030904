"""From what people prefer to a better model: the preference store, rankings, the reward model, PPO.

In:  a model that answers, judgements of its answers.
Out: the stages ``rankings``, ``reward`` and ``ppo``; ``PreferenceStore``, where votes of the chat page land.
Left out: the chat page (``serve``); the judges (``evals``).
"""

from danlu.align.learner import PPOSettings
from danlu.align.ppo import ppo
from danlu.align.preferences import PreferenceStore
from danlu.align.rankings import RankingsSettings, rankings
from danlu.align.reward import RewardSettings, reward

__all__ = [
    "PPOSettings",
    "PreferenceStore",
    "RankingsSettings",
    "RewardSettings",
    "ppo",
    "rankings",
    "reward",
]
