"""How keys and values are stored in the KV caches: what kernels, layout, cost model, manifest and options read.

A type is an entry here, and how the attention kernels store and read it (targets/cpu/kernels/kv_cache.py,
targets/opencl/kernels/kv_cache.py).

Where a type has scales, the numbers of a head's key are codes -127 .. 127 times one float32, the largest magnitude over
127, and so are those of its value; there are no zero points. Both scales lie with the key: in a key tile, whose rows
are head_dim and whose columns are keys, behind the codes. They are float32 because no magnitude overflows it and every
processor reads it; it is 4 bytes beside head_dim of codes.
"""

from __future__ import annotations

from dataclasses import dataclass

from targets.errors import UserError

LARGEST_CODE = 127
LEAST_MAGNITUDE = 1e-36  # of a head's key or value; what is smaller is stored as zeros


@dataclass(frozen=True)
class KvFormat:
    """A type of KV cache.

    Attributes:
        name: of the stored numbers' type.
        bytes: of a number.
        scales: numbers are codes with scales.
        conversions: vector instructions that make a vector of them floats.
    """

    name: str
    bytes: int
    scales: bool = False
    conversions: float = 0.0

    @property
    def scale_rows(self) -> int:
        """Rows of a key tile, of one number a key, that hold the scales of its keys and then those of its values."""
        return 2 * 4 // self.bytes if self.scales else 0

    def token_bytes(self, head_dim: int) -> int:
        """Bytes of a token's key and value of one head."""
        return self.bytes * (2 * head_dim + self.scale_rows)


KV_FORMATS = {
    kv.name: kv
    for kv in (
        KvFormat("float32", 4),
        KvFormat("float16", 2, conversions=1.0),
        KvFormat("int8", 1, scales=True, conversions=2.0),  # widen, to float
    )
}
DEFAULT_KV = next(iter(KV_FORMATS))


def kv_format(name: str) -> KvFormat:
    """The type that `--kv` names.

    Raises:
        UserError: there is none of that name.
    """
    if name not in KV_FORMATS:
        raise UserError(f"--kv {name!r} is not a type of KV cache; types: {', '.join(KV_FORMATS)}")
    return KV_FORMATS[name]
