"""Models on disk: Hugging Face directories, read and written, nothing in them ever run.

In:  a model and where to put it, or a directory.
Out: a directory that transformers loads, or a model.
Left out: making models, talking to them, fetching them.
"""

from danlu.hub.config import hf_config
from danlu.hub.directory import export_directory, load, load_pretrained, model_hash, read_config, save

__all__ = ["export_directory", "hf_config", "load", "load_pretrained", "model_hash", "read_config", "save"]
