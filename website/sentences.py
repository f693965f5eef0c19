"""Print the number of sentences and the mean and longest sentence length, in words, of each page.

    python website/sentences.py                          # the pages in docs/, README.md and the others beside it
    python website/sentences.py --over 30 docs/gpu.md    # also the sentences of more than 30 words
    python website/sentences.py --sample 20              # also 20 random sentences a page
    python website/sentences.py --revision HEAD~5        # the pages of an earlier commit

Code, tables and headings do not count. docs/reference is left out unless it is named.
"""

import argparse
import random
import re
import statistics
import subprocess
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[1]
SENTENCE_END = re.compile(r"""(?<=[.!?])[)\]*"']*\s+(?=[^a-z\s])""")
NEW_PARAGRAPH = re.compile(r"^\s*(?:[-*] |\d+\. )")
LEFT_OUT = re.compile(r"\s*(?:\||#|!\[|:::|<!--|\[!\[)")


def sentences(markdown: str) -> list[str]:
    """The sentences of the page's text, each on one line, without markup."""
    return [
        sentence
        for paragraph in _paragraphs(re.sub(r"^( *)```.*?^\1```", "\n", markdown, flags=re.DOTALL | re.MULTILINE))
        for sentence in SENTENCE_END.split(_plain(paragraph))
        if re.search(r"\w", sentence)
    ]


def number_of_words(sentence: str) -> int:
    """A command or file name in backticks is as many words as it has parts between spaces."""
    return sum(re.search(r"\w", word) is not None for word in sentence.split())


def _paragraphs(markdown: str) -> Iterator[str]:
    lines: list[str] = []
    for line in [*markdown.splitlines(), ""]:
        text = line.removeprefix(">").strip()
        if not text or LEFT_OUT.match(text) or NEW_PARAGRAPH.match(text):
            yield " ".join(lines)
            lines = []
        if text and not LEFT_OUT.match(text):
            lines.append(NEW_PARAGRAPH.sub("", text, count=1))


def _plain(paragraph: str) -> str:
    text = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", paragraph)
    return re.sub(r"\*\*|(?<!\w)\*(?=\w)|(?<=\w)\*(?!\w)", "", text)


def _pages(revision: str | None) -> list[str]:
    if revision:
        listed = ["git", "ls-tree", "-r", "--name-only", revision]
        names = subprocess.run(listed, cwd=ROOT, check=True, capture_output=True, text=True).stdout.split()
    else:
        names = [str(path.relative_to(ROOT)) for path in [*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")]]
    return sorted(name for name in names if re.fullmatch(r"[A-Z]+\.md|docs/(?!reference/)[\w/-]+\.md", name))


def _text(page: str, revision: str | None) -> str:
    if revision is None:
        return (ROOT / page).read_text(encoding="utf-8")
    shown = subprocess.run(["git", "show", f"{revision}:{page}"], cwd=ROOT, check=True, capture_output=True, text=True)
    return shown.stdout


def main() -> None:
    """Print a row per page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pages", nargs="*", help="paths from the root of the repository; by default all pages")
    parser.add_argument("--over", type=int, metavar="N", help="print the sentences of more than N words")
    parser.add_argument("--sample", type=int, default=0, metavar="N", help="print N random sentences a page")
    parser.add_argument("--revision", help="a commit; by default the files as they are")
    options = parser.parse_args()
    print(f"{'page':32}{'sentences':>10}{'mean':>7}{'longest':>9}{'> 25':>6}")
    for page in options.pages or _pages(options.revision):
        found = sentences(_text(page, options.revision))
        lengths = [number_of_words(sentence) for sentence in found] or [0]
        over_25 = sum(length > 25 for length in lengths)
        print(f"{page:32}{len(found):10}{statistics.mean(lengths):7.1f}{max(lengths):9}{over_25:6}")
        for sentence, length in zip(found, lengths, strict=False):
            if options.over is not None and length > options.over:
                print(f"    {length}: {sentence}")
        for sentence in random.sample(found, min(options.sample, len(found))):
            print(f"    - {sentence}")


if __name__ == "__main__":
    main()
