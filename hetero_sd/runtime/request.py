"""What the user asks of a bundle, after its options were read."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from hetero_sd.runtime.answer_options import Options
from hetero_sd.runtime.load import Settings


@dataclass(frozen=True)
class RunRequest:
    """What the user asks of a bundle; the defaults stand in hetero_sd/runtime/options.py.

    Attributes:
        prompt: one text; None where there is none.
        prompts: a file of prompts; without it and `prompt` they are typed.
        max_new_tokens: tokens after which an answer ends.
        temperature, top_k, top_p: of the sampling; temperature 0 takes the best token.
        seed: of the sampling; None takes another one each time.
        stop: texts before which an answer ends.
        no_chat_template: the prompt goes to the model as it is.
        chat_template: the name of the template, where there are several; None takes the one called default.
        system: the system message of every conversation that has none; None gives none.
        when_full: one of conversation.WHEN_FULL.
        mode: one of load.MODES.
        gamma: drafted tokens in every round; None decides while it runs.
        least: drafts that the target waits for in mode overlapped; None is the plan's, or 0; all where it samples.
        drafter: one of choose_policy.DRAFTERS; None is the draft model, where the bundle has one.
        stop_drafts: one of choose_policy.STOP_DRAFTS.
        threads: of the CPU; None takes the plan's.
        huge_pages: the weights are copied into huge pages.
        check: all hashes are verified first.
        verify_key: a public key that the manifest's signature is checked with first, and all hashes after it.
        calibrate: the file to write measurements to, in place of answering.
        calibrate_seconds: time to measure; None takes DEFAULT_CALIBRATE_S of hetero_sd/runtime/options.py.
        doctor: examine the machine in place of answering.
        opencl_lib: the OpenCL library; None tries the usual names.
        cache_dir: where compiled GPU kernels are kept; None takes the usual place.
        json: one JSON object a prompt.
        stats: measured and predicted times go to standard error.
        save_logits: the file to write the target's logits to, or None.
        trace: the file to write a Chrome trace to, or None.
        load_state: a file of what was read before, or None.
        save_state: the file to write what was read last to, or None.
        votes: answers to each prompt that are voted on; None makes one, which is printed.
        votes_by: one of voting.options.WAYS; None is chains.
        answer_pattern: a regular expression of what an answer says; None is its last line.
        serve: requests of HTTP clients are answered.
        host, port: that the server listens on; None takes the defaults of serve/options.py.
        token: that the requests must carry; None where none is asked for.
        queue: requests that wait while one is answered; None takes the default there.
        keep_rows: of the KV cache, for beginnings of texts without a slot; None is none beside what sharing saves.
        time_between_tokens: milliseconds that a running text waits at most; None is some steps of one text alone.
    """

    prompt: str | None
    prompts: Path | None
    max_new_tokens: int
    temperature: float
    top_k: int
    top_p: float
    seed: int | None
    stop: tuple[str, ...]
    no_chat_template: bool
    chat_template: str | None
    system: str | None
    when_full: str
    mode: str
    gamma: int | None
    least: int | None
    drafter: str | None
    stop_drafts: str
    threads: int | None
    huge_pages: bool
    check: bool
    verify_key: str | None
    calibrate: Path | None
    calibrate_seconds: int | None
    doctor: bool
    opencl_lib: str | None
    cache_dir: Path | None
    json: bool
    stats: bool
    save_logits: Path | None
    trace: Path | None
    load_state: Path | None
    save_state: Path | None
    votes: int | None
    votes_by: str | None
    answer_pattern: str | None
    serve: bool
    host: str | None
    port: int | None
    token: str | None
    queue: int | None
    keep_rows: int | None
    time_between_tokens: float | None

    def settings(self) -> Settings:
        """How the bundle is loaded."""
        return {
            "mode": self.mode,
            "gamma": self.gamma,
            "least": self.least,
            "drafter": self.drafter,
            "stop_drafts": self.stop_drafts,
            "threads": self.threads,
            "huge_pages": self.huge_pages,
            "template": not self.no_chat_template,
            "template_name": self.chat_template,
            "system": self.system,
        }

    def answer_options(self) -> Options:
        """How each answer is made."""
        return {
            "max_new_tokens": self.max_new_tokens,
            "temperature": self.temperature,
            "top_k": self.top_k,
            "top_p": self.top_p,
            "seed": self.seed,
            "stop": self.stop,
        }
