"""What every JSON body of our own ``/api`` has in common.

In:  JSON of clients that may be anybody's.
Out: ``Body``: exact types, unknown fields ignored, nothing that is not text.
Left out: the fields themselves; bodies in OpenAI's form (``wire``).
"""

from __future__ import annotations

import json
from typing import Any

from pydantic import BaseModel, ConfigDict, field_validator


class Body(BaseModel):
    """Base of request bodies."""

    model_config = ConfigDict(strict=True, extra="ignore", allow_inf_nan=False)

    @field_validator("*")
    @classmethod
    def _is_text(cls, value: Any) -> Any:
        """JSON can spell half a surrogate pair, and Python reads NaN; no database can store either."""
        try:
            json.dumps(value, ensure_ascii=False, allow_nan=False).encode()
        except UnicodeEncodeError:
            raise ValueError("half a surrogate pair (\\ud800 to \\udfff) is not text") from None
        return value
