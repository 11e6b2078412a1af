"""Custom attributes: free text about a dataset, version or request, small enough to stand in a record that everybody reads."""

from __future__ import annotations

from typing import Annotated, Final

from pydantic import AfterValidator

from broker.errors import Invalid

MAX_ATTRIBUTES: Final = 64
MAX_ATTRIBUTE_BYTES: Final = 4096
"""Of a name and its value together, as UTF-8."""


def check_attributes(attributes: object, of: str) -> None:
    """Raises Invalid for anything but a dict of str to str, for too many, or for one that is too long."""
    if not isinstance(attributes, dict) or not all(isinstance(text, str) for pair in attributes.items() for text in pair):
        raise Invalid("attributes must be a dict of str to str", of=of, why=repr(attributes)[:100])
    if len(attributes) > MAX_ATTRIBUTES:
        raise Invalid("too many attributes", of=of, why=f"{len(attributes)} of at most {MAX_ATTRIBUTES}")
    for name, value in attributes.items():
        if len(name.encode("utf-8", "replace")) + len(value.encode("utf-8", "replace")) > MAX_ATTRIBUTE_BYTES:
            raise Invalid("an attribute is too long", of=f"{of}: {name[:100]}", why=f"more than {MAX_ATTRIBUTE_BYTES} bytes")


def _checked(attributes: dict[str, str]) -> dict[str, str]:
    check_attributes(attributes, "attributes")
    return attributes


Attributes = Annotated[dict[str, str], AfterValidator(_checked)]
