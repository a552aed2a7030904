"""A store by URL: passwords are used and never repeated, and what is missing is named."""

from __future__ import annotations

import sys

import pytest

from danlu.align import database
from danlu.align.preferences import PreferenceStore
from danlu.errors import UserError

SECRET = "correct-horse"
URL = f"postgresql://keeper:{SECRET}@127.0.0.1:1/votes"


def test_a_password_is_hidden_in_print_and_left_out_on_disk():
    assert database.shown(URL) == "postgresql://keeper:***@127.0.0.1:1/votes"
    assert database.written(URL) == "postgresql://keeper@127.0.0.1:1/votes"
    for place in ("runs/tang/feedback/preferences.db", "sqlite:////tmp/votes.db", "postgresql://keeper@host/votes"):
        assert database.shown(place) == database.written(place) == place


@pytest.mark.parametrize(
    "url",
    [
        f"postgresql://keeper:half@{SECRET}@host/votes",
        f"postgresql://keeper:half@part/{SECRET}@host/votes",
        f"postgresql://host/votes?password={SECRET}",
    ],
)
def test_a_password_that_cannot_be_hidden_is_refused(url):
    for use in (database.shown, database.written, database.connect, PreferenceStore):
        with pytest.raises(UserError, match="PGPASSWORD") as caught:
            use(url)
        assert SECRET not in str(caught.value)


@pytest.mark.parametrize("scheme", ["postgresql", "postgresql+psycopg"])
def test_a_missing_driver_names_the_extra(monkeypatch, scheme):
    monkeypatch.setitem(sys.modules, "psycopg", None)
    with pytest.raises(UserError, match=r"pip install 'danlu\[postgres\]'"):
        PreferenceStore(URL.replace("postgresql", scheme))


@pytest.mark.parametrize(
    ("url", "message"),
    [
        (URL.replace("postgresql", "postgres"), "unknown database 'postgres'.*did you mean 'postgresql'"),
        (URL.replace("postgresql", "sqllite"), "unknown database 'sqllite'.*did you mean 'sqlite'"),
        (URL.replace("postgresql", "postgresql+pyscopg"), "unknown database"),
        (URL.replace("postgresql", "sqlite+nothing"), "unknown database"),
        (URL.replace(":1/", ":one/"), "cannot be read; write it as postgresql://"),
        (f"://keeper:{SECRET}@host", "cannot be read"),
    ],
)
def test_a_misspelt_url_is_one_sentence_without_its_password(url, message):
    with pytest.raises(UserError, match=message) as caught:
        PreferenceStore(url)
    assert SECRET not in str(caught.value)


def test_a_database_that_does_not_answer_is_named_without_its_password():
    pytest.importorskip("psycopg")
    with pytest.raises(UserError, match=r"keeper:\*\*\*@127\.0\.0\.1:1/votes cannot be opened") as caught:
        PreferenceStore(URL)
    assert SECRET not in str(caught.value)


def test_a_file_may_have_any_name(tmp_path):
    place = tmp_path / "a?b%20c#d.db"
    PreferenceStore(place).close()
    assert place.is_file()
