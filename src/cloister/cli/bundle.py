"""Make a trust bundle: the signed file that says which KeyService clients and runtimes believe.

cloister bundle key   --output FILE                            a new root; keep the file offline
cloister bundle sign  --root-key FILE --policy FILE ...        a bundle, signed by it
cloister bundle show  FILE --bundle-root HEX                   what a bundle says, its signature checked

Whoever signs decides who is believed: somebody whom users and owners trust, never the operator. A policy names code
and configuration of the KeyService (docs/reference/policy.md); `cloister keyservice init` prints both.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from cloister.attest.bundle import Successor, TrustBundle, open_bundle
from cloister.attest.policy_toml import MAX_POLICY_TEXT, format_policy, parse_policy
from cloister.base.errors import InvalidInput, Refused
from cloister.base.limits import MAX_BUNDLE
from cloister.base.secret import SecretBytes
from cloister.cli.files import read_file, read_text
from cloister.cli.output import Output
from cloister.client.files import read_private, write_private
from cloister.crypto.sign import PUBLIC_KEY_LENGTH, SigningKey

_DAY_S = 86400


def configure(parser: argparse.ArgumentParser) -> None:
    """The sub-commands of ``cloister bundle``."""
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument("--json", action="store_true", default=argparse.SUPPRESS, help="print one JSON object")
    key = actions.add_parser("key", parents=[common], help="make a root key, and print what everybody pins")
    key.add_argument("--output", required=True, type=Path, metavar="FILE", help="must not exist yet")
    sign = actions.add_parser("sign", parents=[common], help="make and sign a bundle")
    sign.add_argument("--root-key", required=True, type=Path, metavar="FILE", help="of `cloister bundle key`")
    sign.add_argument("--policy", required=True, type=Path, metavar="FILE", help="which KeyService is believed; TOML")
    sign.add_argument("--name", required=True, help="for people")
    sign.add_argument("--version", dest="number", type=int, default=1, metavar="N", help="grows with each bundle")
    sign.add_argument("--days", type=int, required=True, metavar="N", help="until nobody accepts it any more")
    sign.add_argument("--witness", action="append", default=[], metavar="HEX", help="key of a witness; once for each")
    sign.add_argument("--witness-threshold", type=int, default=0, metavar="K", help="how many must co-sign")
    sign.add_argument(
        "--successor",
        action="append",
        default=[],
        metavar="CODE:CONFIGURATION",
        help="what the KeyService may hand its root secret to, as its `cloister keyservice measure` says; may repeat",
    )
    sign.add_argument(
        "--accept-rollback-unsafe", action="store_true", help="accept a KeyService without protection from rollback"
    )
    sign.add_argument(
        "--minimum-tcb-evaluation-data-number", type=int, default=0, metavar="N", help="refuse older Intel collateral"
    )
    sign.add_argument(
        "--insecure-simulation-key",
        action="append",
        default=[],
        metavar="HEX",
        help="accept simulation by this key, and no hardware; protects nothing",
    )
    sign.add_argument("--output", required=True, type=Path, metavar="FILE", help="the bundle to write")
    show = actions.add_parser("show", parents=[common], help="what a bundle says")
    show.add_argument("file", type=Path, metavar="FILE", help="a bundle")
    show.add_argument("--bundle-root", required=True, metavar="HEX", help="the key that must have signed it")


def run(args: argparse.Namespace, out: Output) -> int:
    """Run one of them."""
    match args.action:
        case "key":
            return _key(args.output, out)
        case "sign":
            return _sign(args, out)
        case _:
            return _show(args, out)


def _key(path: Path, out: Output) -> int:
    if path.exists():
        raise Refused("file-exists", f"{path} is there already", hint="A root is made once; name another file.")
    key = SigningKey.generate()
    write_private(path, key.seed().reveal().hex().encode() + b"\n")
    out.result({"file": str(path), "bundle_root": key.public_key.hex()})
    return 0


def _sign(args: argparse.Namespace, out: Output) -> int:
    from cloister.adapters.clock import SystemClock

    try:
        key = SigningKey.from_seed(SecretBytes.key(bytes.fromhex(read_private(args.root_key).decode("ascii").strip())))
    except (ValueError, InvalidInput) as error:
        if isinstance(error, InvalidInput) and error.code == "file-unreadable":
            raise
        raise InvalidInput("bundle-key-malformed", f"{args.root_key} does not hold a root key") from error
    simulation = tuple(_public(text, "--insecure-simulation-key") for text in args.insecure_simulation_key)
    if not 1 <= args.days <= 3660:
        raise InvalidInput("argument", f"--days is {args.days}; 1 to 3660 are accepted")
    now = int(SystemClock().now())
    bundle = TrustBundle(
        root=key.public_key,
        version=args.number,
        name=args.name,
        issued_at=now,
        expires_at=now + args.days * _DAY_S,
        keyservice=parse_policy(read_text(args.policy, limit=MAX_POLICY_TEXT, what="policy")),
        accept_simulation=bool(simulation),
        simulation_keys=simulation,
        accept_rollback_unsafe=args.accept_rollback_unsafe,
        minimum_tcb_evaluation_data_number=args.minimum_tcb_evaluation_data_number,
        witnesses=tuple(_public(text, "--witness") for text in args.witness),
        witness_threshold=args.witness_threshold,
        successors=tuple(_successor(text) for text in args.successor),
    )
    write_private(args.output, bundle.sign(key))
    args.output.chmod(0o644)  # it is public
    _tell(bundle, out)
    return 0


def _show(args: argparse.Namespace, out: Output) -> int:
    from cloister.adapters.clock import SystemClock

    data = read_file(args.file, limit=MAX_BUNDLE, what="bundle")
    _tell(open_bundle(data, _public(args.bundle_root, "--bundle-root"), 1, SystemClock().now()), out)
    return 0


def _tell(bundle: TrustBundle, out: Output) -> None:
    out.result(
        {
            "bundle_root": bundle.root.hex(),
            "name": bundle.name,
            "version": bundle.version,
            "digest": bundle.digest.hex(),
            "issued_at": bundle.issued_at,
            "expires_at": bundle.expires_at,
            "witnesses": [key.hex() for key in bundle.witnesses],
            "witness_threshold": bundle.witness_threshold,
            "successors": [f"{item.measurement.hex()}:{item.configuration.hex()}" for item in bundle.successors],
            "accept_rollback_unsafe": bundle.accept_rollback_unsafe,
            "insecure_simulation_keys": [key.hex() for key in bundle.simulation_keys],
            "policy": format_policy(bundle.keyservice),
        }
    )


def _successor(text: str) -> Successor:
    code, _, configuration = text.partition(":")
    try:
        return Successor(bytes.fromhex(code), bytes.fromhex(configuration))
    except ValueError as error:
        raise InvalidInput("argument", "--successor takes CODE:CONFIGURATION, both in hexadecimal") from error


def _public(text: str, name: str) -> bytes:
    try:
        key = bytes.fromhex(text)
    except ValueError:
        key = b""
    if len(key) != PUBLIC_KEY_LENGTH:
        raise InvalidInput("argument", f"{name} takes {2 * PUBLIC_KEY_LENGTH} hexadecimal digits")
    return key
