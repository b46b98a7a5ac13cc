"""What would change a verdict: the value of each input at which it flips."""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import permutations

import pytest

from costmodel.processor_pairs import shared_cluster, with_enqueuing_core
from costmodel.question import Question
from costmodel.search import Search
from costmodel.ties import settle_ties
from costmodel.uncertainty import Intervals
from costmodel.unmeasured_gpu import uses_gpu
from hetero_sd.predict.changes import Change, what_a_gpu_must_reach, what_would_change
from hetero_sd.predict.compilable import bundle_question
from hetero_sd.predict.known_models import known_model
from hetero_sd.predict.predict import predict
from hetero_sd.predict.sentences import change_notes
from hetero_sd.predict.turn_ways import kind
from hetero_sd.predict.units import plain
from targets.boards import board_names, load_board

FACTORS = {
    "DRAM bandwidth": ("bandwidth", "bandwidth_one_thread"),
    "time of the CPU": ("compute", "attention", "serial"),
    "bandwidth of GPU": ("gpu_bandwidth",),
    "arithmetic of GPU": ("gpu_compute", "gpu_attention"),
    "dispatch": ("gpu_dispatch",),
}


def pair(board: str, alpha: float = 0.8, target: str = "Qwen2.5-1.5B", draft: str = "Qwen2.5-0.5B") -> Question:
    models = [known_model(name, "float16") for name in (target, draft)]
    return Question(load_board(board), (models[0],), (models[1],), alpha)


def moved(question: Question, change: Change, value: float) -> Question:
    """The question with that input at another value."""
    if change.name == "acceptance":
        return replace(question, alpha=value)
    names = next(names for start, names in FACTORS.items() if change.name.startswith(start))
    scaled = {name: getattr(question.factors, name) * value / change.now for name in names}
    return replace(question, factors=replace(question.factors, **scaled))


def fastest_whole(question: Question) -> tuple[object, ...]:
    """The kind of the fastest variant with whole models that fits: every thread count, every draft length."""
    search, found = Search(question), []
    (target,), (draft,) = question.targets, question.drafts
    for group in search.groups():
        for here in group:
            place = search.costs(target).whole(here)
            found.append(search.price("target-only", target, place))
            for there in group:
                drafter = search.costs(draft).whole(there)
                found += [search.price("sequential", target, place, draft, drafter, g) for g in range(1, 9)]
    for pair in permutations({p.name: p for group in search.groups() for p in group}.values(), 2):
        if shared_cluster(*pair) is None and (both := with_enqueuing_core(question.board, *pair)) is not None:
            place, drafter = search.costs(target).whole(both[0]), search.costs(draft).whole(both[1])
            found += [search.price("overlapped", target, place, draft, drafter, g) for g in range(1, 9)]
    return kind(max((v for v in found if v.memory.total_bytes <= search.free_bytes), key=lambda v: v.tokens_per_s))


def check_flips(question: Question) -> int:
    """Every whole placement on either side of each value: another answer beyond, the same before; how many flip."""
    p = predict(question)
    decision = p.search.decide()
    found = what_would_change(p.search, decision, p.alphas)
    assert 1 <= len(found) <= 3
    assert [c.errors for c in found] == sorted(c.errors for c in found)
    flips = [c for c in found if c.flips_at is not None]
    for change in flips:
        assert change.flips_at is not None
        ends = [change.now + (change.flips_at - change.now) * s for s in (0.97, 1.03)]
        sides = [moved(p.search.question, change, min(change.high, max(change.low, end))) for end in ends]
        before, after = map(fastest_whole, sides)
        assert before == kind(decision.best), change
        assert after != kind(decision.best), change
    return len(flips)


@pytest.mark.parametrize(
    ("board", "alpha"),
    [("rpi5", 0.8), ("imx95", 0.9), ("rpi5", 0.3), pytest.param("rk3588", 0.85, marks=pytest.mark.slow)],
)
def test_the_verdict_flips_where_it_is_said_to(board: str, alpha: float) -> None:
    assert check_flips(pair(board, alpha)) >= 1


BOARDS = [name for name in board_names() if not name.startswith("host")]


