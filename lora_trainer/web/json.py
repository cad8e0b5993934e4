"""JSON that can always be sent, by REST and by WebSocket: what is not UTF-8 in a file name becomes
`?`, and an infinite number or NaN null.
"""

import json
import math

from fastapi.responses import JSONResponse


def to_json(content: object) -> bytes:
    """Return a value as JSON in UTF-8, whatever is in its texts and numbers."""
    try:
        text = json.dumps(content, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    except ValueError:
        text = json.dumps(_finite(content), ensure_ascii=False, separators=(",", ":"))
    return text.encode("utf-8", "replace")


class Json(JSONResponse):
    """JSON that can always be sent. A route that returns one spares FastAPI its own look at every
    value, which takes seconds for thousands of pictures.
    """

    def render(self, content: object) -> bytes:
        return to_json(content)


def _finite(value: object) -> object:
    if isinstance(value, dict):
        return {key: _finite(each) for key, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(each) for each in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
