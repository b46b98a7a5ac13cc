"""What the manifest says of the models, held against this machine; what it says of itself is checked when it is read.

What the manifest alone cannot tell is compared with the libraries, which keep their own facts (library_facts.py).
"""

from __future__ import annotations

import os
from pathlib import PurePosixPath

from costmodel.schema.model import ModelFacts
from hetero_sd.runtime.manifest import MANIFEST, Bundle
from targets.errors import UserError
from targets.opencl.runtime import LIBRARY


def check_models(bundle: Bundle) -> dict[str, ModelFacts]:
    """Return the facts of the models, by role, checked.

    Raises:
        UserError: there is no target, the OpenCL runtime is another library, or the caches do not fit this machine's
            memory.
    """
    _ = bundle.target
    for role, facts in bundle.models.items():
        runtime = facts.opencl_runtime
        if runtime is not None and PurePosixPath(runtime).name != LIBRARY:
            raise UserError(
                f"{MANIFEST}: models.{role}: {runtime!r} is not the OpenCL runtime {LIBRARY}: build the bundle again"
            )
        available = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
        if facts.cache_bytes > available:
            raise UserError(
                f"the KV caches of the {role} need {facts.cache_bytes >> 20} MiB, this machine has "
                f"{available >> 20} MiB: compile with a smaller --context or --slots"
            )
    return bundle.models
