"""Dataset patterns: an id whose parts may hold `*`, any run of characters of that part, also none."""

from __future__ import annotations

from collections import deque
from fnmatch import fnmatchcase
from itertools import product
from typing import Final

MAX_PART: Final = 63
"""Characters of one part of a dataset id."""


def pattern_matches(pattern: str, dataset: str) -> bool:
    """Whether each part of a dataset id matches its part of the pattern; `*` is any run of characters, also none."""
    names, globs = dataset.split("/"), pattern.split("/")
    return len(names) == len(globs) and all(map(fnmatchcase, names, globs))


def patterns_overlap(a: str, b: str) -> bool:
    """Whether any valid dataset id, existing or not, matches both patterns."""
    return all(_globs_meet(one, two) for one, two in zip(a.split("/"), b.split("/"), strict=True))


def _globs_meet(a: str, b: str) -> bool:
    """Breadth-first search for the shortest valid name both globs match, over (rest of a, rest of b, character before).

    Characters that neither glob names are all alike to both, so one letter stands for them.
    """
    alphabet = sorted((set(a) | set(b) | {"a"}) - {"*"})
    queue = deque([(a, b, "", 0)])
    seen = {(a, b, "")}
    while queue:
        rest_a, rest_b, before, length = queue.popleft()
        if length and not rest_a.strip("*") and not rest_b.strip("*"):
            return True
        for character in alphabet if length < MAX_PART else ():
            if not _may_follow(before, character):
                continue
            for state in product(_steps(rest_a, character), _steps(rest_b, character), (character,)):
                if state not in seen:
                    seen.add(state)
                    queue.append((*state, length + 1))
    return False


def _may_follow(before: str, character: str) -> bool:
    return character.isalnum() if not before else not before == character == "."


def _steps(rest: str, character: str) -> set[str]:
    """What may be left of a glob after it took one character."""
    if not rest:
        return set()
    if rest[0] == "*":
        return {rest} | _steps(rest[1:], character)
    return {rest[1:]} if rest[0] == character else set()
