"""Where all randomness of a schedule comes from: drawn from a seed and recorded, or replayed from a record."""

from __future__ import annotations

from collections.abc import Sequence
from random import Random


class Choices:
    """Small integers, 0 always the harmless one: a record cut short or zeroed is a simpler schedule."""

    def __init__(self, seed: int, replay: Sequence[int] | None = None) -> None:
        self._random = Random(seed).random
        self._replay = replay
        self.made: list[int] = []

    def below(self, n: int) -> int:
        """An integer in [0, n)."""
        if self._replay is None:
            value = int(self._random() * n)
        else:
            value = self._replay[len(self.made)] % n if len(self.made) < len(self._replay) else 0
        self.made.append(value)
        return value

    def happens(self, probability: float) -> bool:
        if self._replay is None:
            self.made.append(1 if self._random() < probability else 0)
            return self.made[-1] == 1
        return self.below(2) == 1
