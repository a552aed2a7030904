"""Training checkpoints: whole or not there, and one to fall back on.

In:  named tensors and a few numbers after a step.
Out: ``folder/000500/tensors.safetensors`` and ``state.json`` with the tensors' SHA-256; the newest sound one read back.
Left out: model directories for use (``hub``); sharded checkpoints of models that do not fit one process.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from safetensors.torch import load_file, save_file
from torch import Tensor

from danlu.console import Console
from danlu.errors import UserError
from danlu.files import atomic_directory, free_space, hash_file, read_json, write_json

TENSORS, STATE = "tensors.safetensors", "state.json"
KEEP = 2


class Checkpoint(NamedTuple):
    """What a step left behind.

    Attributes:
        step: optimizer steps done.
        tensors: name -> tensor on the CPU, in memory of its own.
        state: JSON data.
    """

    step: int
    tensors: dict[str, Tensor]
    state: dict[str, Any]


def save_checkpoint(
    folder: Path, step: int, tensors: Mapping[str, Tensor], state: Mapping[str, Any], keep: int = KEEP
) -> None:
    """Write the checkpoint of a step atomically and forget all but the newest ``keep``.

    Raises:
        UserError: the disk is too full for it.
    """
    plain = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    free_space(folder, sum(tensor.nbytes for tensor in plain.values()))
    place = folder / f"{step:06d}"
    with atomic_directory(place) as beside:
        save_file(plain, beside / TENSORS)
        write_json(beside / STATE, {"step": step, "sha256": hash_file(beside / TENSORS), "state": dict(state)})
    for other in folder.iterdir():
        leftover = other.name.startswith(".")  # of a process that was killed while it wrote
        if leftover or other in checkpoints(folder)[:-keep]:
            shutil.rmtree(other)


def load_latest(folder: Path, console: Console | None = None) -> Checkpoint | None:
    """The newest checkpoint that is whole; a damaged one is passed over with a message.

    Args:
        folder: where ``save_checkpoint`` wrote.
        console: where the message goes; standard error if None.

    Returns:
        None if there is no sound checkpoint.
    """
    for place in reversed(checkpoints(folder)):
        try:
            manifest = read_json(place / STATE)
            if hash_file(place / TENSORS) != manifest["sha256"]:
                raise UserError(f"{place / TENSORS} is damaged (its SHA-256 differs from the one recorded)")
        except (UserError, OSError) as error:
            (console or Console()).say(f"checkpoint {place.name} cannot be used, trying the one before: {error}")
            continue
        # clone: the file is mapped, and a mapping would stay open and unaligned for as long as a tensor lives
        tensors = {name: tensor.clone() for name, tensor in load_file(place / TENSORS).items()}
        return Checkpoint(manifest["step"], tensors, manifest["state"])
    return None


def checkpoints(folder: Path) -> list[Path]:
    """Checkpoint directories, oldest first."""
    return sorted((p for p in folder.glob("*") if p.name.isdigit()), key=lambda p: int(p.name))
