"""No key of the schema is spelled in another file: host and device read and write it through the same classes."""

from __future__ import annotations

import ast
import dataclasses
from collections.abc import Iterator
from pathlib import Path

from schema_records import RECORDS

ROOT = Path(__file__).resolve().parents[3]
SEARCHED = ("targets", "costmodel", "passes", "hetero_sd", "benchmarks", "examples")
# Fields that are ordinary words and keys of something else, too; no file that reads a manifest or a plan needs them.
WORDS = {
    "alpha": "the attribute of Gemm and LeakyRelu; the acceptance in what `predict` and `acceptance` print",
    "axis": "an attribute of ONNX nodes",
    "device": "an argument of TVM's targets and of tensors",
    "draft target": "roles, the keys of every mapping from role to model",
    "dtype": "a tensor's, in a safetensors header",
    "error": "a relative error in tables of results; a compiler's message",
    "format": "of board files and other files of ours",
    "gpu": "a processor, the key of mappings from processor to library or tile; a board's section",
    "high low": "an interval's ends in tables of results; bounds of a board's number",
    "interval": "of an acceptance, in what `acceptance` writes",
    "kind": "of a number's provenance in board files; of a node",
    "layers": "in config.json and in the importer's facts",
    "machine": "in the benchmarks' results",
    "model": "in config.json and in tables of results; the metadata of a weights file",
    "models": "in what `compile --json` prints",
    "n past chunk": "variables of the exported shape arithmetic; columns of tables of results",
    "name": "of nodes, boards, clusters, events and much else",
    "other verify": "terms of a round's time; a command",
    "outputs": "of an ONNX node",
    "params": "a training checkpoint's",
    "passes points samples": "the importer's log; the benchmarks' results",
    "place": "in what `explain --json` prints; a word of the example's text",
    "processor": "a field of /proc/cpuinfo; a column of tables of results",
    "role": "of a chat message; of an HTML element",
    "stable": "a column of tables of results",
    "threads": "a column of tables of results; in what a run measured",
    "start end": "variables of the exported shape arithmetic",
    "total": "a variable of the exported shape arithmetic; memory of this machine",
    "variants": "in what malioc prints",
    "vocab": "in config.json; a dimension of the lowered functions",
}
# file -> why it has more keys that are spelled like fields of the schema, and which ones
DOCUMENTS = {
    "costmodel/fit.py": ("a factor of that name", "overlap"),
    "costmodel/uncertainty.py": ("kinds of an acceptance", "given"),
    "hetero_sd/predict/check.py": ("what `predict --check --json` prints", "board"),
    "hetero_sd/predict/published.py": ("a file of published measurements", "cluster weights"),
    "targets/host/__init__.py": ("a board's numbers", "bandwidth_one_thread_gb_per_s cpu_ids"),
    "passes/lower/operators.py": ("dimensions of the lowered functions", "context slots"),
    "passes/relax/dialect.py": ("bounds of a clip", "least"),
    "passes/onnx/rewrite/altup_guesses.py": ("attributes of an operator", "first"),
    "passes/onnx/rewrite/fuse_magnitudes.py": ("attributes of an operator", "least"),
    "passes/relax/stream_bodies.py": ("attributes of an operator", "first least"),
    "hetero_sd/acceptance_rate.py": ("what `acceptance` writes", "gamma tokens_per_round"),
    "hetero_sd/commands/acceptance.py": ("what `acceptance` writes", "gamma tokens_per_round"),
    "hetero_sd/calibrated_board.py": ("a board's numbers", "bandwidth_gb_per_s unified_memory"),
    "hetero_sd/compile/compile_report.py": ("what `compile --json` prints", "plan weight_dtype activations slots"),
    "hetero_sd/compile/verdict.py": ('"gamma" is an entry of Plan.given, no key', "gamma"),
    "hetero_sd/explain_text.py": ("what `explain --json` prints", "board context"),
    "hetero_sd/inspect_text.py": ("what `inspect --json` prints", "context tokenizer"),
    "hetero_sd/predict/text.py": ("what `predict --json` prints", "board context verdict"),
    "hetero_sd/runtime/decode/stats.py": (
        "what a run measured",
        "acceptance_rate confidence_s hand_over tokens_per_round tokens_per_s",
    ),
    "hetero_sd/runtime/decode/stats_text.py": ("what a run measured", "after before confidence_s round_s"),
    "hetero_sd/quantisation/cost.py": ("arguments of ReferenceModel", "activations"),
    "hetero_sd/quantisation/recipes.py": ("a file of formats", "matrices"),
    "hetero_sd/runtime/answer.py": ("what a run measured", "mode"),
    "hetero_sd/runtime/load.py": ("how a bundle is loaded", "gamma least mode"),
    "hetero_sd/runtime/request.py": ("how a bundle is loaded", "gamma least mode"),
    "hetero_sd/runtime/run.py": ("how a bundle is loaded", "mode"),
    "hetero_sd/runtime/saved_state.py": ("a saved state", "tensors"),
    "hetero_sd/runtime/serve/command.py": ("how a bundle is loaded", "mode"),
    "hetero_sd/runtime/serve/replies.py": ("why an answer ended; OpenAI's reply", "bytes context"),
    "hetero_sd/runtime/trust.py": ("run.py carries it, and imports nothing of ours before it", "bytes files sha256"),
    "hetero_sd/predict/sweep_page.py": (
        "columns of what `sweep` writes, and what its page shows",
        "against_best board context gamma mode tokens_per_s verdict",
    ),
    "hetero_sd/sweep.py": (
        "columns of what `sweep` writes",
        "against_best against_same board context gamma mode tokens_per_s",
    ),
    "benchmarks/adaptive.py": ("its results", "gamma live"),
    "benchmarks/draft_lengths.py": ("its results", "acceptance_rate gamma least tokens_per_s"),
    "benchmarks/decode.py": ("its results", "gb_per_s"),
    "benchmarks/kernels.py": ("its results", "bandwidth_gb_per_s"),
    "benchmarks/peers.py": ("a configuration of onnxruntime-genai", "inputs"),
    "benchmarks/votes.py": ("how a bundle is loaded", "mode"),
    "benchmarks/prediction_rounds.py": (
        "its results",
        "bandwidth_gb_per_s draft_s gamma mode round_s turns verify_s",
    ),
    "benchmarks/prediction_table.py": (
        "its results, and a board's numbers",
        "bandwidth_gb_per_s gamma mode unified_memory",
    ),
    "benchmarks/prediction_text.py": ("its results", "bandwidth_gb_per_s gamma mode round_s"),
    "benchmarks/prediction_worker.py": ("its results", "bandwidth_gb_per_s gamma turns"),
    "benchmarks/simulated_pair.py": ("fields of its Case", "early_exit turn_s"),
    "benchmarks/speculation.py": ("its results", "gamma mode plan tokens_per_s"),
    "benchmarks/speculation_cases.py": ("fields of CompileRequest", "context target_widths"),
    "benchmarks/speculation_worker.py": (
        "its results, and arguments of Session",
        "acceptance_rate overlap tokens_per_s",
    ),
    "hetero_sd/predict/number_names.py": ("fields of a board's Cluster", "bandwidth_one_thread_gb_per_s"),
    "examples/chat/chat.py": ("what `run.py --json` prints", "tokens_per_s"),
    "examples/chat/export.py": ("a tokenizer.json", "version"),
    "examples/translation/demo.py": ("what `run.py --json` prints", "tokens_per_s"),
    "examples/translation/evaluate.py": ("what `acceptance` writes", "gamma tokens_per_round"),
}


