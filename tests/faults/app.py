"""The producers of the arena: each dataset's rows lie in a file that the test replaces."""

from __future__ import annotations

import json

from broker import Producers, ProductionRequest, Since, Snapshot
from tests.faults.arena import source_path
from tests.faults.steps import HOME

app = Producers()


@app.producer("*/*/*")
def rows_of(request: ProductionRequest, since: Since | None) -> Snapshot:
    del since
    return Snapshot(json.loads(source_path(HOME, request.dataset).read_text()))
