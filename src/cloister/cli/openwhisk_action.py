"""Run a runtime as an OpenWhisk Docker action: the platform posts /init once, then /run for each activation.

    cloister openwhisk-action [--listen 0.0.0.0:8080]

It takes no options of a runtime: those are the action's init parameters, named like the options of `cloister runtime`
(CLOISTER_KEYSERVICE for --keyservice, CLOISTER_BUNDLE_ROOT for --bundle-root, ...; `true` for an option without a
value). Where an option takes a file, `base64:...` is its content. CLOISTER_MAX_RESULT says how many bytes the platform
carries, CLOISTER_PAYLOADS names the store for larger bodies. What begins with AWS_, GOOGLE_ or AZURE_ is for an object
store's client. Variables of the process's own environment count where /init brings none.
docs/how-to/openwhisk.md goes through all of it.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Final, NoReturn

from cloister.base.errors import InvalidInput
from cloister.cli import runtime as runtime_command
from cloister.cli.output import Output

if TYPE_CHECKING:
    from cloister.base.clock import Clock
    from cloister.runtime.openwhisk.app import Setting

PREFIX: Final = "CLOISTER_"
PAYLOADS: Final = "CLOISTER_PAYLOADS"
RESULT_LIMIT: Final = "CLOISTER_MAX_RESULT"
STORE_PREFIXES: Final = ("AWS_", "GOOGLE_", "AZURE_")
INLINE: Final = "base64:"
DEFAULT_LISTEN: Final = "0.0.0.0:8080"  # where the platform looks for it
_NOT_HERE: Final = frozenset({"listen", "drain", "show"})


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise InvalidInput("argument", message)


def configure(parser: argparse.ArgumentParser) -> None:
    """Options."""
    parser.add_argument("--listen", default=DEFAULT_LISTEN, metavar="HOST:PORT|unix:PATH", help="default: %(default)s")
    parser.add_argument("--drain", type=float, default=30.0, metavar="S", help="after SIGTERM, for what is under way")


def run(args: argparse.Namespace, out: Output) -> int:
    """Serve."""
    from cloister.adapters.process import raise_file_limit, tune_allocator
    from cloister.adapters.process import run as run_loop

    tune_allocator()
    raise_file_limit()
    from cloister.adapters.clock import SystemClock
    from cloister.adapters.logs import JsonLog
    from cloister.runtime.app import Listen
    from cloister.runtime.openwhisk.app import Action, run_until_told

    clock = SystemClock()
    log = JsonLog(clock, service="action")

    def make() -> Action:
        return Action(
            lambda environment: compose({**os.environ, **environment}, clock),
            clock=clock,
            log=log,
        )

    def announce(address: str) -> None:
        out.result({"address": address}, f"The action answers on {address}")

    log.event("stopped", count=run_loop(run_until_told(make, Listen.parse(args.listen), announce, drain_s=args.drain)))
    return 0


def options(environment: Mapping[str, str]) -> argparse.Namespace:
    """The options of ``cloister runtime`` that these variables stand for.

    :raises InvalidInput: ``argument``.
    """
    parser = _Parser(prog="/init", add_help=False)
    runtime_command.configure(parser)
    words: list[str] = []
    for action in parser._actions:  # argparse has no other list of them
        name = action.option_strings[-1]
        value = "" if action.dest in _NOT_HERE else environment.get(PREFIX + action.dest.upper(), "")
        if not value:
            continue
        if action.nargs == 0:
            if value not in ("true", "false"):
                raise InvalidInput("argument", f"{PREFIX}{action.dest.upper()} is true or false")
            words += [name] if value == "true" else []
        else:
            for word in value.split() if action.dest in ("engine", "prewarm") else [value]:
                words += [name, _content(word)] if word.startswith(INLINE) else [name, word]
    return parser.parse_args(words)


def compose(environment: Mapping[str, str], clock: Clock) -> Setting:
    """The runtime that these variables describe.

    :raises CloisterError: they are not good enough, or what they name is not.
    """
    from cloister.runtime.openwhisk.app import Setting
    from cloister.runtime.openwhisk.protocol import MAX_RESULT

    args = options(environment)
    # The object stores' client reads its credentials from the process's environment and nowhere else.
    os.environ.update({name: text for name, text in environment.items() if name.startswith(STORE_PREFIXES)})
    limit = environment.get(RESULT_LIMIT, str(MAX_RESULT))
    if not limit.isascii() or not limit.isdigit() or not 1024 <= int(limit) <= 1 << 30:
        raise InvalidInput("argument", f"{RESULT_LIMIT} is {limit[:20]!r}; bytes, 1024 to 1073741824, are accepted")
    return Setting(runtime_command.compose_from(args, clock, "action"), environment.get(PAYLOADS, ""), int(limit))


def _content(word: str) -> str:
    """A file with this content, in memory: an action has no folder that must be writable."""
    import base64
    import binascii

    try:
        data = base64.b64decode(word.removeprefix(INLINE), validate=True)
    except (binascii.Error, ValueError) as error:
        raise InvalidInput("argument", f"what follows {INLINE} is not base64") from error
    descriptor = os.memfd_create("init")
    with os.fdopen(os.dup(descriptor), "wb") as file:
        file.write(data)
    return f"/proc/self/fd/{descriptor}"