def json_keys(source: str) -> Iterator[str]:
    """Every text that is used as a key: x["key"], x.get("key"), x.pop("key"), "key" in x, {"key": ...}."""
    for node in ast.walk(ast.parse(source)):
        found: list[ast.expr | None] = []
        if isinstance(node, ast.Subscript):
            found = [node.slice]
        elif isinstance(node, ast.Dict):
            found = list(node.keys)
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
            found = list(node.args[:1]) if node.func.attr in ("get", "pop", "setdefault") else []
        elif isinstance(node, ast.Compare) and isinstance(node.ops[0], (ast.In, ast.NotIn)):
            found = [node.left]
        yield from (key.value for key in found if isinstance(key, ast.Constant) and isinstance(key.value, str))


def spelled_twice(root: Path) -> dict[str, set[str]]:
    """File -> keys of the schema that it spells, besides ordinary words."""
    words = {word for entry in WORDS for word in entry.split()}
    fields = {f.name for cls in RECORDS for f in dataclasses.fields(cls)} - words  # type: ignore[arg-type]
    found: dict[str, set[str]] = {}
    for folder in SEARCHED:
        for path in sorted((root / folder).rglob("*.py")):
            name = path.relative_to(root).as_posix()
            if not name.startswith("costmodel/schema/"):
                keys = {key for key in json_keys(path.read_text("utf-8")) if key in fields}
                found |= {name: keys} if keys else {}
    return found


def test_no_key_is_spelled_twice() -> None:
    """Exactly those of DOCUMENTS: one that is no longer needed must go, too."""
    assert spelled_twice(ROOT) == {name: set(keys.split()) for name, (_, keys) in DOCUMENTS.items()}


def test_every_word_is_a_field() -> None:
    fields = {f.name for cls in RECORDS for f in dataclasses.fields(cls)}  # type: ignore[arg-type]
    assert {word for entry in WORDS for word in entry.split()} - fields == set()


def test_a_key_in_another_file_is_found(tmp_path: Path) -> None:
    planted = tmp_path / "hetero_sd" / "planted.py"
    planted.parent.mkdir()
    planted.write_text('def f(x):\n    return x["prefill_width"], x.get("chain"), {"widest_sum": 1}, "cpu_ids" in x\n')
    assert spelled_twice(tmp_path) == {"hetero_sd/planted.py": {"chain", "cpu_ids", "prefill_width", "widest_sum"}}
    planted.write_text('MODE = "prefill_width"\n')  # a text that is no key
    assert spelled_twice(tmp_path) == {}
