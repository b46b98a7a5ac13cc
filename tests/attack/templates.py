"""A hundred hostile chat templates: each ends in one line, by its bounds on time, text and memory."""

from __future__ import annotations

import itertools
import tempfile
import time
from pathlib import Path

from hetero_sd.runtime.text import chat_template
from hetero_sd.runtime.text.bounded_call import MOST_BYTES, MOST_SECONDS, bounded_text
from hetero_sd.runtime.text.tokenizer import Text
from targets.errors import UserError
from tests.attack.figure import Figures
from tests.attack.workers import EXPORTS

FULL = 100
MOST_S = 2.0  # of one template, with all that is around it

_LOOP = "{% for a in range(99999) %}"
_HUGE = ("10 ** (10 ** 9)", "'x' * 10 ** 10", "'%099999999999d' % 1", "[0] * 10 ** 11", "(messages, ) * 10 ** 12")
_GROWING = ("n.x ~ n.x", "n.x * 9", "[n.x, n.x]", "{'a': n.x, 'b': n.x}", "n.x | replace('x', 'xxxxxxxx')")
_FILTERS = ("wordwrap(1)", "list", "tojson", "join(',')", "urlize", "sort", "batch(1) | list", "indent(9)", "escape")
KINDS = [  # one of each kind
    *(
        _LOOP * depth + inner + "{% endfor %}" * depth
        for depth in (2, 3, 4)
        for inner in ("", "x", "{% set b = a * a %}")
    ),
    *(f"{{{{ {text} }}}}" for text in (*_HUGE, "''.join(messages)")),
    "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
    "{% set n = namespace(x='xxxxxxxx') %}{% for a in range(99) %}{% set n.x = n.x ~ n.x %}{% endfor %}",
    "{{ ('x' * 9999999) | wordwrap(1) | length }}" + "{{ range(99999) | list | tojson }}" * 4000,
    "{{ " + "(" * 5000 + "1" + ")" * 5000 + " }}",
    "{% for a in range(99999) recursive %}{{ loop(range(99999)) }}{% endfor %}",
]


def hostile() -> list[str]:
    """The templates; the same in every process."""
    found = [*KINDS]
    found += [
        f"{{% set n = namespace(x='x' * 999) %}}{_LOOP}{_LOOP}{{% set n.x = {grown} %}}{then}"
        "{% endfor %}{% endfor %}"
        for grown, then in itertools.product(_GROWING, ("", "{{ n.x }}", "{{ n.x | string | length }}"))
    ]
    found += [f"{_LOOP}{_LOOP}{{{{ ('x y ' * 99) | {name} }}}}{{% endfor %}}{{% endfor %}}" for name in _FILTERS]
    found += [
        f"{_LOOP}{_LOOP}{{% if {test} %}}{{{{ {text} }}}}{{% endif %}}{{% endfor %}}{{% endfor %}}"
        for test, text in itertools.product(
            ("a is odd", "a in range(99999)", "'x' in messages", "not messages", "a > 5", "true"),
            ("a", "a | string * 99", "messages", "messages[0].content * a", "loop.index ** 99", "cycler(a).next()"),
        )
    ]
    found += [
        f"{{% macro f(a) %}}{inner}{{{{ f(a + 1) }}}}{{% endmacro %}}{{{{ f(0) }}}}"
        for inner in ("", "x" * 999, "{% set b = range(99999) | list %}", "{{ a ** a }}")
    ]
    found += [f"{{{{ ({number} ** {number}) % 7 }}}}" * 9 for number in (10**7, 10**8, 10**9, 3**20, 10**12)]
    found += [f"{{{{ '%{width}d' % 1 }}}}" for width in (10**9, 10**10, 10**12)]
    found += ["{% for a in range(99999) %}" * depth + "{% endfor %}" * depth for depth in (6, 12, 19, 25)]
    found += [
        "{{ raise_exception('x' * 10 ** 9) }}",
        "{{ messages.x.y.z }}",
        "{{ [].append(1) }}",
        "{{ ''.__class__.x() }}",
    ]
    return found


def attack(count: int, first: int, jobs: int, seconds: float = MOST_SECONDS, most_bytes: int = MOST_BYTES) -> Figures:
    """Render `count` hostile templates, those from `first` on; the bounds are shorter where that is asked for."""
    taken = hostile()[first : first + count]
    figures = Figures("hostile templates", f"numbers {first} to {first + len(taken) - 1}")
    bounded, longest_s = chat_template.bounded_text, 0.0
    chat_template.bounded_text = lambda make: bounded_text(make, seconds, most_bytes)
    try:
        with tempfile.TemporaryDirectory() as name:
            for number, template in enumerate(taken, first):
                begin = time.perf_counter()
                outcome, problem = _render(Path(name), template)
                took_s = time.perf_counter() - begin
                longest_s = max(longest_s, took_s)
                figures.counts[outcome] += 1
                if took_s >= MOST_S and seconds == MOST_SECONDS:
                    problem = problem or f"it took {took_s:.2f} s"
                figures.failures += [f"template {number}: {problem}"] if problem else []
    finally:
        chat_template.bounded_text = bounded
    figures.what += f", the longest {longest_s:.2f} s"
    return figures


def _render(folder: Path, template: str) -> tuple[str, str]:
    """(what became of it, what is wrong with that)."""
    (folder / "chat_template.jinja").write_text(template)
    (folder / "tokenizer.json").write_bytes((EXPORTS / "llama-dynamo-fp32" / "tokenizer.json").read_bytes())
    names = ("chat_template.jinja", "tokenizer.json")
    try:
        Text(lambda name: folder / name if name in names else None).encode_prompt("hello")
    except UserError as error:
        one_line = "\n" not in str(error) and "the chat template fails" in str(error)
        return "refused", "" if one_line else f"not one line: {error}"
    except BaseException as error:
        return "failed", f"{type(error).__name__}: {error}"
    return "rendered", "it gave a text"
