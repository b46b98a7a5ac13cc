"""`run.py --serve`: checks what it needs, loads the models, and answers HTTP clients."""

from __future__ import annotations

from hetero_sd.runtime.decode.choose_policy import ALONE
from hetero_sd.runtime.load import Loader, load_session, load_text
from hetero_sd.runtime.manifest import MANIFEST, Bundle
from hetero_sd.runtime.model.threads import usable_cpus
from hetero_sd.runtime.request import RunRequest
from hetero_sd.runtime.serve.options import (
    DEFAULT_PORT,
    DEFAULT_QUEUE,
    LOOPBACK,
    drafters_with_slots,
    mode_with_slots,
)
from targets.errors import UserError


def serve_command(bundle: Bundle, options: RunRequest, load: Loader | None) -> None:
    """Answer HTTP clients until a signal ends it."""
    try:
        from hetero_sd.runtime.serve.serve import ServeRequest, bind, serve
    except ModuleNotFoundError as error:
        needed = "pip install 'hetero-sd[serve]', or on a board pip install starlette uvicorn"
        raise UserError(f"--serve needs the package {error.name}: {needed}") from None
    text = load_text(bundle)
    if text is None:
        raise UserError("the bundle has no tokenizer, so there is no text to serve: compile it with --tokenizer")
    request = ServeRequest(
        LOOPBACK if options.host is None else options.host,
        DEFAULT_PORT if options.port is None else options.port,
        options.token,
        DEFAULT_QUEUE if options.queue is None else options.queue,
        bundle.folder.resolve().name,
        int((bundle.folder / MANIFEST).stat().st_mtime),
        options.answer_options(),
        usable_cpus(),
        options.keep_rows or 0,
        None if options.time_between_tokens is None else options.time_between_tokens / 1e3,
        drafters_with_slots(options),
    )
    settings = options.settings()
    with bind(request) as bound:  # what it refuses is said before any note
        if bundle.target.slots > 1:
            settings["mode"] = mode_with_slots(options, bundle.target.slots, drafts_with_model=True)
            settings["drafter"] = None if settings["mode"] in ALONE else options.drafter
        with load_session(bundle, text, settings, load) as session:
            if options.load_state is not None:
                session.load_state(options.load_state)
            serve(session, request, bound)
