"""What benchmarks/prediction.py measures: models, pairs, widths, contexts; and their bundles."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from costmodel.format import FLOAT, INT8

CONTEXT = 640
PASTS = (16, 160, 512)
PREFILL = 64  # tokens of a prompt, after PREFILL_PASTS others: two chunks of 32
PREFILL_PASTS = (0, 384)
GAMMAS = (0, 1, 2, 3, 5, 7)
FITTED_GAMMAS = (0, 1, 2, 4)
FITTED_N = (2, 3, 5)  # calibration sees these widths, and prompts of one chunk
JUDGED_N = (1, 4, 8)
CHUNK = 32


@dataclass(frozen=True)
class Case:
    """A synthetic model: the sizes of a Llama, a storage type, and whether the fit may see it.

    Attributes:
        sizes: of passes.synthetic.LlamaShape.
        dtype: of the weights; with int4 and int8 the CPU multiplies int8 activations.
        fitted: calibration's; the others are only predicted.
        gpu: it is also built for OpenCL.
        steps: its steps are measured (a drafter's or target's may be left to the rounds).
        scaled: (layer, scale): a target whose later layers add little (passes.synthetic.write_early_exit_pair).
    """

    sizes: dict[str, int]
    dtype: str = "float32"
    fitted: bool = False
    gpu: bool = False
    steps: bool = True
    scaled: tuple[int, float] | None = None

    @property
    def activations(self) -> str:
        """What its matrix multiplications read on the CPU."""
        return INT8 if self.dtype.startswith("int") else FLOAT

    @property
    def step_widths(self) -> tuple[int, ...]:
        """Widths whose steps are measured."""
        return FITTED_N if self.fitted else JUDGED_N

    @property
    def built_widths(self) -> tuple[int, ...]:
        """Entry points: those, and what rounds of every gamma need."""
        return (1, 2, 3, 5) if self.fitted else (1, 2, 3, 4, 6, 8)


def llama(layers: int, hidden: int, heads: int, kv_heads: int, ffn: int, vocab: int) -> dict[str, int]:
    return {"layers": layers, "hidden": hidden, "heads": heads, "kv_heads": kv_heads, "ffn": ffn, "vocab": vocab}


_SMALL, _MIDDLE = llama(8, 256, 4, 2, 704, 2000), llama(12, 512, 8, 2, 1536, 4000)
_LARGE, _LARGEST = llama(20, 768, 12, 6, 2304, 8000), llama(22, 1024, 16, 8, 2816, 8000)
CASES: dict[str, Case] = {
    # calibration
    "c1": Case(llama(2, 128, 2, 2, 384, 1500), fitted=True, gpu=True),
    "c3": Case(llama(5, 192, 3, 3, 576, 3000), fitted=True, gpu=True),
    "c9": Case(llama(6, 320, 5, 5, 896, 4000), fitted=True, gpu=True),
    "c9h": Case(llama(6, 320, 5, 5, 896, 4000), "float16", fitted=True, gpu=True),
    "c20": Case(llama(6, 512, 8, 4, 1408, 6000), fitted=True, gpu=True, scaled=(2, 0.05)),
    "c20d": Case(llama(2, 512, 8, 4, 1408, 6000), fitted=True, steps=False),
    "c20q4": Case(llama(6, 512, 8, 4, 1408, 6000), "int4", fitted=True),
    "c20q8": Case(llama(6, 512, 8, 4, 1408, 6000), "int8", fitted=True),
    "c70h": Case(llama(10, 768, 12, 4, 2048, 10000), "float16", fitted=True),
    "c70q4": Case(llama(10, 768, 12, 4, 2048, 10000), "int4", fitted=True),
    "c70q8": Case(llama(10, 768, 12, 4, 2048, 10000), "int8", fitted=True),
    # evaluation
    "e1": Case({**_SMALL, "layers": 1}, gpu=True),
    "e6": Case(_SMALL, gpu=True, scaled=(1, 0.03)),
    "e5": Case({**_MIDDLE, "layers": 1}, gpu=True, steps=False),
    "e38": Case(_MIDDLE, gpu=True, scaled=(1, 0.02)),
    "e20": Case({**_MIDDLE, "layers": 6}, steps=False),
    "e38x": Case(_MIDDLE, steps=False, scaled=(6, 0.2)),
    "e5q8": Case({**_MIDDLE, "layers": 1}, "int8", steps=False),
    "e38q4": Case(_MIDDLE, "int4"),
    "e38q8": Case(_MIDDLE, "int8", scaled=(1, 0.02)),
    "e150q4": Case(_LARGE, "int4"),
    "e27h": Case({**_LARGE, "layers": 3}, "float16", steps=False),
    "e150h": Case(_LARGE, "float16", scaled=(3, 0.03)),
    "e270h": Case(_LARGEST, "float16"),
}


SEQUENTIAL, OVERLAPPED, NGRAM = "sequential", "overlapped", "n-gram"
NOISE = 7


@dataclass(frozen=True)
class Pair:
    """A drafter and a target, and where each runs: "1" or "2" threads, "cpu0", "cpu1", or "gpu" (PoCL, core 1).

    Overlapped rounds wait for all drafts. Those of n-grams have no draft model, and are plain steps without a match;
    they find the target's own answer, of which every NOISE-th token is another one.
    """

    draft: str
    target: str
    draft_on: str
    target_on: str
    fitted: bool = False
    mode: str = SEQUENTIAL

    @property
    def name(self) -> str:
        """For file names."""
        mode = "" if self.mode == SEQUENTIAL else f"-{self.mode}"
        return f"{self.draft}@{self.draft_on}-{self.target}@{self.target_on}{mode}"


PAIRS = (
    Pair("c1", "c3", "1", "1", fitted=True),  # of small steps, beside which what turns add is seen; little is accepted
    Pair("c20d", "c20", "1", "1", fitted=True),
    Pair("e1", "e6", "1", "1"),
    Pair("e5", "e38", "1", "1"),
    Pair("e5", "e38", "2", "2"),
    Pair("e20", "e38x", "1", "1"),
    Pair("e27h", "e150h", "2", "2"),
    Pair("e1", "e6", "cpu0", "gpu"),
    Pair("e5", "e38", "cpu0", "gpu"),
    Pair("e1", "e6", "gpu", "cpu0"),
    Pair("e5q8", "e38q8", "1", "1"),
    Pair("e5", "e38", "cpu1", "cpu0", mode=OVERLAPPED),
    Pair("e27h", "e150h", "cpu1", "cpu0", mode=OVERLAPPED),
    Pair("e5", "e38", "cpu0", "gpu", mode=OVERLAPPED),
    Pair("n-grams", "e38", "1", "1", mode=NGRAM),
    Pair("n-grams", "e150h", "2", "2", mode=NGRAM),
)


def write_models(name: str, folder: Path) -> Path:
    """The ONNX file of a case."""
    from passes.synthetic import LlamaShape, write_llama

    case, path = CASES[name], folder / name / "source" / "model.onnx"
    if not path.is_file():
        path.parent.mkdir(parents=True, exist_ok=True)
        write_llama(path, LlamaShape(**case.sizes), case.dtype, seed=5, scaled=case.scaled)
    return path


def bundle_folder(name: str, processor: str, folder: Path) -> Path:
    return folder / name / processor


def build(name: str, processor: str, folder: Path) -> None:
    """A bundle of one model for "cpu" or "gpu", if it is not there yet."""
    from costmodel.place import Place, ReasonedPlace
    from costmodel.schema.manifest import TokenizerFacts
    from hetero_sd.compile.build import ModelRequest, Sizes, build_model
    from hetero_sd.runtime.manifest import write_manifest
    from passes.onnx import canonicalise
    from targets.boards import load_board
    from targets.opencl import runtime as opencl_runtime

    bundle, case = bundle_folder(name, processor, folder), CASES[name]
    if (bundle / "manifest.json").is_file():
        return
    bundle.mkdir(parents=True, exist_ok=True)
    decoder = canonicalise(write_models(name, folder), CONTEXT)
    core = load_board("host", measure=False).clusters[0].core
    sizes, gpu, runtime = Sizes(CONTEXT, case.built_widths, CHUNK), None, None
    if processor == "gpu":
        gpu = load_board("rk3588").gpu  # its kernels: only the largest work-group matters
        runtime = bundle / opencl_runtime.LIBRARY
        runtime.write_bytes(opencl_runtime.ensure().read_bytes())
    place = ReasonedPlace(Place(processor))
    request = ModelRequest("target", decoder, core, place, sizes, gpu, runtime, activations=case.activations)
    built = build_model(request, bundle)
    write_manifest(bundle, {"target": built.facts}, tokenizer=TokenizerFacts((0,), built.facts.vocab))


def build_all(folder: Path) -> None:
    """Every bundle that is missing."""
    for name, case in CASES.items():
        for processor in ("cpu", "gpu") if case.gpu else ("cpu",):
            if not (bundle_folder(name, processor, folder) / "manifest.json").is_file():
                print(f"building {name} for {processor}", flush=True)
                build(name, processor, folder)
