"""Colours, markers and line styles of the figures in the report and the dashboard."""

# Okabe & Ito's colours are distinct with every kind of colour blindness. Markers and line styles differ as well.
BLUE, ORANGE, GREEN, PURPLE = "#0072B2", "#D55E00", "#009E73", "#AA4499"
GREY, LIGHT = "#5A5A5A", "#D9D9D9"
SERIES = (
    (BLUE, "o", "-"),
    (ORANGE, "s", "--"),
    (GREEN, "^", "-."),
    (PURPLE, "D", ":"),
    ("#000000", "v", (0, (5, 1, 1, 1, 1, 1))),
)
"""Colour, marker and line style of the first, second, ... series. From the sixth on they repeat."""
