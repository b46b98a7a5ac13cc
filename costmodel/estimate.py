"""Estimated time as a value: seconds with named parts, so that a sum still says where the time goes."""

from __future__ import annotations

from dataclasses import dataclass, fields


@dataclass(frozen=True)
class Estimate:
    """Seconds by cause.

    Attributes:
        compute_s: bound by the arithmetic units, or arithmetic that memory traffic does not hide.
        memory_s: waiting for memory, or traffic that arithmetic does not hide.
        launch_s: entering and leaving parallel regions, starting a GPU whose queue is empty.
        dispatch_s: calling kernels one after the other, and the loop around a step.
        transfer_s: borders between processors: hand-over and bytes moved.
    """

    compute_s: float = 0.0
    memory_s: float = 0.0
    launch_s: float = 0.0
    dispatch_s: float = 0.0
    transfer_s: float = 0.0

    @property
    def total_s(self) -> float:
        """The sum of the parts."""
        return self.compute_s + self.memory_s + self.launch_s + self.dispatch_s + self.transfer_s

    def __add__(self, other: Estimate) -> Estimate:
        """Parts are added one by one."""
        return Estimate(
            self.compute_s + other.compute_s,
            self.memory_s + other.memory_s,
            self.launch_s + other.launch_s,
            self.dispatch_s + other.dispatch_s,
            self.transfer_s + other.transfer_s,
        )

    def __mul__(self, times: float) -> Estimate:
        """The same work `times` times."""
        return Estimate(*(getattr(self, f.name) * times for f in fields(self)))

    __rmul__ = __mul__

    def parts(self) -> dict[str, float]:
        """Part -> seconds, in order, those that are not zero."""
        return {f.name.removesuffix("_s"): v for f in fields(self) if (v := getattr(self, f.name)) > 0}

    def explain(self) -> str:
        """One line, largest part first: ``12.3 ms: memory 90 %, compute 8 %, launch 2 %``."""
        total = self.total_s
        if total <= 0:
            return "0 s"
        ranked = sorted(self.parts().items(), key=lambda part: -part[1])
        shares = ", ".join(f"{name} {100 * s / total:.0f} %" for name, s in ranked if s >= 0.005 * total)
        return f"{seconds(total)}: {shares}"


def total(estimates: list[Estimate]) -> Estimate:
    """The sum of many."""
    return Estimate(
        sum(e.compute_s for e in estimates),
        sum(e.memory_s for e in estimates),
        sum(e.launch_s for e in estimates),
        sum(e.dispatch_s for e in estimates),
        sum(e.transfer_s for e in estimates),
    )


def seconds(value: float) -> str:
    """A duration for people, three digits: ``412 us``, ``12.3 ms``, ``1.02 s``."""
    for unit, scale in (("us", 1e6), ("ms", 1e3)):
        if abs(value) * scale < 999.5:
            return f"{value * scale:.3g} {unit}"
    return f"{value:.3g} s"
