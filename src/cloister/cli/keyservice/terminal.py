"""Progress and tables in a terminal, in plain text: the image in which a KeyService runs holds no library for them."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Final

from cloister.cli.output import Output

Progress = Callable[[str, int, int], None]
_BAR: Final = 30
_COLOURS: Final = {True: "", False: "\x1b[31m", None: "\x1b[33m"}
_PLAIN: Final = "\x1b[0m"


@contextlib.contextmanager
def progress_line(out: Output) -> Iterator[Progress]:
    """A function that shows how much of what is done, on one line of stderr; nothing where nobody looks."""
    shown: tuple[str, int] | None = None

    def show(what: str, done: int, total: int) -> None:
        nonlocal shown
        percent = 100 * done // max(1, total)
        if shown == (what, percent):
            return
        if shown is not None and shown[0] != what:
            print(file=sys.stderr)
        shown = what, percent
        bar = "#" * (percent * _BAR // 100)
        print(f"\r{what:<8} [{bar:<{_BAR}}] {percent:>3} %  {done} entries", end="", file=sys.stderr, flush=True)

    if out.as_json or not sys.stderr.isatty():
        yield lambda _what, _done, _total: None
        return
    try:
        yield show
    finally:
        if shown is not None:
            print(file=sys.stderr)


def show_rows(title: str, rows: Sequence[tuple[str, str, bool | None]]) -> None:
    """A name and a value on each line; in a terminal red where it is not well, yellow where somebody should look.

    Without colour such a line ends in ``(!)``, so that nothing depends on seeing it.
    """
    coloured, width = sys.stdout.isatty(), max(len(name) for name, _, _ in rows)
    print(title)
    for name, value, good in rows:
        mark = "" if good else "  (!)"
        colour = _COLOURS[good] if coloured else ""
        print(f"  {name:<{width}}  {colour}{value}{mark}{_PLAIN if colour else ''}", flush=True)
