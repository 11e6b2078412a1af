"""What one attempt's process may take: time and memory."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final

from broker.settings import Settings

PAGE_BYTES: Final = os.sysconf("SC_PAGE_SIZE")


def overrun(limits: Settings, resident: int, seconds: float, grace_seconds: float = 0.0) -> str:
    """Why a process must be killed; '' when it need not. `resident` in bytes, `grace_seconds` on top of the limit."""
    if resident > limits.attempt_max_bytes:
        return f"held {resident} bytes, more than attempt_max_bytes={limits.attempt_max_bytes}"
    if seconds > limits.attempt_seconds + grace_seconds:
        return f"ran longer than attempt_seconds={limits.attempt_seconds:g}"
    return ""


def resident_bytes(pid: int) -> int:
    """Physical memory a process holds; 0 where the platform does not say."""
    try:
        return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * PAGE_BYTES
    except (OSError, IndexError):
        return 0
