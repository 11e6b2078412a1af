"""pytest plugin: of two changes with equal order the earlier commit wins."""

from __future__ import annotations

from hypothesis import Phase, settings

from broker.columnar import merge
from broker.columnar.merge import Shape, Sources

_last = merge._last


def earliest(sources: Sources, shape: Shape) -> str:
    text, tie = _last(sources, shape), f"{shape.own('edge')} DESC"
    assert tie in text, "the rule is written otherwise now: adapt the mutant"
    return text.replace(tie, f"{shape.own('edge')} ASC")


merge._last = earliest
settings.register_profile("mutant", phases=[Phase.explicit, Phase.generate])  # one failure is enough: no shrinking
settings.load_profile("mutant")
