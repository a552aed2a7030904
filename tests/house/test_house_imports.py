"""Law 1: rooms stand in a row and nobody imports to the right. Law 4: model/ is innocent."""

import ast
from pathlib import Path

import pytest

import danlu

ROOT = Path(danlu.__file__).parent
GROUND = {"errors", "console", "files", "streams", "recipe", "run", "records", "device"}
ROOMS = ["corpus", "tokens", "model", "hub", "infer", "train", "evals", "align", "compress", "serve"]
HALL = [
    "report", "places", "snapshots", "lineage", "foresight", "costs", "pipeline", "flywheel", "lab", "talk", "doctor",
    "plan", "anatomy", "accounts_cli", "poll", "feedback_cli", "flywheel_cli", "lab_cli", "serve_cli", "cli",
    "__main__",
]  # fmt: skip
ORDER = {name: place for place, name in enumerate(ROOMS + HALL)}
FILES = sorted(ROOT.rglob("*.py"))


def room_of(path: Path) -> str:
    part = path.relative_to(ROOT).parts[0]
    return part.removesuffix(".py")


def imported_rooms(path: Path) -> set[str]:
    rooms = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative imports hide the room"
            names = [node.module or ""]
            if node.module == "danlu":
                names = [f"danlu.{alias.name}" for alias in node.names]
        rooms |= {name.split(".")[1] for name in names if name.startswith("danlu.")}
    return rooms - {"__version__"}


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_nobody_imports_to_the_right(path):
    room = room_of(path)
    if room == "__init__":
        return
    for other in imported_rooms(path):
        if room in GROUND:
            assert other in GROUND, f"the ground ({room}) must not import {other}"
        else:
            assert other in GROUND or ORDER[other] <= ORDER[room], f"{room} imports {other}, which is to its right"


def test_every_module_has_a_room():
    assert {room_of(p) for p in FILES} - {"__init__"} == GROUND | set(ORDER)


def test_model_knows_torch_and_itself_only():
    allowed = {"torch", "danlu", "__future__", "math", "dataclasses", "collections", "typing", "functools"}
    for path in (ROOT / "model").glob("*.py"):
        assert imported_rooms(path) <= {"model"}, path
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                tops = {alias.name.split(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                tops = {(node.module or "").split(".")[0]}
            else:
                continue
            assert tops <= allowed, f"{path.name} imports {tops - allowed}"
