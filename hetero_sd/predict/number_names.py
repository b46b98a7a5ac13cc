"""What a number of a board file is, in words: ``clusters.a76.frequency_ghz`` is the clock of a76."""

from __future__ import annotations

_OF_A_CLUSTER = {
    "bandwidth_one_thread_gb_per_s": "DRAM reads of one thread on {}",
    "bandwidth_all_threads_gb_per_s": "DRAM reads of all threads on {}",
    "bandwidth_by_threads_gb_per_s": "DRAM reads on {}",
    "core.fp32_flops_per_cycle": "arithmetic on {}",
    "launch_overhead_s": "start of parallel work on {}",
}
_OTHERS = {
    "gpu.bandwidth_gb_per_s": "DRAM reads of the GPU",
    "gpu.fp32_gflops": "arithmetic of the GPU",
    "gpu.launch_overhead_s": "launches of GPU kernels",
    "dram.peak_bandwidth_gb_per_s": "what DRAM gives to both processors",
}


def in_words(path: str) -> str:
    """A number that makes an interval wide; one without words of its own is named as it is."""
    if path.startswith("clusters."):
        _, cluster, name = path.split(".", 2)
        return _OF_A_CLUSTER[name].format(cluster) if name in _OF_A_CLUSTER else path
    if path.startswith("factor "):
        return path.removeprefix("factor ").replace("_", " ")
    return _OTHERS.get(path, path)
