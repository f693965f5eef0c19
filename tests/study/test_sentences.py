"""website/sentences.py counts the words of a page's text, and nothing else of the page."""

import runpy
from pathlib import Path

SCRIPT = runpy.run_path(str(Path(__file__).parents[2] / "website" / "sentences.py"))

PAGE = """# A heading of five words

The first sentence links to [the
second page](second.md). The second has `a command --with options`!

| a | table |
| --- | --- |

1. An item without a full stop
2. **An item** with two sentences. See Fig. 2, i.e. the
   figure.

```
Code is no sentence. Neither is this.
```

> A quotation (it ends in a bracket.) [Two marks.] End.
"""


def test_sentences_are_those_of_the_text_alone() -> None:
    assert SCRIPT["sentences"](PAGE) == [
        "The first sentence links to the second page.",
        "The second has `a command --with options`!",
        "An item without a full stop",
        "An item with two sentences.",
        "See Fig.",  # an abbreviation before a number ends a sentence: pages avoid it
        "2, i.e. the figure.",
        "A quotation (it ends in a bracket.",
        "[Two marks.",
        "End.",
    ]


def test_a_dash_is_no_word() -> None:
    assert SCRIPT["number_of_words"]("From 16 – 20 units on → `acuity best NAME`") == 8
