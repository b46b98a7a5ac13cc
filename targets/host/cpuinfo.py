"""What Linux says of CPUs and memory, for whoever describes a machine: the board `host`, `doctor`, a calibration."""

from __future__ import annotations

from pathlib import Path

ARM = "0x41"  # "CPU implementer" of /proc/cpuinfo
# "CPU part" of Arm's cores: the MIDR_EL1 numbers of their reference manuals
ARM_PARTS = {
    "0xd03": "cortex-a53",
    "0xd04": "cortex-a35",
    "0xd05": "cortex-a55",
    "0xd07": "cortex-a57",
    "0xd08": "cortex-a72",
    "0xd09": "cortex-a73",
    "0xd0a": "cortex-a75",
    "0xd0b": "cortex-a76",
    "0xd0d": "cortex-a77",
    "0xd41": "cortex-a78",
    "0xd44": "cortex-x1",
    "0xd46": "cortex-a510",
    "0xd47": "cortex-a710",
    "0xd48": "cortex-x2",
    "0xd4d": "cortex-a715",
    "0xd80": "cortex-a520",
    "0xd81": "cortex-a720",
}


def read_cpus(root: Path) -> dict[int, dict[str, str]]:
    """CPU number -> its fields in /proc/cpuinfo, ascending; empty where it cannot be read."""
    cpus: dict[int, dict[str, str]] = {}
    for block in read_text(root / "proc/cpuinfo").split("\n\n"):
        pairs = (line.partition(":") for line in block.splitlines() if ":" in line)
        fields = {key.strip(): value.strip() for key, _, value in pairs}
        if fields.get("processor", "").isdigit():
            cpus[int(fields["processor"])] = fields
    return dict(sorted(cpus.items()))


def core_name(fields: dict[str, str]) -> str:
    """The core of a CPU's fields: ``cortex-a76``, or, of a core that is in no table, its part and maker."""
    part, maker = fields.get("CPU part", "unknown"), fields.get("CPU implementer", "unknown")
    known = ARM_PARTS.get(part) if maker == ARM else None
    return known or f"core {part} of maker {maker}"


def read_memory(root: Path) -> dict[str, int]:
    """Bytes by the names of /proc/meminfo; empty where it cannot be read."""
    sizes = {}
    for line in read_text(root / "proc/meminfo").splitlines():
        key, _, rest = line.partition(":")
        if rest.strip().endswith("kB"):
            sizes[key] = int(rest.split()[0]) * 1024
    return sizes


def read_number(path: Path) -> int:
    """A whole number that a file holds; 0 where it holds none."""
    text = read_text(path)
    return int(text) if text.isdigit() else 0


def read_text(path: Path) -> str:
    """The text of a file of /proc or /sys, without the blanks around it; empty where it cannot be read."""
    try:
        return path.read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        return ""
