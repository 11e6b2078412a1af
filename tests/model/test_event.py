"""One closed vocabulary, each type with a versioned schema that refuses what it does not name."""

from __future__ import annotations

import json
from typing import Any

import pytest
from jsonschema import ValidationError

from broker.errors import InvalidName
from broker.model.event import DATA, TYPES, Event, checked_type, envelope, rfc3339, schema
from broker.model.names import DatasetId
from tests.told import check_event, validator

ID = DatasetId("shop/catalog/offers")


def event(type: str, **data: Any) -> dict[str, Any]:
    made = Event(id="1", source="broker/catalog", type=checked_type(type), subject=ID, time=rfc3339(0), data=data)
    found: dict[str, Any] = json.loads(made.model_dump_json())
    return found


def test_every_type_has_a_model_of_its_data_and_a_valid_schema_of_its_own_name() -> None:
    assert set(DATA) == set(TYPES)
    for type in TYPES:
        assert validator(type).schema["$id"] == f"urn:broker:event:{type.removeprefix('broker.')}:1"


def test_a_schema_refuses_unknown_fields_missing_ones_and_another_type() -> None:
    good = event("expiring", replica="search", version=3, left_seconds=1.5)
    check_event(good)
    for wrong in (
        event("expiring", replica="search", version=3),
        event("expiring", replica="search", version=3, left_seconds=1.5, mood="bad"),
        event("expiring", replica="search", version="3", left_seconds=1.5),
        good | {"type": "broker.replica.lagging"},
        good | {"surprise": 1},
    ):
        with pytest.raises(ValidationError):
            check_event(wrong)


def test_an_envelope_made_as_text_is_the_event() -> None:
    data = {"request": "r", "dataset": ID, "target": "search", "state": "failed"}
    text = envelope("r", "broker.request.failed", ID, 1.5, json.dumps(data))
    check_event(json.loads(text))
    assert Event.model_validate_json(text).data == data


def test_a_type_may_be_named_by_its_end_where_that_is_one() -> None:
    assert checked_type("published") == "broker.dataset.published"
    for name in ("reset", "explode", ""):
        with pytest.raises(InvalidName):
            schema(name)
