"""Numbers for people: no powers of ten, and a unit that follows from the number's name."""

from __future__ import annotations

from decimal import Decimal

from costmodel.estimate import seconds

_SUFFIXES = (
    ("_gb_per_s", "GB/s"),
    ("_ghz", "GHz"),
    ("_gflops", "GFLOP/s"),
    ("_w", "W"),
    ("_flops_per_cycle", "operations a cycle"),
    ("_cycles", "cycles"),
    ("_ns", "ns"),
)


def plain(value: float, digits: int = 4) -> str:
    """A number without an exponent: ``150000``, ``0.00006``, ``2.4``."""
    if value == int(value) and abs(value) < 1e15:
        return str(int(value))
    return format(Decimal(f"{value:.{digits}g}"), "f")


def size(count: float) -> str:
    """Bytes in the unit that suits them, powers of 1000, three digits: ``65.5 kB``, ``17.2 GB``."""
    for unit, scale in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if abs(count) >= 0.9995 * scale:
            return f"{plain(count / scale, 3)} {unit}"
    return f"{plain(count, 3)} B"


def with_unit(name: str, value: object) -> str:
    """A number of a board file or a factor by the unit that ends its name; other values as they are."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    unit = next((unit for suffix, unit in _SUFFIXES if name.endswith(suffix)), "")
    if isinstance(value, tuple) and unit:
        return f"{', '.join(plain(each) for each in value)} {unit}"
    if isinstance(value, tuple):
        return ", ".join(with_unit(name, each) for each in value)
    if not isinstance(value, (int, float)):
        return str(value)
    if unit:
        return f"{plain(value)} {unit}"
    if name.endswith("_bytes"):
        return size(value)
    return seconds(value) if name.endswith("_s") else plain(value)
