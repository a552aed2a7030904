"""Answers in a form that programs can read: a JSON schema becomes the grammar that the engine keeps to.

In:  ``response_format`` and ``tools`` of a request.
Out: the text of one JSON schema for ``Sampling.grammar``.
Left out: keeping to it, token by token (``infer``).

A grammar is a program that somebody else wrote and we run, so its size and depth have an end, and it is compiled once
before anything is written: a schema that cannot be kept is refused, never followed half.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from danlu.infer import grammar
from danlu.serve.problems import Refusal

MAX_SCHEMA_BYTES = 64_000
MAX_SCHEMA_DEPTH = 16


def depth(value: Any) -> int:
    """How many levels of values lie below a value: none below a plain one, one below a flat object."""
    level, found = [value], -1
    while level:
        level = [inner for outer in level for inner in _inside(outer)]
        found += 1
    return found


def _inside(value: Any) -> list[Any]:
    return list(value.values()) if isinstance(value, dict) else value if isinstance(value, list) else []


def check_size(schema: Any) -> Any:
    """A schema that is small enough.

    Raises:
        ValueError: it is too long or too deep, with both numbers.
    """
    size = len(json.dumps(schema).encode())
    if size > MAX_SCHEMA_BYTES:
        raise ValueError(f"the schema has {size:,} bytes, and {MAX_SCHEMA_BYTES:,} are the most; make it smaller")
    if depth(schema) > MAX_SCHEMA_DEPTH:
        raise ValueError(f"the schema is {depth(schema)} deep, and {MAX_SCHEMA_DEPTH} is the most; make it flatter")
    return schema


def call_schema(tools: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The schema of one call of one of the tools.

    Raises:
        ValueError: two tools define different things by the same name in ``$defs``.
    """
    definitions: dict[str, Any] = {}
    calls = []
    for tool in tools:
        function = tool["function"]
        parameters = dict(function.get("parameters") or {"type": "object"})
        # References inside count from the root, so what they name has to stand there.
        for name, meaning in parameters.pop("$defs", {}).items():
            if definitions.setdefault(name, meaning) != meaning:
                raise ValueError(f"two tools define different things as '{name}' in '$defs'; rename one")
        properties = {"name": {"const": function["name"]}, "arguments": parameters}
        calls.append({"type": "object", "properties": properties, "required": list(properties),
                      "additionalProperties": False})  # fmt: skip
    return {"anyOf": calls} | ({"$defs": definitions} if definitions else {})


def compile_grammar(schema: Any, param: str) -> str:
    """The text of a schema that the engine can keep to; takes a while for a large one.

    Args:
        schema: a JSON schema.
        param: the field of the request that it came in.

    Raises:
        Refusal: it is no schema, uses something that cannot be kept to, or this server has no grammars.
    """
    if not grammar.available():
        message = "this server was installed without grammars; whoever runs it can pip install 'danlu[grammar]'"
        raise Refusal(400, message, "unsupported_value", param)
    from llguidance import LLMatcher

    text = json.dumps(schema, ensure_ascii=False)
    problem = LLMatcher.validate_grammar(LLMatcher.grammar_from_json_schema(text))
    if problem:
        message = f"no answer can be kept to this JSON schema: {problem.strip().splitlines()[-1][:200]}"
        raise Refusal(400, message, "invalid_value", param)
    return text
