"""The live server of ``live_server`` for every test of this room."""

from live_server import guarded, live, model_dirs, one_thread, restarted
from postgres import place, postgres

__all__ = ["guarded", "live", "model_dirs", "one_thread", "place", "postgres", "restarted"]
