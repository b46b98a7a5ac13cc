"""The target alone."""

from __future__ import annotations

import numpy as np
import pytest

from hetero_sd.runtime.decode.generate import Request, generate
from hetero_sd.runtime.decode.sampling import Sampling
from hetero_sd.runtime.decode.trace import Trace


@pytest.fixture
def counting(table_model):
    """Best next token is (number of the row) % vocab, whatever the text: expected ids can be written down."""

    class Counting(table_model):
        def _state(self, length):
            return length % self.vocab

    return Counting(10.0 * np.eye(5), context=12)


@pytest.mark.parametrize(
    ("request_", "ids", "reason"),
    [
        (Request(3), [2, 3, 4], "length"),
        (Request(1), [2], "length"),
        (Request(9, frozenset({4})), [2, 3, 4], "eos"),
        (Request(3, frozenset({4})), [2, 3, 4], "eos"),
        (Request(99), [2, 3, 4, 0, 1, 2, 3, 4, 0, 1, 2], "context"),
    ],
)
def test_stops_for_the_first_reason(counting, request_, ids, reason):
    trace = Trace()
    assert list(generate(counting, [3, 3], request_, trace)) == ids
    assert trace.finish_reason == reason
    assert (trace.prompt_tokens, trace.token_ids) == (2, ids)
    assert len(trace.rounds) == len(ids) - 1
    assert counting.fed == [(0, 2), *((2 + i, 1) for i in range(len(ids) - 1))]


def test_ids_come_one_by_one(counting):
    trace = Trace()
    stream = generate(counting, [3, 3], Request(9), trace)
    assert [next(stream), next(stream)] == [2, 3]
    assert counting.fed == [(0, 2), (2, 1)]
    assert trace.finish_reason is None


def test_sampling_reads_logits_of_the_last_prompt_row_only(counting):
    asked = []
    submit = counting.submit
    counting.submit = lambda ids, pos, *how, **last: (
        asked.append((pos, len(ids), how, last)) or submit(ids, pos, *how, **last)
    )
    trace = Trace()
    list(generate(counting, [3, 3, 3, 3], Request(2, sampling=Sampling(temperature=0.1)), trace))
    assert asked == [(pos, n, (("logits",),), {"last": True}) for pos, n in ((0, 4), (4, 1))]
    assert trace.prefill_s > 0


def test_a_prompt_of_one_token_can_be_sampled(counting):
    trace = Trace()
    assert list(generate(counting, [3], Request(2, sampling=Sampling(temperature=0.01)), trace)) == [1, 2]
