"""What a person can say about a corpus.

In:  the recipe's section ``corpus``.
Out: ``CorpusSettings``.
Left out: the values that the rule profiles stand for (``clean.PROFILES``).
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Literal

from pydantic import Field, field_validator, model_validator

from danlu.corpus import sources
from danlu.corpus.clean import MEASURES, PROFILES
from danlu.corpus.template import Template
from danlu.errors import UserError, nearest
from danlu.recipe import Settings

Share = Field(default=None, ge=0.0, le=1.0)


class CorpusSettings(Settings):
    """The section ``corpus``."""

    source: str = "generated:stories"
    """Where the text is: npm:NAME@VERSION, pypi:NAME==VERSION, hf:NAME, hf:NAME@REVISION, a local file or folder,
    generated:stories or generated:poems."""

    include: tuple[str, ...] = ()
    """Globs of the files to read inside the source (`*` also matches `/`); empty reads every file."""

    text: str = "{text}"
    """A document's text, made from a record's fields; a field that is a list is joined by newlines.
    A plain text file has the fields `text` and `name`."""

    keep: tuple[str, ...] = ()
    """Fields carried along as attributes of the document, such as title and author."""

    compare: str = ""
    """What duplicates are looked for in, made like `text`; empty compares the text. Poems are compared without their
    titles and authors, because the same poem is often handed down under two names."""

    split: Literal["auto", "file", "paragraphs"] = "auto"
    """How a plain text file becomes documents: `file` one, `paragraphs` one for each block between blank lines, `auto`
    one, unless it is longer than twice `piece_chars`: then pieces of about that length, cut at blank lines."""

    piece_chars: int = Field(default=8000, ge=1)
    """Length of the pieces that `split: auto` cuts large text files into, in characters."""

    simplify: bool = False
    """Convert Traditional Chinese characters to Simplified (OpenCC t2s), attributes included."""

    remove: tuple[str, ...] = ()
    """Regular expressions; what they match is cut out of every field, after `simplify`: editors' notes, markup."""

    profile: str = "prose"
    """The rules that drop documents: prose, poems (short texts pass) or none. Texts without a letter go anyway."""

    min_chars: int | None = Field(default=None, ge=0)
    """Fewest characters of a document, white space not counted; the profile's if not given."""

    max_chars: int | None = Field(default=None, ge=1)
    """Most characters of a document, white space not counted; the profile's if not given."""

    min_letters: float | None = Share
    """Smallest share of letters, Han characters and digits among the characters; the profile's if not given."""

    min_han: float | None = Share
    """Smallest share of Han characters; the profile's if not given."""

    max_repeated_lines: float | None = Share
    """Largest share of a document's characters in lines that stood before; the profile's if not given."""

    max_repeated_grams: float | None = Share
    """Largest share of 13-character runs that stood before; the profile's if not given."""

    max_unreadable: float | None = Share
    """Largest share of placeholders for lost characters (□, U+FFFD, private use ...); the profile's if not given."""

    dedup: Literal["near", "exact", "off"] = "near"
    """`near` drops copies and near-copies, `exact` only copies that differ at most in case and white space."""

    near_threshold: float = Field(default=0.7, gt=0.0, le=1.0)
    """Documents at least this similar are near-copies: exact Jaccard of their runs of five words or Han characters."""

    short_threshold: float = Field(default=0.6, gt=0.0, le=1.0)
    """The same for short documents, which have few runs of five: exact Jaccard of pairs of words or characters."""

    heldout: float = Field(default=0.02, ge=0.0, lt=1.0)
    """Share of documents kept from training, by hash of their ids (`corpus.is_heldout`); later stages read it from
    ``split.json``."""

    def reads(self) -> dict[str, Path]:
        """The local file or folder, if the source is one."""
        path = sources.local_path(self.source)
        return {} if path is None else {"source": path}

    @field_validator("source")
    @classmethod
    def _is_source(cls, value: str) -> str:
        try:
            sources.check(value)
        except UserError as error:
            raise ValueError(str(error)) from None
        return value

    @field_validator("text", "compare")
    @classmethod
    def _is_template(cls, value: str) -> str:
        if value:
            Template(value)
        return value

    @field_validator("remove")
    @classmethod
    def _are_patterns(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for pattern in value:
            try:
                re.compile(pattern)
            except re.error as error:
                raise ValueError(f"'{pattern}' is not a regular expression: {error}") from None
        return value

    @field_validator("profile")
    @classmethod
    def _is_profile(cls, value: str) -> str:
        if value not in PROFILES:
            raise ValueError(f"unknown profile '{value}'{nearest(value, PROFILES)}")
        return value

    @field_validator("keep")
    @classmethod
    def _no_measure(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for name in value:
            if name in MEASURES:
                raise ValueError(f"'{name}' is the name of a measured attribute; it cannot be kept from the source")
        return value

    @model_validator(mode="after")
    def _has_text(self) -> CorpusSettings:
        if not self.text:
            raise ValueError("text must name at least one field, such as '{text}'")
        return self
