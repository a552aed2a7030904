"""The learning rate of every step.

In:  a step and the loop's settings.
Out: a learning rate.
Left out: schedules of anything else; nothing else is scheduled.
"""

from __future__ import annotations

import math

from danlu.train.task import LoopSettings


def learning_rate(step: int, settings: LoopSettings) -> float:
    """Learning rate of optimizer step ``step`` of 1..steps.

    Warm-up is linear from 0 (exclusive) to the peak. Then ``p`` goes from 0 to 1 at the last step:

    - ``cosine``: half a cosine down to ``min_lr_ratio`` (Loshchilov & Hutter, arXiv 1608.03983);
    - ``wsd``: stable, then linear over the last ``decay_share`` of all steps (MiniCPM, arXiv 2404.06395, section 4);
    - ``linear``: linear all the way.
    """
    warmup = min(settings.warmup, settings.steps // 2)
    if step <= warmup:
        return settings.lr * step / warmup
    if settings.schedule == "wsd":
        decay = max(1, round(settings.steps * settings.decay_share))
        start = max(warmup, settings.steps - decay)
    else:
        start = warmup
    p = max(0.0, (step - start) / (settings.steps - start))
    fall = 0.5 * (1.0 - math.cos(math.pi * p)) if settings.schedule == "cosine" else p
    return settings.lr * (1.0 - (1.0 - settings.min_lr_ratio) * fall)
