"""Pages for people: filled from jinja2 templates, one self-contained HTML file each."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from hetero_sd.predict.figure import STYLE


def render(template: str, **values: Any) -> str:
    """A template of this folder, filled; what it is given is escaped."""
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        keep_trailing_newline=True,
    )
    return environment.get_template(template).render(chart_style=Markup(STYLE), **values)


def both(draw: Callable[..., str], *arguments: Any) -> dict[str, Markup]:
    """A chart for wide and for narrow screens; the page shows one of them."""
    return {"wide": Markup(draw(*arguments)), "narrow": Markup(draw(*arguments, narrow=True))}
