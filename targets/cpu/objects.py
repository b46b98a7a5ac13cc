"""Kernels compiled one by one: an object file each, several at a time, and what a library needs besides them.

TVM compiles a whole module on one core, and its TVMScript parser takes as long as LLVM. A kernel whose object lies in
the cache (targets/kernels/kernel_cache.py) is neither parsed nor compiled: the module holds a declaration of it.
"""

from __future__ import annotations

import os
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from targets.backend import Progress
from targets.device import Core
from targets.kernels.denied_memory import no_memory_denied
from targets.kernels.kernel_cache import CompiledKernel, KernelCache, kernel_symbol
from targets.kernels.made import made

_SYMBOL = "hsd.symbol"  # an attribute, since TVM makes one function of those that are equal


class CpuKernels:
    """What makes and compiles the kernels of one core."""

    def __init__(self, makers: Any, target: Any, cache: KernelCache, bodies: bool = False) -> None:
        """Make them with `makers` for a TVM target; `bodies`: never a declaration, for people who read them."""
        self._makers, self._target, self._cache, self._bodies = makers, target, cache, bodies
        self._absent = set[str]()  # stay so: a module must not have a body and a declaration of one kernel

    def make(self, maker: str, name: str, tile: Any, sizes: dict[str, Any]) -> tuple[str, Any]:
        """The symbol and the PrimFunc of a kernel, which is a declaration where its object is in the cache.

        Args:
            maker: a name of targets/kernels/signatures.py.
            name: the first part of the symbol.
            tile: what the maker takes first.
            sizes: and by name.
        """
        symbol = kernel_symbol(name, maker, tile, sorted(sizes.items()), str(self._target))
        found = None if self._bodies or symbol in self._absent else self._cache.get(symbol)
        if found is not None:
            return symbol, _declaration(symbol, found)
        self._absent.add(symbol)
        return symbol, made(self._makers[maker], tile, sizes).with_attr(_SYMBOL, symbol)

    def objects(self, mod: Any, folder: Path, progress: Progress) -> dict[str, bytes]:
        """The object file of each PrimFunc of a lowered module, by its symbol; `folder` is for what LLVM writes."""
        functions = primitive_functions(mod)
        missing = [symbol for symbol in functions if self._cache.get(symbol) is None]

        def compiled(symbol: str) -> tuple[str, CompiledKernel]:
            return symbol, _compile(functions[symbol], symbol, self._target, folder)

        with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as threads:  # LLVM runs without Python's lock
            for done, (symbol, kernel) in enumerate(threads.map(compiled, missing), 1):
                self._cache.put(symbol, kernel)
                progress("compile kernels", done, len(missing))
        self._cache.remove_oldest()
        return {symbol: self._kernel(symbol).content for symbol in functions}

    def _kernel(self, symbol: str) -> CompiledKernel:
        found = self._cache.get(symbol)
        assert found is not None, symbol
        return found


def primitive_functions(mod: Any) -> dict[str, Any]:
    """The PrimFuncs of a module by name."""
    from tvm.tirx import PrimFunc

    return {str(v.name_hint): f for v, f in mod.functions.items() if isinstance(f, PrimFunc)}


def build_library(mod: Any, core: Core, path: Path, kernels: CpuKernels, progress: Progress) -> None:
    """Compile a lowered module and write it as a shared library; the same bytes whatever was in the cache."""
    import tvm
    from tvm import relax

    from targets.cpu.linker import link_function
    from targets.cpu.target import tvm_target
    from targets.kernels import vm_code

    target = tvm_target(core)
    pipeline = tvm.transform.Sequential([_declare(), vm_code.pipeline(), _call_by_name()])
    with no_memory_denied():
        executable = relax.build(mod, target, relax_pipeline=pipeline)
    path.parent.mkdir(parents=True, exist_ok=True)
    # beside the library, so that what a killed build leaves goes as a whole
    with tempfile.TemporaryDirectory(dir=path.absolute().parent, prefix=".objects-") as folder:
        files = []
        for symbol, content in sorted(kernels.objects(mod, Path(folder), progress).items()):
            files.append(Path(folder) / f"{symbol}.o")
            files[-1].write_bytes(content)
        addons = [str(file) for file in files]
        executable.export_library(str(path), fcompile=link_function(core), addons=addons, workspace_dir=folder)


def _declare() -> Any:
    """A pass: only the declarations of PrimFuncs, so that TVM sees the same whatever was in the cache."""
    import tvm

    @tvm.transform.module_pass(opt_level=0, name="Declare")  # type: ignore[untyped-decorator]
    def declare(mod: Any, ctx: Any) -> Any:
        functions = {
            var: _declaration(str(var.name_hint), _signature(func, b""))
            if isinstance(func, tvm.tirx.PrimFunc)
            else func
            for var, func in mod.functions.items()
        }
        return tvm.IRModule(functions, attrs=mod.attrs)

    return declare


def _call_by_name() -> Any:
    """A pass: calls of PrimFuncs become calls of functions that are linked later, and the PrimFuncs go."""
    import tvm
    from tvm import relax

    @relax.expr_functor.mutator
    class ByName(relax.PyExprMutator):  # type: ignore[misc]
        def visit_call_(self, call: Any) -> Any:
            call = self.visit_expr_post_order(call)
            if not isinstance(call.op, tvm.ir.GlobalVar) or call.op.name_hint not in self.symbols:
                return call
            return relax.Call(relax.ExternFunc(call.op.name_hint), call.args, call.attrs, call.ty_args, ret_ty=call.ty)

    @tvm.transform.module_pass(opt_level=0, name="CallByName")  # type: ignore[untyped-decorator]
    def call_by_name(mod: Any, ctx: Any) -> Any:
        by_name = ByName(mod)
        by_name.symbols = primitive_functions(mod)
        functions = {
            var: by_name.visit_expr(func)
            for var, func in mod.functions.items()
            if str(var.name_hint) not in by_name.symbols
        }
        return tvm.IRModule(functions, attrs=mod.attrs)

    return call_by_name


def _compile(func: Any, symbol: str, target: Any, folder: Path) -> CompiledKernel:
    import tvm

    module = tvm.IRModule({symbol: func.with_attr("global_symbol", symbol)})
    path = folder / f"{symbol}.o"
    with no_memory_denied():
        built = tvm.tirx.build(module, target=target, pipeline="default")
    built.write_to_file(str(path))
    return _signature(func, path.read_bytes())


def _signature(func: Any, content: bytes) -> CompiledKernel:
    return CompiledKernel(tuple((_shape(p.ty), str(p.ty.dtype)) for p in func.params), content)


def _shape(kind: Any) -> tuple[int, ...] | None:
    return tuple(int(d) for d in kind.shape) if hasattr(kind, "shape") else None


def _declaration(symbol: str, kernel: CompiledKernel) -> Any:
    """A PrimFunc with the parameters of a kernel and nothing in it; with its symbol."""
    from tvm import tirx

    parameters = [
        tirx.Var(f"p{i}", dtype) if shape is None else tirx.decl_buffer(shape, dtype, name=f"p{i}")
        for i, (shape, dtype) in enumerate(kernel.parameters)
    ]
    return tirx.PrimFunc(parameters, tirx.Evaluate(0)).with_attr(_SYMBOL, symbol)
