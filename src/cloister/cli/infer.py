"""Run a model on your data, encrypted on this machine and opened only inside an attested TEE.

  cloister infer MODEL --input FILE.npy|.npz|.json [--output FILE.npz]

FILE.npy is one array, for a model with one input, or with --input-name. FILE.npz is one array an input. FILE.json is an
object of input name to list, or an OIP v2 request.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any, Final

import numpy as np

from cloister.base.errors import InvalidInput, Unavailable
from cloister.base.limits import MAX_REQUEST_BODY
from cloister.cli.account import add_account_options, open_client, resolve_model
from cloister.cli.output import Output
from cloister.client.exchange import DEADLINE_S
from cloister.client.files import read_public
from cloister.client.inference import Outputs
from cloister.wire.oip import DTYPES

_SHOWN: Final = 8


def configure(parser: argparse.ArgumentParser) -> None:
    """Options."""
    parser.add_argument("model", help="the model's name, or OWNER/NAME")
    parser.add_argument("--input", required=True, type=Path, metavar="FILE", help=".npy, .npz or .json")
    parser.add_argument("--input-name", help="of a .npy file (default: the model's only input)")
    parser.add_argument(
        "--output", type=Path, metavar="FILE.npz", help="where to put the outputs (default: print them)"
    )
    parser.add_argument("--deadline", type=float, default=DEADLINE_S, metavar="S", help="give up after so many seconds")
    add_account_options(parser)


def run(args: argparse.Namespace, out: Output) -> int:
    """Infer once."""
    arrays = read_inputs(args.input)
    model = resolve_model(args, args.model)
    with open_client(args) as client:
        if "" in arrays:
            name = args.input_name or _only_input(client.metadata(model, deadline_s=args.deadline))
            arrays = {name: arrays[""]}
        outputs = client.infer(model, arrays, deadline_s=args.deadline)
    if args.output:
        try:
            np.savez(args.output, **outputs)  # type: ignore[arg-type]  # the stub confuses names with allow_pickle
        except OSError as error:
            raise Unavailable("file-not-written", f"cannot write {args.output}: {error.strerror}") from error
    out.result(_as_json(outputs, args.output), _as_text(outputs, args.output))
    return 0


def read_inputs(path: Path) -> dict[str, Any]:
    """Input name to array; one array without a name stands under the empty name.

    :raises InvalidInput: ``input-type-unknown``, ``input-malformed``, ``file-unreadable``, ``file-too-large``.
    """
    data = read_public(path, limit=2 * MAX_REQUEST_BODY, what="the input")
    try:
        match path.suffix:
            case ".npy":
                return {"": np.load(path, allow_pickle=False)}
            case ".npz":
                with np.load(path, allow_pickle=False) as archive:
                    return dict(archive)
            case ".json":
                return _from_json(json.loads(data))
            case _:
                pass
    except (ValueError, OSError, EOFError, KeyError) as error:
        raise InvalidInput("input-malformed", f"{path} cannot be read as {path.suffix}") from error
    raise InvalidInput("input-type-unknown", f"{path.name} is neither .npy, .npz nor .json")


def _from_json(value: Any) -> dict[str, Any]:
    if isinstance(value, dict) and isinstance(value.get("inputs"), list):
        return {
            item["name"]: np.array(item["data"], dtype=DTYPES[item["datatype"]]).reshape(item["shape"])
            for item in value["inputs"]
        }
    if not isinstance(value, dict):
        return {"": _floats(value)}
    return {name: _floats(item) for name, item in value.items()}


def _floats(value: Any) -> Any:
    """Lists of numbers are float32, as models take them; name a type by writing an OIP v2 request."""
    array = np.array(value)
    return array.astype(np.float32) if array.dtype.kind in "fi" else array


def _only_input(metadata: dict[str, Any]) -> str:
    names = [item["name"] for item in metadata.get("inputs", [])]
    if len(names) != 1:
        raise InvalidInput(
            "input-name-missing", f"the model has the inputs {', '.join(names)}", hint="Use a .npz file."
        )
    return str(names[0])


def _as_json(outputs: Outputs, path: Path | None) -> dict[str, object]:
    provenance = outputs.provenance
    values = {
        name: array.tolist() if array.dtype != object else [str(item) for item in array.ravel()]
        for name, array in outputs.items()
    }
    return {
        "outputs": str(path) if path else values,
        "model_digest": provenance.model_digest.hex(),
        "measurement": provenance.measurement.hex(),
        "tee": provenance.tee,
        "warnings": list(provenance.warnings),
        "timing_ms": dict(provenance.timing_ms),
    }


def _as_text(outputs: Outputs, path: Path | None) -> str:
    lines = []
    for name, array in outputs.items():
        shown = np.array2string(array, threshold=_SHOWN, precision=4)
        lines.append(f"{name}  {array.dtype} {list(array.shape)}" + ("" if path else f"\n{shown}"))
    if path:
        lines.append(f"written to {path}")
    provenance = outputs.provenance
    lines.append(
        f"answered by {provenance.tee} {provenance.measurement.hex()[:16]}..., "
        f"model {provenance.model_digest.hex()[:16]}..."
    )
    lines += [f"warning: {warning}" for warning in provenance.warnings]
    return "\n".join(lines)
