"""Every record of the schema."""

from __future__ import annotations

import dataclasses

from costmodel import place
from costmodel.schema import batch, manifest, measured, model, plan, prediction
from costmodel.schema.record import Record

RECORDS = sorted(
    {
        value
        for module in (place, batch, manifest, measured, model, plan, prediction)
        for value in vars(module).values()
        if isinstance(value, type) and issubclass(value, Record) and dataclasses.is_dataclass(value)
    },
    key=lambda record: record.__name__,
)
