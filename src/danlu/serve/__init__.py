"""The served page and API: people talk to a model, compare two answers, and their votes go back to ``align``.

In:  model directories, a preference store.
Out: ``create_app`` (FastAPI) and ``run_server``.
Left out: accounts, moderation.
"""

from danlu.serve.api import create_app
from danlu.serve.server import run_server

__all__ = ["create_app", "run_server"]
