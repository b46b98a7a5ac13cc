"""Rules for the tests themselves: nothing is skipped but by requirements.py, and tests lie where their subject lies."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest
from golden import Golden
from requirements import missing, need, only_where

ROOT = Path(__file__).resolve().parent.parent
SUPPORT = ROOT / "tests" / "support"
PACKAGES = ("targets", "costmodel", "passes", "hetero_sd")
SKIPS = {"skip", "skipif", "importorskip", "xfail", "SkipTest", "skipTest", "skipIf", "skipUnless"}

# Tests of several files of their folder; every other test is named after the file or the folder that it tests.
CROSS_CUTTING = {
    "costmodel/schema/test_keys.py": "no file outside the schema spells its keys",
    "targets/test_imports.py": "every package, without what its layer may not import",
    "targets/cpu/test_arm_loops.py": "the integer kernels in assembly, for each Arm core",
    "targets/cpu/test_x86_loops.py": "the integer kernels in assembly, for x86-64 cores with VNNI",
    "targets/cpu/test_linear_int.py": "kernels/linear_int.py on this machine",
    "targets/opencl/test_against_cpu.py": "kernels of two processors",
    "targets/opencl/test_rows_of_sequences.py": "kernels of rows with a slot and a position each",
    "targets/opencl/test_streams.py": "the OpenCL kernels of several files",
    "targets/opencl/test_linear_int.py": "kernels/linear_int.py and integer_dot.py on a device",
    "targets/opencl/test_native_half.py": "kernels and tile: half arithmetic, compiled only",
    "targets/opencl/test_opencl_building.py": "runtime/building.py",
    "targets/opencl/test_opencl_processes.py": "opencl_runtime in processes of their own",
    "targets/opencl/test_opencl_program_cache.py": "runtime/src/binary_cache.cc and the runtime's program_cache.py",
    "targets/opencl/test_opencl_sanitizers.py": "opencl_runtime's C++ alone",
    "passes/lower/test_opencl.py": "operators.py with the OpenCL backend, on a device",
    "passes/test_relax_passes.py": "the small Relax passes",
    "passes/onnx/test_cases.py": "the whole importer on exports of other tools",
    "passes/onnx/test_node_order.py": "the whole importer on shuffled graphs",
    "passes/onnx/test_outputs_keep_their_names.py": "every pass: names and order of inputs and outputs",
    "passes/onnx/test_canonicalise.py": "the whole importer, from onnx/__init__.py",
    "passes/onnx/test_coverage.py": "the whole importer on every export",
    "passes/onnx/test_dialects.py": "the whole importer on other spellings",
    "passes/onnx/test_family_passes.py": "the passes that other families need",
    "passes/onnx/test_fuzz.py": "the whole importer on damaged files",
    "passes/onnx/test_norms.py": "fuse_rms_norm.py and norm_by_head.py",
    "passes/onnx/test_small_passes.py": "passes that rewrite one thing each",
    "passes/onnx/test_variants.py": "the whole importer on edited exports",
    "hetero_sd/test_context.py": "compile and inspect: the context where none is given",
    "hetero_sd/test_logit_bound.py": "verify.py: the bound at every scale of logits",
    "hetero_sd/runtime/test_manifest_mutations.py": "the schema, manifest_checks.py, library_facts.py",
    "hetero_sd/runtime/test_not_finite.py": "logits that are not finite, in every mode",
    "hetero_sd/test_defaults.py": "compile and run without options",
    "hetero_sd/predict/test_published_boards.py": "the cost model and predict: the 14 points of published boards",
    "hetero_sd/quantisation/test_bundles.py": "compile --quantise and verify",
    "hetero_sd/test_memory.py": "compile's peak memory",
    "hetero_sd/runtime/test_doctor_machines.py": "doctor on whole machines",
    "hetero_sd/runtime/test_numpy_backend.py": "a backend from compiling to decoding",
    "hetero_sd/runtime/test_gpu_model.py": "model.py on an OpenCL device",
    "hetero_sd/runtime/test_gpu_slots.py": "model.py and the batch engine on an OpenCL device",
    "hetero_sd/runtime/test_gpu_streams.py": "streams side by side on an OpenCL device",
    "hetero_sd/runtime/decode/drafters/test_protocol.py": "the Drafter protocol, by a drafter of its own",
    "hetero_sd/runtime/decode/test_every_mode.py": "ends of texts and of rounds in every mode, on compiled bundles",
    "hetero_sd/runtime/decode/test_overlapped_events.py": "costmodel/overlapped_events.py beside the threads' own code",
    "hetero_sd/runtime/decode/test_overlapped_gpu.py": "a compiled pair on two processors, in every mode",
    "hetero_sd/runtime/test_speculative_law.py": "speculate.py with sampling.py: the law of the output",
}


def skips(path: Path) -> Iterator[str]:
    """Every use of pytest's or unittest's skips, and every look at the variable CI, in a file."""
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        names: list[str] = []
        if isinstance(node, ast.Attribute):
            names = [node.attr]
        elif isinstance(node, ast.ImportFrom) and node.module in ("pytest", "unittest", "_pytest.outcomes"):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.Constant) and node.value == "CI":
            yield f"{path.name}:{node.lineno}: reads CI"
        yield from (f"{path.name}:{node.lineno}: {name}" for name in names if name in SKIPS)


def test_only_requirements_skip() -> None:
    """So that nothing that can be installed is skipped in CI."""
    allowed = {SUPPORT / "requirements.py", Path(__file__)}
    files = [p for p in sorted((ROOT / "tests").rglob("*.py")) if p not in allowed]
    assert len(files) > 50
    assert [found for path in files for found in skips(path)] == []
    assert len(list(skips(SUPPORT / "requirements.py"))) == 3  # two skips and CI


@pytest.mark.parametrize(
    "line",
    [
        "pytest.skip('no compiler')",
        "tvm = pytest.importorskip('tvm')",
        "@pytest.mark.skipif(True, reason='')\ndef test() -> None: ...",
        "@pytest.mark.xfail\ndef test() -> None: ...",
        "from pytest import skip",
        "os.environ.get('CI')",
        "raise unittest.SkipTest",
    ],
)
def test_a_planted_skip_is_found(tmp_path: Path, line: str) -> None:
    planted = tmp_path / "test_planted.py"
    planted.write_text(line)
    assert len(list(skips(planted))) == 1


def test_what_is_missing_fails_in_ci_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    need(True, "no compiler")
    only_where(True, "another machine")
    monkeypatch.delenv("CI", raising=False)
    with pytest.raises(pytest.skip.Exception, match=r"^no compiler: run tests/setup\.sh$"):
        need(None, "no compiler")
    with pytest.raises(pytest.skip.Exception, match=r"^no network: connect it$"):
        missing("no network", "connect it")
    monkeypatch.setenv("CI", "true")
    with pytest.raises(pytest.fail.Exception, match=r"^no compiler: run tests/setup\.sh$"):
        need(None, "no compiler")
    with pytest.raises(pytest.skip.Exception, match="another machine"):  # nothing to install helps
        only_where(False, "another machine")


def test_a_golden_file_is_compared_and_rewritten(tmp_path: Path) -> None:
    compare, update = Golden(False, tmp_path), Golden(True, tmp_path)
    with pytest.raises(pytest.fail.Exception, match=r"no golden file a/b\.txt: run this test with --update-golden"):
        compare("a/b.txt", "one\n")
    update("a/b.txt", "one\ntwo\n")
    compare("a/b.txt", "one\ntwo\n")
    with pytest.raises(pytest.fail.Exception) as caught:
        compare("a/b.txt", "one\n2\n")
    assert "--- golden/a/b.txt\n+++ found\n@@ -1,2 +1,2 @@\n one\n-two\n+2\n" in str(caught.value)
    with pytest.raises(pytest.fail.Exception, match="no newline at the end"):
        compare("a/b.txt", "one\ntwo")
    update("a/b.txt", "one\n2\n")
    compare("a/b.txt", "one\n2\n")


def without_subject(root: Path) -> list[str]:
    """The tests of the packages for which no file and no folder of the same place and name exists."""
    found = []
    for package in PACKAGES:
        for path in sorted((root / "tests" / package).rglob("test_*.py")):
            place = path.relative_to(root / "tests")
            subject = root / place.with_name(place.stem.removeprefix("test_"))
            if not subject.is_dir() and not subject.with_suffix(".py").is_file():
                found.append(str(place))
    return found


def test_tests_lie_where_their_subject_lies() -> None:
    assert set(without_subject(ROOT)) == set(CROSS_CUTTING)


def test_a_test_without_a_subject_is_found(tmp_path: Path) -> None:
    for name in ("costmodel/memory.py", "tests/costmodel/test_memory.py", "tests/costmodel/sub/test_memory.py"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    assert without_subject(tmp_path) == ["costmodel/sub/test_memory.py"]
