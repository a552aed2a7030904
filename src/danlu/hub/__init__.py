"""Models on disk: Hugging Face directories and GGUF files, read and written, nothing in them ever run.

In:  a model and where to put it; a directory, a file or a name.
Out: a directory that transformers loads, a file that llama.cpp runs, or a model.
Left out: making models, talking to them.
"""

from danlu.hub.config import check_counterpart, hf_config
from danlu.hub.convert import export_gguf, export_merged, import_model
from danlu.hub.directory import export_directory, load, load_encoder, load_pretrained, model_hash, read_config, save
from danlu.hub.shelf import PACKAGED, is_named, is_remote, obtain, source_of

__all__ = [
    "PACKAGED", "check_counterpart", "export_directory", "export_gguf", "export_merged", "hf_config", "import_model",
    "is_named", "is_remote", "load", "load_encoder", "load_pretrained", "model_hash", "obtain", "read_config", "save",
    "source_of",
]  # fmt: skip
