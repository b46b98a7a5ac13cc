"""`hetero-sd predict`: question (predict.py) -> answer, as text, JSON, an HTML report or a Chrome trace."""

from __future__ import annotations
