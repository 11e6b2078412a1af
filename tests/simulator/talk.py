"""Effects and outcomes in words, for the trace of a schedule that failed."""

from __future__ import annotations

import json

from broker.rules.fold import State
from broker.rules.publishing import HeadView, Install, Publish, PublishAnswer, Reserve, ReserveAnswer, Seal
from tests.simulator.fibres import Script
from tests.simulator.programs import SealCheckpoint


def brief(value: object) -> str:
    match value:
        case Reserve(seq=seq, data=data, lease=lease, ends_lease=ends):
            return f"reserve {seq} = {_body_of(data)}" + (
                f" under {lease.name} {tuple(lease.fence)}{', which ends' * ends}" if lease else ""
            )
        case Seal(seq=seq, data=data) | Publish(seq=seq, data=data):
            return f"{type(value).__name__.lower()} {seq} = {_body_of(data)}"
        case HeadView(state=state, current=current, run_id=run, reservation=reservation):
            open_ = f", reserved {reservation[0]} = {_body_of(reservation[1])}" if reservation else ""
            return f"head {state.seq}{'' if current else ', NOT current'} in {run}{open_}"
        case Install(state=state, adopt=adopt):
            return f"install {state.seq}" + (f", adopt {adopt}" if adopt else "")
        case ReserveAnswer(kind=kind) | PublishAnswer(kind=kind):
            return kind
        case bytes():
            return _body_of(value)
        case State():
            return f"state {value.seq}"
        case Script(says=says):
            return says
        case SealCheckpoint():
            return "seal checkpoint"
        case _:
            return repr(value)


def _body_of(data: bytes) -> str:
    fields = json.loads(data)
    if "body" not in fields:
        return f"{fields['dataset']} {fields['channel']} at {fields['seq']}: version {fields['version']}"
    body = fields["body"]
    return f"{body['kind']} {body.get('production') or body.get('name') or body.get('run_id') or ''} by {fields['write_id']}"
