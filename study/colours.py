"""Colours, markers and lines of every picture, in the report and in the dashboard."""

# Okabe & Ito's colours, apart for every kind of colour blindness; markers and lines tell the same apart without them.
BLUE, ORANGE, GREEN, PURPLE = "#0072B2", "#D55E00", "#009E73", "#AA4499"
GREY, LIGHT = "#5A5A5A", "#D9D9D9"
SERIES = (
    (BLUE, "o", "-"),
    (ORANGE, "s", "--"),
    (GREEN, "^", "-."),
    (PURPLE, "D", ":"),
    ("#000000", "v", (0, (5, 1, 1, 1, 1, 1))),
)
"""Colour, marker and line of the first, second, ... of anything; more than five repeat."""
