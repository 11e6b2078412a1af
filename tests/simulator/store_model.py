"""A store: log objects and files. Writes land when the world says so; the condition is judged at that moment."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(slots=True)
class StoredFile:
    bytes: int
    modified: float


@dataclass(slots=True)
class ModelStore:
    """`conditional`: it honours put-if-absent. Else a seal is a GET and then a plain PUT, which may replace another."""

    conditional: bool = True
    log: dict[int, bytes] = field(default_factory=dict)
    files: dict[str, StoredFile] = field(default_factory=dict)
    checkpoint: bytes | None = None
    notified: int = 0

    def put_record(self, seq: int, data: bytes) -> bool:
        """True: these bytes are there now because of this call."""
        if self.conditional and seq in self.log:
            return False
        self.log[seq] = data
        return True
