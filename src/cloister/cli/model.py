"""Pack, publish, list, rotate and retire models, as their owner.

cloister model pack FILE.onnx --name NAME [--out FOLDER]     optimise and encrypt; the key stays in your keyring
cloister model publish FOLDER [--store URL|DIR]              put it into the store, its key into the KeyService
cloister model list                                          your models, and those you may use
cloister model rotate NAME --source FILE.onnx [--store ...]  the same version under a fresh key
cloister model retire NAME [--manifest DIGEST]               no release any more
"""

from __future__ import annotations

import argparse
from pathlib import Path

from cloister.base.errors import InvalidInput
from cloister.base.ids import ModelId, check_name, parse_id
from cloister.cli.account import (
    add_account_options,
    add_owner_option,
    home_of,
    open_client,
    outcome,
    passphrase,
    resolve_user,
)
from cloister.cli.output import Output, as_json
from cloister.cli.progress import progress_bars
from cloister.client.client import Client, only_identity
from cloister.client.identity import load_identity
from cloister.client.keyring import Keyring
from cloister.client.ownership import pack_own


def configure(parser: argparse.ArgumentParser) -> None:
    """Options."""
    parser.add_argument("action", choices=["pack", "publish", "list", "rotate", "retire"])
    parser.add_argument("subject", nargs="?", help="pack: the model file; publish: the folder; otherwise the name")
    parser.add_argument("--name", help="pack: the model's name (default: the file's)")
    parser.add_argument("--model-version", type=int, help="pack: its version (default: one above the last packed here)")
    parser.add_argument("--out", type=Path, help="pack: the folder to make (default: NAME-vN.packed)")
    parser.add_argument("--plain", action="store_true", help="pack: leave out the variant tuned for this CPU")
    parser.add_argument("--source", type=Path, help="rotate: the model file")
    parser.add_argument(
        "--store",
        metavar="URL|DIR",
        help="publish, rotate: a folder, s3://, gs:// or az:// (default: the profile's)",
    )
    parser.add_argument("--manifest", help="retire: only this manifest (64 hexadecimal digits)")
    add_owner_option(parser)
    add_account_options(parser)


def run(args: argparse.Namespace, out: Output) -> int:
    """One of the actions."""
    if args.action != "list" and not args.subject:
        raise InvalidInput("subject-missing", f"model {args.action} needs what to {args.action}")
    if args.action == "pack":
        return _pack(args, out)
    actions = {"publish": _publish, "list": _list, "rotate": _rotate, "retire": _retire}
    with open_client(args) as client:
        return actions[args.action](args, out, client)


def _pack(args: argparse.Namespace, out: Output) -> int:
    """Needs the identity only, and talks to nobody."""
    home = home_of(args)
    identity = load_identity(home, args.identity or only_identity(home), passphrase())
    owner = resolve_user(args, args.owner) if args.owner else identity.id
    source = Path(args.subject)
    model = ModelId(owner, check_name(args.name or source.stem.lower(), what="the model's name"))
    keyring = Keyring(identity)
    versions = [key.version for key in keyring.model_keys(str(model))]
    version = args.model_version or max(versions, default=0) + 1
    folder = args.out or Path(f"{model.name}-v{version}.packed")
    with progress_bars(out) as progress:
        packing = pack_own(
            identity, keyring, source, folder, model=model, version=version, tuned=not args.plain, progress=progress
        )
    size = packing.manifest.stored_size
    out.result(
        {
            "model": str(packing.manifest.model),
            "version": version,
            "manifest": packing.digest.hex(),
            "folder": str(folder),
            "bytes": size,
        },
        f"packed {model.name} version {version}: {size / 2**20:.1f} MiB in {folder}\n"
        f"  manifest {packing.digest.hex()}\n"
        f"Publish it with: cloister model publish {folder}",
    )
    return 0


def _publish(args: argparse.Namespace, out: Output, client: Client) -> int:
    with progress_bars(out) as progress:
        acknowledged = client.publish(Path(args.subject), store=args.store, progress=progress)
    out.result(
        {"published": args.subject, "entry": acknowledged["entry"], "pending": acknowledged["pending"]},
        outcome(acknowledged, "published"),
    )
    return 0


def _list(_args: argparse.Namespace, out: Output, client: Client) -> int:
    items = client.models()
    lines = []
    for item in items:
        versions = ", ".join(
            f"v{v['version']} {v['manifest'].hex()[:16]}..." for v in item["versions"] if not v["retired"]
        )
        state = "retired" if item["retired"] else versions or "all versions retired"
        lines.append(f"{item['relation']:<8} {item['model']}  {state}")
    out.result({"models": as_json(items)}, "\n".join(lines) or "no models: `cloister model pack` makes one")
    return 0


def _rotate(args: argparse.Namespace, out: Output, client: Client) -> int:
    if args.source is None:
        raise InvalidInput("source-missing", "rotating encrypts the model anew", hint="Name its file with --source.")
    with progress_bars(out) as progress:
        acknowledged = client.rotate_model_key(args.subject, args.source, store=args.store, progress=progress)
    out.result(
        {"model": args.subject, "entry": acknowledged["entry"], "pending": acknowledged["pending"]},
        outcome(acknowledged, "rotated"),
    )
    return 0


def _retire(args: argparse.Namespace, out: Output, client: Client) -> int:
    manifest = parse_id(args.manifest, what="the manifest's digest") if args.manifest else b""
    acknowledged = client.retire(args.subject, manifest)
    out.result({"model": args.subject, "entry": acknowledged["entry"]}, f"retired; log entry {acknowledged['entry']}")
    return 0