@pytest.mark.deep
@pytest.mark.parametrize("alpha", [0.4, 0.8])
@pytest.mark.parametrize("board", BOARDS)
def test_it_does_so_on_every_board(board: str, alpha: float) -> None:
    """Of two pairs, where they fit the memory; in int4 one of them fits every board."""
    models = [known_model(name, "int4") for name in ("Qwen2.5-1.5B", "Qwen2.5-0.5B")]
    large = [known_model(name, "int4") for name in ("Llama-3.2-3B", "Llama-3.2-1B")]
    flips = 0
    for target, draft in (models, large):
        question = Question(load_board(board), (target,), (draft,), alpha)
        if target is models[0] or board != "imx93":
            flips += check_flips(question)
    assert flips >= 1


def test_a_tie_ends_where_it_is_said_to() -> None:
    """The GPU is 5 % faster than the cores, which are surer: it must be 11 % faster to be taken."""
    search = Search(bundle_question(replace(pair("rk3588"), drafts=())))
    decision = settle_ties(search.decide(), Intervals(search))
    assert decision.tied is not None
    found = [c for c in what_would_change(search, decision, None) if c.ends_tie]
    assert found
    for change in found:
        assert change.flips_at is not None
        gains = []
        for value in (change.now, change.flips_at):
            decided = Search(moved(search.question, change, value)).decide()
            speeds = {kind(v): v.tokens_per_s for v in decided.leading}
            gains.append(speeds[kind(decision.tied)] / speeds[kind(decision.best)])
        assert 1 < gains[0] < 1.1
        assert gains[1] == pytest.approx(1 / 0.9, rel=0.02)


@pytest.mark.parametrize(
    ("board", "weights", "already"),
    [("rk3588", "float16", True), ("imx95", "float16", False), ("imx95", "int4", False)],
)
def test_what_a_gpu_that_nobody_measured_must_reach(board: str, weights: str, already: bool) -> None:
    """Below the value every way with it is slower than the cores, above it one is faster; of rpi5 nothing is said."""
    question = Question(load_board(board), (known_model("Qwen2.5-1.5B", weights),))
    p = predict(question)
    change = what_a_gpu_must_reach(p.search, p.decision, [v for v, _ in p.on_waiting_gpu])
    assert change is not None
    assert change.flips_at is not None
    assert (change.waits, change.already, change.place) == (True, already, "target=gpu")
    assert (change.flips_at < change.now) == already
    taken = []
    for value in (0.97 * change.flips_at, 1.03 * change.flips_at):
        leading = Search(moved(p.search.question, change, value)).decide().leading
        taken.append(uses_gpu(max(leading, key=lambda v: v.tokens_per_s)))
    assert taken == [False, True]
    (said,) = change_notes(replace(p, changes=(change,)))
    assert (
        f"predicted, not measured; above {plain(change.flips_at, 3)} {change.unit} Qwen2.5-1.5B {weights} on gpu "
        in said
    )
    assert said.endswith("is faster (`compile --place target=gpu` and `calibrate BUNDLE --on USER@BOARD` measure it)")
    alone = predict(replace(question, board=load_board("rpi5")))
    assert what_a_gpu_must_reach(alone.search, alone.decision, [v for v, _ in alone.on_waiting_gpu]) is None


def test_an_input_that_nothing_rests_on_flips_nothing() -> None:
    alone = Question(load_board("rpi5"), (known_model("Qwen2.5-0.5B", "float16"),))
    search = Search(replace(alone, one_process=True, overlapped=False))
    assert what_would_change(search, search.decide(), None) == ()  # there is one way to run it


def test_changes_in_words() -> None:
    p = predict(pair("rpi5"))
    flips = Change("acceptance", "", 0.8, 0.5612, 0.0, 1.0, "M on a76 alone", 2.0)
    same = Change("dispatch of a GPU kernel", "us", 6.0, None, 0.75, 48.0, "", math.inf)
    assert change_notes(replace(p, changes=(flips, same))) == [
        "acceptance: 0.8 now; below 0.561 M on a76 alone is faster",
        "dispatch of a GPU kernel: 6 us now; nothing flips between 0.75 us and 48 us",
    ]
    ends = replace(flips, ends_tie=True)
    tied = replace(p, changes=(flips, ends), decision=replace(p.decision, tied=p.decision.best))
    assert change_notes(tied) == [
        "acceptance: 0.8 now; below 0.561 M on a76 alone is faster",
        "acceptance: 0.8 now; below 0.561 M on a76 alone is 11 % faster, no tie any more",
    ]
