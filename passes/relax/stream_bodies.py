"""Operators on streams, and by a row's statistics, in stock Relax operators; reference_bodies.py has the others."""

from __future__ import annotations

from typing import Any

import numpy as np
from tvm import relax

from passes.relax.expressions import shape_of

R = relax.op


def _by_stream(bb: Any, attrs: Any, x: Any) -> Any:
    b, n, width = shape_of(x)
    streams = int(attrs["streams"])
    return bb.emit(R.reshape(x, (b, n, streams, int(width) // streams)))


def altup_predict_body(bb: Any, attrs: Any, x: Any, c: Any) -> Any:
    """Each stream with a sum of all of them by a token's own factors."""
    b, n, _ = shape_of(x)
    rows, streams = _by_stream(bb, attrs, x), int(attrs["streams"])
    mixed = bb.emit(R.matmul(bb.emit(R.reshape(c, (b, n, streams, streams))), rows))
    return bb.emit(R.reshape(bb.emit(R.add(rows, mixed)), shape_of(x)))


def altup_correct_body(bb: Any, attrs: Any, x: Any, a: Any, c: Any) -> Any:
    """What a layer made of the active stream moves all of them."""
    part, active = int(shape_of(a)[-1]), int(attrs["active"])
    before = bb.emit(R.strided_slice(x, [2], [active * part], [(active + 1) * part]))
    innovation = bb.emit(R.expand_dims(bb.emit(R.subtract(a, before)), 2))
    factors = bb.emit(R.expand_dims(bb.emit(R.add(c, relax.const(1.0, "float32"))), 3))
    moved = bb.emit(R.multiply(innovation, factors))
    return bb.emit(R.reshape(bb.emit(R.add(_by_stream(bb, attrs, x), moved)), shape_of(x)))


def altup_add_body(bb: Any, attrs: Any, x: Any, a: Any) -> Any:
    """The same row is added to every stream from one on."""
    later = (np.arange(int(attrs["streams"])) >= int(attrs["first"])).astype(np.float32)
    added = bb.emit(R.multiply(bb.emit(R.expand_dims(a, 2)), relax.const(later[:, None])))
    return bb.emit(R.reshape(bb.emit(R.add(_by_stream(bb, attrs, x), added)), shape_of(x)))


def match_magnitude_body(bb: Any, attrs: Any, x: Any, r: Any) -> Any:
    """A row with the root mean square of another one."""
    own, wanted = (bb.emit(R.mean(bb.emit(R.multiply(v, v)), -1, keepdims=True)) for v in (x, r))
    own = bb.emit(R.maximum(own, relax.const(float(attrs["least"]), "float32")))
    return bb.emit(R.multiply(x, bb.emit(R.divide(bb.emit(R.sqrt(wanted)), bb.emit(R.sqrt(own))))))


def gaussian_top_k_body(bb: Any, attrs: Any, x: Any) -> Any:
    """What of a row lies above a bound by its own mean and deviation."""
    centred = bb.emit(R.subtract(x, bb.emit(R.mean(x, -1, keepdims=True))))
    deviation = bb.emit(R.sqrt(bb.emit(R.mean(bb.emit(R.multiply(centred, centred)), -1, keepdims=True))))
    bound = bb.emit(R.multiply(deviation, relax.const(float(attrs["deviations"]), "float32")))
    return bb.emit(R.nn.relu(bb.emit(R.subtract(centred, bound))))
