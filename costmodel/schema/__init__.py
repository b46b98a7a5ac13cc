"""What host and device write and read: manifest, models, plan, predictions, measurements.

record.py    dataclasses as JSON, checked by the types and bounds of their fields
model.py     a model and its segments
plan.py      the plan, its prediction, the variants that it considered
manifest.py  manifest.json and what a library says of itself
measured.py  what `run.py --calibrate` writes

A key of these files is the name of a field here, and is spelled nowhere else (tests/costmodel/schema/test_keys.py).
"""

from __future__ import annotations
