"""Runs `run.py` on bundles that may crash it: a process for each, forked from one that has imported everything.

A line of JSON in, {"folder": ..., "arguments": [...], "without_facts": bool}; a line out, {"code": of the process,
negative for a signal, "out": ..., "err": ...}. "without_facts" leaves out the comparison with the library's facts.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
import traceback
from typing import Any

os.environ["TVM_USE_RUNTIME_LIB"] = "1"

import tokenizers  # noqa: F401
import tvm  # noqa: F401
from tvm.runtime.vm import VirtualMachine  # noqa: F401

from costmodel.schema.manifest import LibraryFacts
from hetero_sd.runtime import run
from hetero_sd.runtime.model import segments as chain


def ask(question: dict[str, Any]) -> dict[str, Any]:
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        child = os.fork()
        if child == 0:
            os.dup2(out.fileno(), 1)
            os.dup2(err.fileno(), 2)
            code = 1
            try:
                if question.get("without_facts"):
                    chain.check_library = lambda library, text, *_: LibraryFacts.from_json(json.loads(text)).tensors
                code = run.main(question["folder"], question["arguments"])
            except BaseException:
                traceback.print_exc()
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)
        _, status = os.waitpid(child, 0)
        texts = []
        for file in (out, err):
            file.seek(0)
            texts.append(file.read().decode("utf-8", "replace"))
    return {"code": os.waitstatus_to_exitcode(status), "out": texts[0], "err": texts[1]}


if __name__ == "__main__":
    print("ready", flush=True)
    for line in sys.stdin:
        print(json.dumps(ask(json.loads(line))), flush=True)
