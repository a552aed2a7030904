"""A document's text made from a record's fields: ``"{title}\\n{paragraphs}"``.

In:  a template, and a record's fields as text.
Out: the filled template.
Left out: format specifications, indexing and attribute access; a field is a plain name.
"""

from __future__ import annotations

import string
from collections.abc import Mapping
from typing import Any


class Template:
    """A parsed template.

    Attributes:
        fields: the names it uses, in order, each once.

    Raises:
        ValueError: unbalanced braces, no field at all, or a field that is more than a name.
    """

    def __init__(self, text: str) -> None:
        try:
            parts = list(string.Formatter().parse(text))
        except ValueError as error:
            raise ValueError(f"template '{text}' is not well formed: {error}") from None
        for _, name, spec, conversion in parts:
            if name is not None and (not name or spec or conversion or set(name) & set("[].")):
                raise ValueError(f"template '{text}' has a field '{{{name}}}'; a field is a plain name: {{text}}")
        self.fields = tuple(dict.fromkeys(name for _, name, _, _ in parts if name is not None))
        if not self.fields:
            raise ValueError(f"template '{text}' names no field; write for example '{{text}}'")
        self._parts = [(literal, name) for literal, name, _, _ in parts]

    def fill(self, values: Mapping[str, str]) -> str:
        """The text for one record; every field must be there."""
        return "".join(literal + (values[name] if name is not None else "") for literal, name in self._parts)


def as_text(value: Any) -> str:
    """A field's value as text: a list by lines, nothing as the empty text.

    Raises:
        ValueError: an object or raw bytes; those are not text.
    """
    if value is None:
        return ""
    if isinstance(value, str):
        return value
    if isinstance(value, (list, tuple)):
        return "\n".join(as_text(item) for item in value)
    if isinstance(value, (dict, bytes)):
        raise ValueError("an object" if isinstance(value, dict) else "raw bytes")
    return str(value)
