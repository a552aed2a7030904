"""Rules about words: which categories of harm a text names, however it is dressed up.

In:  a rules file (the bundled ``hazards.yaml``, and one of the user's), a text.
Out: ``Rules``: ``scan`` gives a ``Match`` for every rule that a text meets; ``begun`` says where one may be under way.
Left out: meaning. Rules see words and their neighbours; a trained guard (``align.guard``) sees the rest.

Time is bounded by construction: phrases have a fixed length, what stands between two of them is limited, and a regular
expression with an unlimited repeat, a repeat in a repeat or a reference to a group is refused. So is the length of
whatever matches: that is the most of an answer that a server ever has to hold back.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import regex
import yaml
from pydantic import Field, ValidationError, model_validator

from danlu.errors import UserError, nearest, unknown
from danlu.evals import linear, plain
from danlu.recipe import Settings

BUNDLED = Path(__file__).with_name("hazards.yaml")
Action = Literal["block", "warn", "review"]
Stage = Literal["prompt", "answer"]
_GAP = r"[^.!?。！？\n]"  # a sentence ends the neighbourhood
_MAX_WIDTH = 400


class Category(Settings):
    """A kind of harm."""

    name: str
    """In words."""
    action: Action | Literal["off"]
    """What is done about it, unless a rule says otherwise."""
    openai: tuple[str, ...] = ()
    """The names that OpenAI's moderation has for it."""


class Rule(Settings):
    """Words of a category: one of ``any``, ``all`` and ``pattern``."""

    category: str
    """Its id."""
    any: tuple[str, ...] = ()
    """Phrases; one is enough."""
    all: tuple[tuple[str, ...], ...] = Field((), max_length=3)
    """Lists of phrases; one of each has to be there."""
    near: int = Field(24, ge=0, le=80)
    """Characters that may stand between them."""
    unless: tuple[str, ...] = ()
    """Phrases that make a match harmless if they are in it."""
    pattern: str = ""
    """A regular expression of bounded length over plain text."""
    check: Literal["", "luhn", "resident_id"] = ""
    """Arithmetic that a number has to stand up to."""
    stage: Literal["prompt", "answer", "both"] = "both"
    """What it is looked for in."""
    action: Action | Literal["off"] | None = None
    """Instead of the category's."""

    @model_validator(mode="after")
    def _one_kind(self) -> Rule:
        if sum(map(bool, (self.any, self.all, self.pattern))) != 1:
            raise ValueError("give one of any, all and pattern")
        if self.all and (len(self.all) < 2 or not all(self.all)):
            raise ValueError("all needs two or three lists, none of them empty")
        return self


class RulesFile(Settings):
    """What a rules file says."""

    bundled: bool = True
    """Whether the bundled rules hold too."""
    categories: dict[str, Category] = Field(default_factory=dict)
    """By id."""
    rules: tuple[Rule, ...] = ()
    """In the order in which they are looked for."""


@dataclass(frozen=True)
class Match:
    """A rule that a text meets.

    Attributes:
        category: its id.
        action: what to do about it.
        start, end: where in the text.
    """

    category: str
    action: Action
    start: int
    end: int


@dataclass(frozen=True)
class _Compiled:
    """A rule as programs, twice: to find matches and, with an engine that knows of half ones, to see one begin.

    No program can match without one of each of the stems.
    """

    rule: Rule
    action: Action
    programs: tuple[re.Pattern[str], ...]
    beginnings: tuple[regex.Pattern[str], ...]
    unless: re.Pattern[str] | None
    stems: tuple[tuple[str, ...], ...]
    width: int


class Rules:
    """Rules that are ready to look.

    Args:
        said: a checked rules file.

    Attributes:
        categories: by id.
        width: plain characters of the longest possible match.
    """

    def __init__(self, said: RulesFile) -> None:
        self.categories = dict(said.categories)
        acts = [(rule, rule.action or said.categories[rule.category].action) for rule in said.rules]
        self._rules = [_compile(rule, action) for rule, action in acts if action != "off"]
        self.width = max((one.width for one in self._rules), default=0)

    def scan(self, text: str, stage: Stage) -> list[Match]:
        """Every rule that ``text`` meets, each once, at its first place.

        Args:
            text: as it came.
            stage: ``"prompt"`` or ``"answer"``.
        """
        return self.scan_views(plain.views(text), stage)

    def scan_views(
        self, views: Sequence[plain.View], stage: Stage, after: int = 0, unfinished: bool = False
    ) -> list[Match]:
        """``scan`` for views that are at hand.

        Args:
            views: of the text.
            stage: ``"prompt"`` or ``"answer"``.
            after: only matches that end after this place of the text count.
            unfinished: more will come, so that what the last word is, is not known yet.
        """
        found = []
        for one in self._rules:
            if one.rule.stage in (stage, "both"):
                match = next(filter(None, (_first(one, view, after, unfinished) for view in views)), None)
                if match is not None:
                    found.append(match)
        return found

    def begun(self, views: Sequence[plain.View], stage: Stage) -> int:
        """Where in an unfinished text the first match may begin that what follows could complete."""
        return min(view.starts[self._begun(view.text[: view.settled()], stage)] for view in views)

    def _begun(self, text: str, stage: Stage) -> int:
        first = len(text)
        for one in self._rules:
            if one.rule.stage in (stage, "both"):
                for program in one.beginnings:
                    first = min(first, _touching(program, text, max(0, len(text) - one.width)))
        return first


