"""What the doctor says of a bundle: its thread pool, and whether its GPU kernels build here."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from hetero_sd.runtime.doctor.finding import Finding
from hetero_sd.runtime.doctor.kernel_check import KernelCheck, check_kernels, gpu_libraries
from hetero_sd.runtime.manifest import MANIFEST, Bundle
from hetero_sd.runtime.model.program_cache import cache_folder, why_not_usable
from hetero_sd.runtime.model.thread_pool import PoolError, pool_of, why_tvms_pool
from hetero_sd.runtime.model.threads import choose_threads, usable_cpus
from targets.errors import UserError


def bundle_findings(folder: Path, opencl_lib: str | None, has_device: bool) -> list[Finding]:
    """Build every GPU kernel of a bundle; a folder that is none is left alone."""
    if not (folder / MANIFEST).is_file():
        return []
    try:
        bundle = Bundle(folder)
        threads = _thread_pool(bundle)
        if not gpu_libraries(bundle):
            return [threads, Finding("kernels", "ok", "the bundle has no GPU kernels: its models run on the CPU")]
        if not has_device:
            return [threads, _without_gpu(bundle)]
        return [threads, *kernel_findings(check_kernels(folder, opencl_lib)), *cache_findings()]
    except UserError as error:
        return [Finding("bundle", "problem", str(error), "copy the bundle again")]


def _thread_pool(bundle: Bundle) -> Finding:
    """Say whose thread pool runs the CPU kernels, and what a parallel region of ours costs here."""
    why = why_tvms_pool(bundle)
    threads = choose_threads(None, bundle.plan)
    if why is None:
        try:
            pool = pool_of(bundle, usable_cpus(), threads, threads)
        except PoolError as error:
            why = str(error)
    if why is not None:
        fix = "unset HSD_THREAD_POOL" if why.startswith("HSD_") else "compile the bundle again"
        return Finding("threads", "note", f"TVM's thread pool is used, which suffers on a busy machine: {why}", fix)
    cost_us = 1e6 * pool.region_cost_s()
    pool.close()
    cost = f"a parallel region of {threads} threads adds {cost_us:.1f} us" if threads > 1 else "one thread"
    return Finding("threads", "ok", f"our thread pool: {cost}")


def _without_gpu(bundle: Bundle) -> Finding:
    lost = [role for role, model in bundle.models.items() if model.opencl_runtime and not model.fallback]
    if lost:
        text = f"the {' and the '.join(lost)} of the bundle cannot run here: no OpenCL device"
        return Finding("kernels", "problem", text, "fix what is said of opencl, or compile with --place cpu")
    return Finding("kernels", "note", "no OpenCL device: the bundle's models run on the CPU, for which it has them too")


def kernel_findings(checks: list[KernelCheck]) -> list[Finding]:
    """Judge what became of the kernels of each library; at most five are named."""
    fix = "install another release of the driver; until then compile with --place cpu"
    findings = []
    for check in checks:
        for name, reason in check.failed[:5]:
            text = f"{check.library}: kernel {name} does not build: {reason.partition('; its log: ')[2] or reason}"
            findings.append(Finding("kernels", "problem", text, fix))
        if len(check.failed) > 5:
            findings.append(Finding("kernels", "problem", f"{check.library}: and {len(check.failed) - 5} more", fix))
        if check.problem:
            findings.append(Finding("kernels", "problem", f"{check.library}: {check.problem}", fix))
        elif not check.failed:
            findings.append(Finding("kernels", "ok", f"{check.library}: all {check.kernels} kernels build"))
    return findings


def cache_findings() -> Iterator[Finding]:
    """Say where compiled kernels are kept, or that they are not."""
    folder = cache_folder()
    where = "there is no folder" if folder is None else why_not_usable(folder)
    if where is not None:
        text = f"{where} to keep compiled kernels in: every start compiles them"
        yield Finding("cache", "note", text, "run.py --cache-dir FOLDER")
    else:
        yield Finding("cache", "ok", f"compiled kernels are kept in {folder}")
