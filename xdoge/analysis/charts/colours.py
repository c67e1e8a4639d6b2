"""One colour and one dash per language, the same in every chart.

The six languages of the reference case have colours chosen by hand. They are at least 15 apart in CIELAB, for full
colour vision and for protan, deutan and tritan vision (Machado et al. 2009). Their contrast on white is at least 3, so
that thin lines print. The code of any other language decides its colour, whatever else the chart shows. Two of these
may have the same colour, so charts also label lines and bars by name.
"""

from __future__ import annotations

import hashlib

FIXED = {
    "es": "#B5341A",
    "ca": "#CC7F00",
    "gl": "#3A9BDC",
    "eu": "#007F68",
    "pt": "#B0589A",
    "en": "#22336B",
}
OTHERS = (
    "#332288",
    "#117733",
    "#8A8A2B",
    "#882255",
    "#AA4499",
    "#661100",
    "#6C7A89",
    "#4A6FA5",
    "#00827F",
    "#8C6D1F",
    "#C2453D",
    "#5B8C2A",
)
NEUTRAL = "#7A7A7A"
"""Colour for anything other than a language, such as an average."""

DASHES: tuple[tuple[int, ...], ...] = ((1, 0), (6, 2), (2, 2), (8, 2, 2, 2), (12, 3), (4, 4))
"""Line and gap lengths in pixels; the first is a line without gaps."""


def colour(language: str) -> str:
    """Return the colour of a language, the same in every chart."""
    return FIXED.get(language) or OTHERS[_number(language) % len(OTHERS)]


def dash(language: str) -> tuple[int, ...]:
    """Return the dash of a language's lines, the same in every chart."""
    place = list(FIXED).index(language) if language in FIXED else _number(language) // len(OTHERS)
    return DASHES[place % len(DASHES)]


def _number(language: str) -> int:
    return int.from_bytes(hashlib.sha256(language.encode("utf-8")).digest()[:4], "big")
