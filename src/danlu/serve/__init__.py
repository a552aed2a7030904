"""The served page and API: people talk to a model, compare two answers, and their votes go back to ``align``.

In:  model directories, a preference store.
Out: ``create_app`` (FastAPI) and ``run_server``.
Left out: TLS: a proxy in front has it.
"""

from danlu.serve.api import create_app
from danlu.serve.limits import Reach
from danlu.serve.options import Options
from danlu.serve.rates import Rates
from danlu.serve.server import run_server
from danlu.serve.worker import Setup

__all__ = ["Options", "Rates", "Reach", "Setup", "create_app", "run_server"]
