"""Run a runtime: it attests to the KeyService, fetches encrypted models, and answers sealed requests.

    cloister runtime --keyservice URL --bundle FILE --bundle-root HEX --store URL|DIR [--simulation-key FILE]
    cloister runtime --print-configuration --bundle-root HEX [...]

Everything that changes how keys, models or requests are treated is measured: --print-configuration prints the digest
that a policy names, and the measurement, for the same options. SIGTERM finishes what is under way.
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import TYPE_CHECKING, Final, TypeVar

from cloister.base.errors import InvalidInput
from cloister.cli.output import Output

if TYPE_CHECKING:
    from cloister.base.clock import Clock
    from cloister.runtime.core import Runtime
    from cloister.runtime.options import RuntimeOptions

T = TypeVar("T")
DEFAULT_LISTEN: Final = "127.0.0.1:8441"
_LEVELS: Final = ("shared", "per-user", "strict")


def configure(parser: argparse.ArgumentParser) -> None:
    """Options."""
    parser.add_argument("--keyservice", metavar="URL", help="address of the KeyService")
    parser.add_argument("--keyservice-id", default="", metavar="HEX", help="speak to this KeyService only (measured)")
    parser.add_argument("--bundle", type=Path, metavar="FILE", help="the trust bundle")
    parser.add_argument("--bundle-root", metavar="HEX", help="public key that must have signed it (measured)")
    parser.add_argument("--bundle-version", type=int, default=1, metavar="N", help="least version of it (measured)")
    parser.add_argument(
        "--collateral",
        metavar="SOURCE",
        help="a folder, a bundle file, a PCCS's address or `vendors`; default: what the KeyService sends along",
    )
    parser.add_argument(
        "--store",
        metavar="URL|DIR",
        help="a folder, http(s)://, s3://, gs:// or az://: where encrypted models are",
    )
    parser.add_argument(
        "--listen",
        metavar="HOST:PORT|unix:PATH",
        help=f"default: 0.0.0.0:$PORT where that is set, else {DEFAULT_LISTEN}",
    )
    parser.add_argument("--isolation", choices=_LEVELS, default=_LEVELS[0], help="who may be in it together (measured)")
    parser.add_argument("--concurrency", type=int, default=None, metavar="N", help="requests at once (measured)")
    parser.add_argument("--memory-mb", type=int, default=2048, metavar="MB", help="for models, together (measured)")
    parser.add_argument("--threads", type=int, default=1, metavar="N", help="threads of one inference (measured)")
    parser.add_argument("--queue", type=int, default=64, metavar="N", help="requests that may wait (measured)")
    parser.add_argument("--deadline", type=int, default=30, metavar="S", help="and for how long (measured)")
    parser.add_argument("--engine", action="append", choices=("onnx", "litert"), help="allow only these (measured)")
    parser.add_argument("--no-co-tenancy", action="store_true", help="one owner's models only, always (measured)")
    parser.add_argument("--simulation-key", type=Path, metavar="FILE", help="run in the simulated TEE of this key")
    parser.add_argument("--prewarm", nargs="+", default=[], metavar="MODEL", help="keep their ciphertext in memory")
    parser.add_argument("--drain", type=float, default=30.0, metavar="S", help="after SIGTERM, for requests under way")
    for name in ("--print-configuration", "--print-measurement"):
        parser.add_argument(name, dest="show", action="store_true", help="print what a policy must name, and stop")


def run(args: argparse.Namespace, out: Output) -> int:
    """Serve, or print."""
    options = _options(args)
    if args.show:
        return _show(args, options, out)
    from cloister.adapters.process import raise_file_limit, tune_allocator
    from cloister.adapters.process import run as run_loop

    tune_allocator()
    raise_file_limit()
    from cloister.adapters.clock import SystemClock
    from cloister.base.ids import ModelId
    from cloister.runtime.app import Listen, default_listen, run_until_told

    prewarm = [ModelId.parse(text) for text in args.prewarm]
    listen = Listen.parse(args.listen or default_listen(os.environ, DEFAULT_LISTEN))
    clock = SystemClock()
    runtime = compose_from(args, clock)
    log, identity = runtime.ports.log, runtime.ports.identity

    def announce(address: str) -> None:
        log.event("started", address=address, measurement=identity.measurement.hex(), isolation=args.isolation)
        tee = identity.tee.value
        out.result({"address": address, "tee": tee}, f"The runtime answers on {address} ({tee})")

    cut = run_loop(run_until_told(runtime, listen, announce, prewarm=prewarm, drain_s=args.drain))
    log.event("stopped", count=cut)
    return 0


def compose_from(args: argparse.Namespace, clock: Clock, service: str = "runtime") -> Runtime:
    """The runtime that these options describe.

    :raises CloisterError: they are not good enough, or what they name is not.
    """
    from cloister.adapters.logs import JsonLog
    from cloister.runtime.app import collateral_for, compose, endorsed, genuine, simulated

    options = _options(args)
    tee = simulated(args.simulation_key, options, clock) if args.simulation_key else genuine(options)
    collateral = collateral_for(args.collateral, clock)
    if args.collateral:  # a KeyService then needs no source of its own
        tee = endorsed(tee, collateral)
    return compose(
        options,
        keyservice=_need(args.keyservice, "--keyservice"),
        bundle=_need(args.bundle, "--bundle"),
        store=_need(args.store, "--store"),
        tee=tee,
        collateral=collateral,
        clock=clock,
        log=JsonLog(clock, service=service, tee=tee[1].tee.value),
    )


def _options(args: argparse.Namespace) -> RuntimeOptions:
    from cloister.runtime.isolation import Isolation
    from cloister.runtime.options import ENGINES, RuntimeOptions

    isolation = Isolation(args.isolation)
    default = 1 if isolation is Isolation.STRICT else 4
    return RuntimeOptions(
        bundle_root=_hex(_need(args.bundle_root, "--bundle-root"), "--bundle-root"),
        bundle_version=args.bundle_version,
        keyservice=_hex(args.keyservice_id, "--keyservice-id"),
        isolation=isolation,
        concurrency=default if args.concurrency is None else args.concurrency,
        memory_mb=args.memory_mb,
        co_tenancy=not args.no_co_tenancy,
        threads=args.threads,
        queue=args.queue,
        deadline_s=args.deadline,
        engines=tuple(sorted(set(args.engine))) if args.engine else ENGINES,
    )


def _show(args: argparse.Namespace, options: RuntimeOptions, out: Output) -> int:
    from cloister.adapters.clock import SystemClock
    from cloister.runtime.app import genuine, simulated

    configuration = options.measured()
    shown: dict[str, object] = {
        "configuration": configuration.digest.hex(),
        "values": {
            name: value.hex() if isinstance(value, bytes) else value for name, value in configuration.values.items()
        },
    }
    if args.simulation_key:
        _, identity = simulated(args.simulation_key, options, SystemClock())
    else:
        _, identity = genuine(options)
    out.result({"tee": identity.tee.value, "measurement": identity.measurement.hex(), **shown})
    return 0


def _need(value: T | None, name: str) -> T:
    if value is None:
        raise InvalidInput("argument", f"`cloister runtime` needs {name}")
    return value


def _hex(text: str, name: str) -> bytes:
    try:
        return bytes.fromhex(text)
    except ValueError as error:
        raise InvalidInput("argument", f"{name} is not hexadecimal") from error
