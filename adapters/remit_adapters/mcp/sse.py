"""Reading a stream of server-sent events, with a bound on what one event may hold.

Source: WHATWG HTML, "Server-sent events". Only what MCP uses: messages with data, id and retry.
"""

from __future__ import annotations

from collections.abc import Iterator


class TooLargeError(Exception):
    """One event is larger than its reader allows."""


class EventReader:
    """Turns chunks of bytes into events; costs time linear in the bytes, however they are cut."""

    def __init__(self, bytes_max: int) -> None:
        self._bytes_max = bytes_max
        self._after_cr = False
        #: Pieces of a line that has not ended, and the lines of data of an event that has not.
        self._line: list[bytes] = []
        self._line_size = 0
        self._data: list[bytes] = []
        self._data_size = 0
        self._is_message = True
        #: The newest event id, for resuming (2025 revisions).
        self.last_id: str | None = None
        #: How long the server wants us to wait before we resume.
        self.retry_s: float | None = None

    def feed(self, chunk: bytes) -> Iterator[bytes]:
        """The data of each message that `chunk` completes. Raises TooLargeError."""
        # CR, LF and CRLF each end a line; the border of a chunk may cut a CRLF in two.
        if self._after_cr and chunk.startswith(b"\n"):
            chunk = chunk[1:]
            self._after_cr = False
        if not chunk:
            return
        self._after_cr = chunk.endswith(b"\r")
        *whole, rest = chunk.replace(b"\r\n", b"\n").replace(b"\r", b"\n").split(b"\n")
        for piece in whole:
            self._line.append(piece)
            line = b"".join(self._line)
            self._line.clear()
            self._line_size = 0
            if line:
                self._field(line)
            elif self._data:
                data, is_message = b"\n".join(self._data), self._is_message
                self._data.clear()
                self._data_size = 0
                self._is_message = True
                if is_message:
                    yield data
        self._line.append(rest)
        self._line_size += len(rest)
        if self._line_size > self._bytes_max:
            raise TooLargeError

    def _field(self, line: bytes) -> None:
        name, _, value = line.partition(b":")
        value = value.removeprefix(b" ")
        if name == b"data":
            self._data_size += len(value)
            if self._data_size > self._bytes_max:
                raise TooLargeError
            self._data.append(value)
        elif name == b"event":
            self._is_message = value in (b"", b"message")
        elif name == b"id" and b"\0" not in value:
            self.last_id = value.decode("utf-8", "replace")
        elif name == b"retry" and value.isdigit():
            self.retry_s = int(value[:9]) / 1000
