"""pytest plugin: a log slot takes every block, whether it has it or not."""

from __future__ import annotations

from broker.backend import client

_load = client.load_script


def without(name: str, writes: bool = True) -> client.Script:
    script = _load(name, writes)
    if name != "append":
        return script
    rule = "if block <= mark then"
    assert rule in script.text, "the rule is written otherwise now: adapt the mutant"
    text = script.text.replace(rule, "if false then")
    text = text.replace("if block ~= mark + 1 then", "if false then")
    return client.make_script(name, text, writes)


client.load_script = without  # type: ignore[assignment]
