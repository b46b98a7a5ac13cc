"""`many_requests.py BUNDLE`: what 2,000 requests in the slots of a bundle leave in the heap, in bytes, as JSON.

And what is left once something is kept of each on purpose. Python's small objects count where PYTHONMALLOC is `malloc`.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
from heap import heap_bytes

from hetero_sd.runtime.load import load_folder
from hetero_sd.runtime.serve.batch_engine import BatchEngine
from hetero_sd.runtime.serve.engine import Ended, Event, Failed, GenerationRequest, TextPiece

WARM_UP, REQUESTS, BYTES_KEPT = 300, 2_000, 1_000


def main(bundle: Path) -> dict[str, int]:
    with load_folder(bundle, {"mode": "off"}) as session:
        assert session.slots is not None
        engine = BatchEngine(session, session.slots, 4, 600.0, drafts=True)
        rng, texts = np.random.default_rng(0), 0

        def serve(count: int) -> None:
            """Twice as many requests as slots at a time; every fifth leaves early."""
            sent = ended = 0

            def send() -> None:
                nonlocal sent
                ids = rng.integers(0, 500, int(rng.integers(1, 40))).tolist()
                pieces, leaves = 0, sent % 5 == 0
                sent += 1

                def deliver(event: Event) -> None:
                    nonlocal pieces, ended, texts
                    texts += isinstance(event, TextPiece)
                    pieces += isinstance(event, TextPiece)
                    if leaves and pieces == 2:
                        job.cancel()
                    if isinstance(event, (Ended, Failed)):
                        ended += 1
                        if sent < count:
                            send()
                        elif ended == sent:
                            engine.stop()

                job = engine.submit(GenerationRequest(ids, {"max_new_tokens": 8}), deliver)

            engine._jobs.stopping = False
            for _ in range(10):
                send()
            engine.run()

        serve(WARM_UP)
        before = heap_bytes()
        serve(REQUESTS)
        grown = heap_bytes() - before
        kept = [bytes([i % 256]) * BYTES_KEPT for i in range(REQUESTS)]
        control = heap_bytes() - before - grown
        outcomes = engine.snapshot().outcomes
        assert len(kept) == REQUESTS
        return {"heap_bytes": grown, "control_heap_bytes": control, "texts": texts, **outcomes}


if __name__ == "__main__":
    print(json.dumps(main(Path(sys.argv[1]))))
