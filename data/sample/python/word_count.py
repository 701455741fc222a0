#!/usr/bin/env python3
"""Count the words of the files given on the command line, the most frequent first."""

import argparse
import re
import sys
from collections import Counter
from pathlib import Path

WORD = re.compile(r"[^\W\d_]+", re.UNICODE)


def count_words(text, minimum=1):
    """Return a Counter of the lower-case words in text that are at least `minimum` letters long."""
    words = (match.group().lower() for match in WORD.finditer(text))
    return Counter(word for word in words if len(word) >= minimum)


def main(argv=None):
    """Print the table; the result is the exit status."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("files", nargs="+", type=Path)
    parser.add_argument("-n", "--number", type=int, default=10, help="how many words to show")
    args = parser.parse_args(argv)

    total = Counter()
    for path in args.files:
        try:
            total.update(count_words(path.read_text(encoding="utf-8")))
        except OSError as error:
            print(f"{path}: {error.strerror}", file=sys.stderr)
            return 1

    width = max((len(word) for word, _ in total.most_common(args.number)), default=0)
    for rank, (word, count) in enumerate(total.most_common(args.number), start=1):
        print(f"{rank:3d}. {word:<{width}} {count:6d}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
