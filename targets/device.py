"""What the hardware is: frozen values with a unit in every field name, and for every number where it comes from.

Imports neither tvm nor numpy; the device reads a board with targets/read_board.py on any Python >= 3.10.
Bandwidths are sustained reads in GB/s of 1e9 bytes; sizes are in bytes; times in seconds.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from targets.errors import UserError
from targets.provenance import (
    Provenance,
    label,
    one_of,
    within,
    write_table,
)

FORMAT = 1  # of the JSON form
_TIB = 1 << 40
RATES = ("read", "copy", "decoder")  # what a bandwidth is the rate of


@dataclass(frozen=True)
class Core:
    """One kind of CPU core.

    Attributes:
        name: for example ``cortex-a55``.
        isa: ``aarch64`` or ``x86-64``.
        llvm_cpu: LLVM's name of the core; ``native`` = the core that LLVM finds where it compiles.
        llvm_features: LLVM feature flags, ``+name`` or ``-name``; on ``native`` all that the machine has.
        vector_bits: width of one vector register.
        vector_registers: architectural vector registers.
        fp32_flops_per_cycle: float32 operations a cycle of one core; a fused multiply-add counts two.
        int8_ops_per_cycle: int8 operations a cycle of one core, with int32 accumulation; a multiply-add counts two.
        l1d_bytes: level-1 data cache of one core.
        has_dotprod: int8 dot product (SDOT; VNNI with vectors of vector_bits, 256 or 512).
        has_fp16: float16 arithmetic.
        has_i8mm: int8 matrix multiply (SMMLA).
        in_order: instructions start in the order of the program, so loads and arithmetic do not hide each other.
    """

    name: str = field(metadata=label())
    isa: str = field(metadata=label("aarch64", "x86-64"))
    llvm_cpu: str = field(metadata=label())
    llvm_features: tuple[str, ...] = field(metadata=label())
    vector_bits: int = field(metadata=within(128, 2048))
    vector_registers: int = field(metadata=within(16, 32))
    fp32_flops_per_cycle: float = field(metadata=within(1, 1024))
    int8_ops_per_cycle: float = field(metadata=within(1, 8192))
    l1d_bytes: int = field(metadata=within(4096, 1 << 20))
    has_dotprod: bool = field(metadata=one_of())
    has_fp16: bool = field(metadata=one_of())
    has_i8mm: bool = field(metadata=one_of())
    in_order: bool = field(metadata=one_of())


@dataclass(frozen=True)
class Cluster:
    """Cores of one kind that share a clock.

    Attributes:
        name: unique on the board, for example ``a55``.
        core: what each core is.
        count: number of cores.
        frequency_ghz: clock under sustained load.
        cpu_ids: Linux CPU numbers, one for each core.
        l2_bytes: level-2 cache next to each core, or 0; where the cluster shares one, each core's part.
        l3_bytes: last-level cache that the cluster can use (it may share it with other clusters), or 0.
        bandwidth_one_thread_gb_per_s: DRAM reads of one thread.
        bandwidth_all_threads_gb_per_s: DRAM reads with a thread on each core of the cluster.
        bandwidth_by_threads_gb_per_s: DRAM reads of 1, 2, ... `count` threads, where they are known: they may fall
            again, which the two numbers above cannot say; these stand at its ends, where they are of the same rate.
            Empty where only those are known.
        bandwidth_one_thread_rate, bandwidth_all_threads_rate, bandwidth_by_threads_rate: what was measured: `read` (a
            program that only reads), `copy` (one that writes as much as it reads), or `decoder` (bytes of weights over
            the time of a token, so the losses of kernels are in it).
        launch_overhead_s: fixed cost of one parallel kernel: waking the threads, and the barrier at its end.
    """

    name: str = field(metadata=label())
    core: Core
    count: int = field(metadata=within(1, 1024))
    frequency_ghz: float = field(metadata=within(0.05, 10))
    cpu_ids: tuple[int, ...] = field(metadata=within(0, 4095))
    l2_bytes: int = field(metadata=within(0, 1 << 30))
    l3_bytes: int = field(metadata=within(0, 1 << 32))
    bandwidth_one_thread_gb_per_s: float = field(metadata=within(0.05, 10_000))
    bandwidth_all_threads_gb_per_s: float = field(metadata=within(0.05, 10_000))
    launch_overhead_s: float = field(metadata=within(0, 1))
    bandwidth_by_threads_gb_per_s: tuple[float, ...] = field(default=(), metadata=within(0.05, 10_000))
    bandwidth_one_thread_rate: str = field(default="read", metadata=label(*RATES))
    bandwidth_all_threads_rate: str = field(default="read", metadata=label(*RATES))
    bandwidth_by_threads_rate: str = field(default="read", metadata=label(*RATES))

    @property
    def fp32_gflops(self) -> float:
        """Peak float32 rate of the whole cluster: cores x GHz x FLOP per cycle."""
        return self.count * self.frequency_ghz * self.core.fp32_flops_per_cycle

    @property
    def int8_gops(self) -> float:
        """Peak int8 rate of the whole cluster: cores x GHz x operations per cycle."""
        return self.count * self.frequency_ghz * self.core.int8_ops_per_cycle


@dataclass(frozen=True)
class Gpu:
    """A GPU driven through OpenCL.

    Attributes:
        model: for example ``Mali-G610``.
        shader_cores: number of shader cores.
        frequency_ghz: clock under sustained load.
        fp32_gflops: peak float32 rate of the whole GPU.
        fp16_gflops: peak float16 rate; 0 without ``has_fp16``.
        bandwidth_gb_per_s: DRAM reads of a streaming kernel.
        launch_overhead_s: from enqueue to the start of a kernel, when the queue is empty.
        unified_memory: buffers can be mapped by the CPU without a copy.
        opencl_version: as the driver reports it, for example ``3.0``.
        max_work_group_size: CL_DEVICE_MAX_WORK_GROUP_SIZE.
        has_fp16: cl_khr_fp16.
        native_half: compile kernels that use it; a driver without it cannot build them. Without this fact float16 is
            converted as it is loaded, which every driver can.
        has_integer_dot: products of four int8 with four are one instruction: cl_arm_integer_dot_product_int8 or
            cl_khr_integer_dot_product. Kernels ask the driver; predictions ask this.
    """

    model: str = field(metadata=label())
    shader_cores: int = field(metadata=within(1, 1024))
    frequency_ghz: float = field(metadata=within(0.05, 10))
    fp32_gflops: float = field(metadata=within(0.1, 1e6))
    fp16_gflops: float = field(metadata=within(0, 1e6))
    bandwidth_gb_per_s: float = field(metadata=within(0.05, 10_000))
    launch_overhead_s: float = field(metadata=within(0, 1))
    unified_memory: bool = field(metadata=one_of())
    opencl_version: str = field(metadata=one_of("1.0", "1.1", "1.2", "2.0", "2.1", "2.2", "3.0"))
    max_work_group_size: int = field(metadata=within(1, 65536))
    has_fp16: bool = field(metadata=one_of())
    native_half: bool = field(default=False, metadata=one_of())
    has_integer_dot: bool = field(default=False, metadata=one_of())


@dataclass(frozen=True)
class Dram:
    """The memory that all processors share.

    Attributes:
        capacity_bytes: fitted memory.
        peak_bandwidth_gb_per_s: transfer rate times bus width.
        reserved_bytes: what the system and other programs keep.
    """

    capacity_bytes: int = field(metadata=within(1 << 20, 64 * _TIB))
    peak_bandwidth_gb_per_s: float = field(metadata=within(0.1, 10_000))
    reserved_bytes: int = field(metadata=within(0, 64 * _TIB))


@dataclass(frozen=True)
class Power:
    """What the whole board takes from its supply.

    Attributes:
        decode_w: watts while it generates text.
    """

    decode_w: float = field(metadata=within(0.05, 10_000))


@dataclass(frozen=True)
class Board:
    """A board: clusters of CPU cores, at most one GPU, one DRAM.

    Attributes:
        name: short name, for example ``rk3588``.
        description: one line.
        clusters: fastest first.
        gpu: None where no usable OpenCL GPU is present.
        dram: the shared memory.
        power: None where nobody published it.
        factors: what kernels reach of these numbers, where a calibration found it: names of costmodel/factors.py.
        provenance: dotted path of each number, for example ``clusters.a76.frequency_ghz``,
            ``clusters.a76.core.vector_bits`` or ``dram.reserved_bytes``, to its origin.
    """

    name: str = field(metadata=label())
    description: str = field(metadata=label())
    clusters: tuple[Cluster, ...]
    gpu: Gpu | None
    dram: Dram
    provenance: Mapping[str, Provenance] = field(repr=False, hash=False)
    factors: Mapping[str, float] = field(default_factory=dict, hash=False)
    power: Power | None = None

    @property
    def isa(self) -> str:
        """The instruction set of all clusters."""
        return self.clusters[0].core.isa

    def cluster(self, name: str) -> Cluster:
        """The cluster of that name.

        Raises:
            UserError: no such cluster.
        """
        for cluster in self.clusters:
            if cluster.name == name:
                return cluster
        raise UserError(f"board {self.name} has no cluster {name!r}; it has {', '.join(c.name for c in self.clusters)}")

    def number(self, path: str) -> Any:
        """The number at a path of `provenance`."""
        parts = path.split(".")
        item: Any = self
        if parts[0] == "clusters":
            item, parts = self.cluster(parts[1]), parts[2:]
        for part in parts:
            item = item[part] if isinstance(item, Mapping) else getattr(item, part)
        return item

    def to_json(self) -> dict[str, Any]:
        """Plain JSON, self-contained (the cores are written out), with every number's kind and source."""
        clusters = []
        for cluster in self.clusters:
            path = f"clusters.{cluster.name}"
            core = write_table(cluster.core, f"{path}.core", self.provenance)
            clusters.append({**write_table(cluster, path, self.provenance), "core": core})
        factors = {name: self.provenance[f"factors.{name}"].to_json(value) for name, value in self.factors.items()}
        return {
            "format": FORMAT,
            "name": self.name,
            "description": self.description,
            "clusters": clusters,
            "gpu": None if self.gpu is None else write_table(self.gpu, "gpu", self.provenance),
            "dram": write_table(self.dram, "dram", self.provenance),
            **({"power": write_table(self.power, "power", self.provenance)} if self.power is not None else {}),
            **({"factors": factors} if factors else {}),
        }
