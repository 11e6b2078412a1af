"""Messages between a worker and its children: JSON objects behind a 4-byte length, over a socket pair."""

from __future__ import annotations

import json
import socket
import struct
from contextlib import suppress
from typing import Any, Final

HEADER: Final = struct.Struct(">I")
MAX_MESSAGE_BYTES: Final = 64 << 20
"""A message holds ids, fields and file lists, never rows."""


class Channel:
    """One end. A peer that died reads as None."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock

    def fileno(self) -> int:
        return self._sock.fileno()

    def send(self, message: dict[str, Any]) -> bool:
        """False: the peer is gone."""
        data = json.dumps(message).encode()
        try:
            self._sock.sendall(HEADER.pack(len(data)) + data)
        except OSError:
            return False
        return True

    def receive(self) -> dict[str, Any] | None:
        """The next message, whole; None when the peer is gone, or died in the middle of one."""
        header = self._exactly(HEADER.size)
        if header is None:
            return None
        (size,) = HEADER.unpack(header)
        data = self._exactly(size) if size <= MAX_MESSAGE_BYTES else None
        message: dict[str, Any] | None = None if data is None else json.loads(data)
        return message

    def hang_up(self) -> None:
        """Both ends read what was sent so far, then None; for any thread, while the channel is open."""
        with suppress(OSError):
            self._sock.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        self._sock.close()

    def _exactly(self, size: int) -> bytes | None:
        chunks, left = [], size
        while left:
            try:
                chunk = self._sock.recv(left)
            except OSError:
                return None
            if not chunk:
                return None
            chunks.append(chunk)
            left -= len(chunk)
        return b"".join(chunks)