def read_rules(path: Path | None = None) -> Rules:
    """The bundled rules, with those of a file of the user's.

    Raises:
        UserError: the file is not there or says something that cannot be; names the place in it.
    """
    bundled = _read(BUNDLED)
    if path is None:
        return Rules(bundled)
    own = _read(path)
    if own.bundled:
        categories = {**bundled.categories, **own.categories}
        own = own.model_copy(update={"categories": categories, "rules": (*bundled.rules, *own.rules)})
    for number, rule in enumerate(own.rules):
        if rule.category not in own.categories:
            raise unknown("category", rule.category, own.categories, f"rule {number + 1} of {path}")
    return Rules(own)


def _read(path: Path) -> RulesFile:
    try:
        data = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
    except FileNotFoundError:
        raise UserError(f"no rules file at {path}") from None
    except IsADirectoryError:
        raise UserError(f"{path} is a folder; a rules file is YAML") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"rules file {path} is not valid YAML: {' '.join(str(error).split())}") from None
    if not isinstance(data, Mapping):
        raise UserError(f"rules file {path} must be a mapping with categories and rules, not {type(data).__name__}")
    try:
        said = RulesFile.model_validate(data)
    except ValidationError as error:
        raise UserError(f"rules file {path}: {_explain(error.errors()[0])}") from None
    for number, rule in enumerate(said.rules):
        try:
            _compile(rule, "block")
        except ValueError as problem:
            raise UserError(f"rules file {path}: rule {number + 1} ({rule.category}): {problem}") from None
    return said


_FIELDS: dict[str, type[Settings]] = {"": RulesFile, "categories": Category, "rules": Rule}


def _explain(problem: Any) -> str:
    place = ".".join(str(part + 1) if isinstance(part, int) else part for part in problem["loc"])
    if problem["type"] == "extra_forbidden":
        owner = _FIELDS["" if len(problem["loc"]) == 1 else str(problem["loc"][0])]
        return f"unknown key '{place}'{nearest(str(problem['loc'][-1]), owner.model_fields)}"
    return f"{place or 'it'}: {problem['msg'].removeprefix('Value error, ')}"


def _compile(rule: Rule, action: Action) -> _Compiled:
    """Programs of a rule.

    Raises:
        ValueError: a phrase without letters, or an expression that may take long.
    """
    if rule.pattern:
        sources, stems = [rule.pattern], []
        linear.check(rule.pattern)
    elif rule.any:
        sources, stems = [_one_of(rule.any)], [rule.any]
    else:
        gap = f"{_GAP}{{0,{rule.near}}}"
        sources = [gap.join(order) for order in itertools.permutations(map(_one_of, rule.all))]
        stems = list(rule.all)
    width = max(map(linear.width, sources))
    if width > _MAX_WIDTH:
        raise ValueError(f"it may match {width} characters; {_MAX_WIDTH} is the most, because answers wait for it")
    return _Compiled(
        rule, action, tuple(map(re.compile, sources)), tuple(map(regex.compile, sources)),
        re.compile(_one_of(rule.unless)) if rule.unless else None,
        tuple(tuple(map(_stem, words)) for words in stems), width,
    )  # fmt: skip


def _one_of(phrases: Iterable[str]) -> str:
    return f"(?:{'|'.join(map(_phrase, phrases))})"


def _phrase(phrase: str) -> str:
    """A phrase as an expression: whole words where it is Latin, spaces and hyphens as people happen to set them."""
    open_ended = phrase.endswith("*")
    letters = _letters(phrase.removesuffix("*"))
    body = "".join(r"[ \n-]?" if letter in " -" else re.escape(letter) for letter in letters)
    before = "(?<![a-z0-9])" if letters[0].isascii() else ""
    after = "" if not letters[-1].isascii() else "(?![a-z0-9])"
    return f"{before}{body}{'[a-z]{0,12}' if open_ended else ''}{after}"


def _stem(phrase: str) -> str:
    """What any text that holds the phrase holds as it stands: its longest part without a space or hyphen."""
    return max(re.split(r"[ -]", _letters(phrase.removesuffix("*"))), key=len)


def _letters(phrase: str) -> str:
    letters = "".join(map(plain.letter, phrase)).strip()
    if not any(map(str.isalnum, letters)):
        raise ValueError(f"the phrase {phrase!r} has no letters")
    return letters


def _touching(program: regex.Pattern[str], text: str, start: int) -> int:
    """Where the first match begins that is half at the end of a text, or whole and might be longer; else its end."""
    while (found := program.search(text, start, partial=True)) is not None:
        if found.partial or found.end() == len(text):
            return found.start()
        start = found.start() + 1
    return len(text)


def _first(one: _Compiled, view: plain.View, after: int, unfinished: bool) -> Match | None:
    """The first match in a view that counts."""
    settled = view.settled() if unfinished else len(view.text)
    if not all(any(stem in view.text for stem in stems) for stems in one.stems):
        return None
    for program in one.programs:
        for found in program.finditer(view.text):
            start, end = view.place(*found.span())
            if one.unless is not None and one.unless.search(found[0]):
                continue
            if end > after and found.end() <= settled and _CHECKS[one.rule.check](found[0]):
                return Match(one.rule.category, one.action, start, end)
    return None


def _luhn(said: str) -> bool:
    """Whether the digits end in the check digit of payment cards (ISO/IEC 7812)."""
    digits = [int(c) for c in said if c.isdigit()][::-1]
    doubled = [sum(divmod(2 * d, 10)) for d in digits[1::2]]
    return len(digits) >= 13 and (sum(digits[::2]) + sum(doubled)) % 10 == 0


def _resident_id(said: str) -> bool:
    """Whether the last character is the check character of a Chinese resident identity number (GB 11643)."""
    weights = [pow(2, 17 - i, 11) for i in range(17)]
    return "10x98765432"[sum(w * int(d) for w, d in zip(weights, said[:17], strict=True)) % 11] == said[17]


_CHECKS: dict[str, Callable[[str], bool]] = {"": bool, "luhn": _luhn, "resident_id": _resident_id}
