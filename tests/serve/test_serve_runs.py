"""Runs over HTTP: what lies on disk, also half-written; nothing outside of it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from live_server import Live, serving

from danlu.files import write_json
from danlu.places import runs_beside
from danlu.run import METRICS, RESOLVED, Metrics, Run
from danlu.serve import Options, create_app

STAGES = {"corpus": "books", "pretrain": "school", "eval": "examination"}


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two runs, one done and one that began, among other things."""
    folder = tmp_path_factory.mktemp("runs")
    (folder / "no-run").mkdir()
    (folder / "no-run" / METRICS).write_text('{"step": 1, "secret": 1}\n')
    for name in ("tang", "begun"):
        write_json(folder / name / RESOLVED, {"recipe": "tang", "stages": STAGES, "sections": {}})
    run = Run(folder / "tang")
    parents: dict[str, str] = {}
    for stage in STAGES:
        run.begin(stage, {"parents": parents, "why": "not made yet"})
        Metrics(run.stage_dir(stage) / METRICS).log(1, loss=2.5)
        run.finish(stage, f"hash-of-{stage}", {"bpb": 1.5, "table": [1, 2]}, 3.0)
        parents = {stage: f"hash-of-{stage}"}
    write_json(folder / "tang" / "corpus" / "audit.json", {
        "funnel": [{"step": "read", "documents": 9, "characters": 90}],
        "reasons": {"too_short": {"count": 4, "samples": []}},
    })  # fmt: skip
    asked = {"prompt": "春", "answers": {"base": "夏", "sft": "秋"}}
    write_json(folder / "tang" / "eval" / "answers.json", {"prompts": [asked]})
    Run(folder / "begun").begin("corpus", {"parents": {}, "why": "seed changed"})
    return folder


@pytest.fixture(scope="module")
def http(root: Path, model_dirs: dict[str, Path], live: Live) -> Iterator[httpx.Client]:
    app = create_app({"knows": model_dirs["knows"]}, live.store, Options(runs=root))
    with serving(app, live.store) as running, httpx.Client(base_url=running.url, timeout=30) as client:
        yield client


def states(http: httpx.Client, name: str) -> dict[str, str]:
    return {stage["name"]: stage["state"] for stage in http.get(f"/api/runs/{name}").json()["stages"]}


def test_runs_are_listed_with_how_far_they_are(http):
    runs = {run["name"]: run for run in http.get("/api/runs").json()["runs"]}
    assert set(runs) == {"tang", "begun"}
    assert (runs["tang"]["state"], runs["tang"]["done"], runs["tang"]["of"], runs["tang"]["seconds"]) == (
        "done", 3, 3, 9.0,
    )  # fmt: skip
    assert (runs["begun"]["state"], runs["begun"]["done"]) == ("stopped", 0)


def test_a_run_shows_its_stages_its_funnel_and_answers_at_each_age(http):
    run = http.get("/api/runs/tang").json()
    assert [(stage["name"], stage["life"], stage["state"]) for stage in run["stages"]] == [
        ("corpus", "books", "done"), ("pretrain", "school", "done"), ("eval", "examination", "done"),
    ]  # fmt: skip
    school = run["stages"][1]
    assert school["why"] == "not made yet"
    assert school["figures"] == {"bpb": 1.5}
    assert school["parents"] == {"corpus": "hash-of-corpus"}
    assert school["curves"] is True
    assert run["funnel"] == [{"step": "read", "documents": 9, "characters": 90}]
    assert run["dropped"] == {"too_short": 4}
    assert run["answers"] == [{"prompt": "春", "answers": {"base": "夏", "sft": "秋"}}]


def test_a_stage_runs_while_somebody_works_there_and_is_interrupted_when_nobody_does(http, root):
    waiting = {"pretrain": "waiting", "eval": "waiting"}
    assert states(http, "begun") == {"corpus": "interrupted", **waiting}
    with Run(root / "begun").locked():
        assert states(http, "begun") == {"corpus": "running", **waiting}
    assert states(http, "begun") == {"corpus": "interrupted", **waiting}
    with Run(root / "begun").locked():
        pass  # looking at it holds nothing: it can be worked on again


def test_what_was_made_from_something_older_is_outdated(http, root):
    place = root / "tang" / "corpus" / "manifest.json"
    made = place.read_text()
    write_json(place, {**json.loads(made), "output": "another"})
    try:
        assert states(http, "tang") == {"corpus": "done", "pretrain": "outdated", "eval": "outdated"}
    finally:
        place.write_text(made)


