"""Newline-delimited JSON: a request a line, a reply a line, in order.

The same as the built-in guest's. Request: `{"seed":1, ...sizes}`; the function is fixed when the
guest boots. Reply: `{"ok":true,"function":NAME,"result":{...}}` or
`{"ok":false,"function":NAME,"error":TEXT}`.
"""

import json
import sys
import traceback
from collections.abc import Callable

from workloads.parameters import InputError

PORT = 5000
# Without its newline.
MAX_REQUEST_BYTES = 64 * 1024
# A library's message may hold what the request held.
_ERROR_CHARACTERS = 500

TOO_LONG = f"the request line is longer than {MAX_REQUEST_BYTES} bytes: send a shorter one"


class Function:
    """A function's name and its handler."""

    def __init__(self, name: str, handle: Callable[[dict], dict]) -> None:
        self.name = name
        self._handle = handle

    def answer(self, line: bytes) -> bytes:
        """Serves a request line: the reply with its newline, which says what is wrong."""
        if len(line) > MAX_REQUEST_BYTES:
            return self.refuse(TOO_LONG)
        try:
            fields = json.loads(line.decode(), parse_constant=_refuse_constant)
        except (ValueError, RecursionError) as error:
            return self.refuse(f"the request line is no valid JSON: {error}")
        try:
            result = self._handle(fields)
            return self._reply({"ok": True, "result": result})
        except InputError as error:
            return self.refuse(str(error))
        except Exception as error:  # noqa: BLE001  (the server outlives a function's failure)
            traceback.print_exc(file=sys.stderr)
            return self.refuse(f"the function failed: {type(error).__name__}: {error}")

    def refuse(self, why: str) -> bytes:
        """The reply that says why there is no result."""
        # Half of a surrogate pair in a request is valid JSON, and no valid text.
        why = why[:_ERROR_CHARACTERS].encode(errors="replace").decode()
        return self._reply({"error": why, "ok": False})

    def _reply(self, fields: dict) -> bytes:
        reply = {"function": self.name, **fields}
        text = json.dumps(reply, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
        return text.encode() + b"\n"


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is no JSON")
