"""Data Request Broker: systems ask each other for data, and keep exact replicas of it.

Public names are resolved on first use, so that importing the package stays light.
"""

from __future__ import annotations

import sys
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from broker import errors, sinks, sources
    from broker.changelog import Ack, ChangeLog
    from broker.connect import Broker, Dataset, connect
    from broker.events_listening import Heard, Listener
    from broker.handle import Handle
    from broker.model.dataset import Column, Schema
    from broker.model.event import Event
    from broker.model.request import Completion
    from broker.outcomes import Delta, ProductionRequest, Since, Snapshot, Unchanged
    from broker.producers import Producers
    from broker.publication import Published
    from broker.received import Received
    from broker.replica import Replica, Report
    from broker.responses import Response, Responses
    from broker.rules.following import AtMostEvery, Every, Lag, Latest
    from broker.settings import Settings

__version__: Final = "0.1.0"

_WHERE: Final = {
    "Ack": "broker.changelog", "ChangeLog": "broker.changelog",
    "Broker": "broker.connect", "Dataset": "broker.connect", "Handle": "broker.handle", "connect": "broker.connect",
    "Column": "broker.model.dataset", "Schema": "broker.model.dataset",
    "Event": "broker.model.event", "Completion": "broker.model.request",
    "Delta": "broker.outcomes", "ProductionRequest": "broker.outcomes", "Since": "broker.outcomes",
    "Snapshot": "broker.outcomes", "Unchanged": "broker.outcomes",
    "Producers": "broker.producers", "Published": "broker.publication", "Received": "broker.received",
    "Replica": "broker.replica", "Report": "broker.replica",
    "Heard": "broker.events_listening", "Listener": "broker.events_listening",
    "AtMostEvery": "broker.rules.following", "Every": "broker.rules.following", "Lag": "broker.rules.following",
    "Latest": "broker.rules.following",
    "Response": "broker.responses", "Responses": "broker.responses", "Settings": "broker.settings",
    "errors": "", "sinks": "", "sources": "",
}  # fmt: skip
"""Public name -> module that defines it; '' for a submodule."""

__all__ = [
    "Ack", "AtMostEvery", "Broker", "ChangeLog", "Column", "Completion", "Dataset", "Delta", "Event", "Every", "Handle",
    "Heard", "Lag", "Latest", "Listener", "Producers", "ProductionRequest", "Published", "Received", "Replica", "Report",
    "Response", "Responses", "Schema", "Settings", "Since", "Snapshot", "Unchanged", "connect", "errors", "sinks", "sources",
]  # fmt: skip


def __getattr__(name: str) -> object:
    if name not in _WHERE:
        raise AttributeError(f"module 'broker' has no attribute {name!r}")
    module = _WHERE[name]
    return getattr(import_module(module), name) if module else import_module(f"broker.{name}")


def __dir__() -> list[str]:
    return [*__all__, "__version__"]


class _Package(ModuleType):
    """Keeps the import system from binding the module broker.connect over the function of that name."""

    def __setattr__(self, name: str, value: object) -> None:
        if not (name in _WHERE and isinstance(value, ModuleType) and _WHERE[name]):
            super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package