def test_curves_come_in_instalments_of_whole_lines(http, root):
    metrics = Metrics(root / "begun" / "corpus" / METRICS)

    def more(after: str) -> dict:
        answer = http.get("/api/runs/begun/metrics", params={"stage": "corpus", "after": after})
        assert answer.status_code == 200, answer.text
        return answer.json()

    assert more("") == {"rows": [], "after": "", "more": False, "anew": False}
    metrics.log(1, loss=3.0)
    first = more("")
    assert [row["loss"] for row in first["rows"]] == [3.0]
    assert not first["anew"]
    with open(metrics.path, "a") as handle:
        handle.write('{"step": 2, "lo')
    half = more(first["after"])
    assert (half["rows"], half["after"]) == ([], first["after"]), "half a line is not there yet"
    with open(metrics.path, "a") as handle:
        handle.write('ss": NaN}\n')
    metrics.log(3, loss=1.0)
    second = more(half["after"])
    assert second["rows"] == [{"step": 2, "loss": None}, {"step": 3, "loss": 1.0}]
    assert more(second["after"])["rows"] == []
    metrics.rewind(2)  # as a run that is resumed does, and then it goes on until the file is longer than before
    for step in range(3, 20):
        metrics.log(step, loss=0.5)
    again = more(second["after"])
    assert again["anew"]
    assert [row["step"] for row in again["rows"]] == [1, 2, *range(3, 20)]
    metrics.path.write_bytes(b'[]\n\x00\xff\n{"loss": 1}\n{"step": 4}{"step": 5}\n{"step": 6, "loss": 2}\n')
    assert [row["step"] for row in more("")["rows"]] == [6], "what was cut off by a kill is passed over"
    metrics.path.unlink()
    assert more(again["after"]) == {"rows": [], "after": "", "more": False, "anew": True}


def test_long_curves_come_piece_by_piece(http, root):
    path = root / "begun" / "pretrain" / METRICS
    path.parent.mkdir()
    with open(path, "w") as handle:
        handle.writelines(json.dumps({"step": step, "sample": "x" * 1000}) + "\n" for step in range(2500))
    seen, after, rounds = [], "", 0
    while True:
        answer = http.get("/api/runs/begun/metrics", params={"stage": "pretrain", "after": after}).json()
        seen += [row["step"] for row in answer["rows"]]
        after, rounds = answer["after"], rounds + 1
        if not answer["more"]:
            break
    assert seen == [*range(2500)]
    assert rounds == 3
    path.unlink()


@pytest.mark.parametrize(
    ("path", "status", "says"),
    [
        ("/api/runs/tan", 404, "did you mean 'tang'?"),
        ("/api/runs/..", 404, ""),
        ("/api/runs/%2e%2e", 404, ""),
        ("/api/runs/..%2f..%2fetc", 404, ""),
        ("/api/runs/no-run/metrics?stage=", 404, "unknown run"),
        ("/api/runs/tang/metrics?stage=../../no-run", 404, "unknown stage"),
        ("/api/runs/tang/metrics?stage=.", 404, "unknown stage"),
        ("/api/runs/tang/metrics?stage=pretran", 404, "did you mean 'pretrain'?"),
        ("/api/runs/tang/metrics", 400, "stage"),
        ("/api/runs/tang/metrics?stage=pretrain&after=yesterday", 400, "after"),
    ],
)
def test_names_are_looked_up_and_never_joined(http, path, status, says):
    answer = http.get(path)
    assert answer.status_code == status
    assert says in answer.json()["error"]["message"]


def test_damaged_files_are_as_if_they_were_not_there(http, root):
    spoilt = root / "spoilt"
    write_json(spoilt / RESOLVED, {})
    assert http.get("/api/runs/spoilt").json()["stages"] == []
    (spoilt / RESOLVED).write_text('{"recipe": "ti')
    assert http.get("/api/runs").status_code == 200
    write_json(spoilt / RESOLVED, {"sections": {"run": {}, "corpus": {}, "eval": {}}})  # as older versions wrote it
    (spoilt / "corpus").mkdir()
    for name in ("manifest.json", "audit.json"):
        (spoilt / "corpus" / name).write_text('{"state": "do')
    run = http.get("/api/runs/spoilt").json()
    assert [(stage["name"], stage["state"]) for stage in run["stages"]] == [("corpus", "waiting"), ("eval", "waiting")]
    assert run["funnel"] == []


def test_the_page_shows_the_runs_beside_what_is_served(root, tmp_path, monkeypatch):
    monkeypatch.setenv("DANLU_RUNS", str(tmp_path / "elsewhere"))
    assert runs_beside(root / "tang") == root
    assert runs_beside(root / "tang" / "pretrain") == root
    assert runs_beside(tmp_path) == runs_beside(Path("smollm2")) == tmp_path / "elsewhere"
    assert runs_beside(root / "nowhere") == tmp_path / "elsewhere"
