"""What every JSON body has in common.

In:  JSON of clients that may be anybody's.
Out: ``Body``: exact types, unknown fields ignored; ``PlainBody``, in which besides nothing is no text.
Left out: the fields themselves (``wire`` for OpenAI's form, each route's own module for ours).
"""

from __future__ import annotations

import json
from typing import Any

from pydantic import BaseModel, ConfigDict, field_validator


def is_text(value: str) -> str:
    """JSON can spell half a surrogate pair; no tokenizer and no database can store it."""
    try:
        value.encode()
    except UnicodeEncodeError:
        raise ValueError("half a surrogate pair (\\ud800 to \\udfff) is not text") from None
    return value


class Body(BaseModel):
    """A JSON object of a request; nothing is converted, unknown fields are ignored."""

    model_config = ConfigDict(strict=True, extra="ignore", allow_inf_nan=False)


class PlainBody(Body):
    """A body all of whose fields are checked for text, for our own ``/api``."""

    @field_validator("*")
    @classmethod
    def _is_text(cls, value: Any) -> Any:
        """Python reads NaN, too, which no database can store."""
        is_text(json.dumps(value, ensure_ascii=False, allow_nan=False))
        return value
