"""pytest plugin: a log opened after a loss does not learn what versions hold."""

from __future__ import annotations

from broker.backend import client

_load = client.load_script


def without(name: str, writes: bool = True) -> client.Script:
    script = _load(name, writes)
    if name != "log_open":
        return script
    rule = "for i = 5, #ARGV, 3 do"
    assert rule in script.text, "the rule is written otherwise now: adapt the mutant"
    text = script.text.replace(rule, "for i = 1, 0 do")
    return client.make_script(name, text, writes)


client.load_script = without  # type: ignore[assignment]
