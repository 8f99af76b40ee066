"""What the inside serves: the Open Inference Protocol v2 (spec/protocol.md, section 9).

An endpoint gets an authenticated inner request and a model, and returns an answer; it knows nothing of keys, HTTP or
envelopes. Endpoints declared as streams get one record at a time (``streams``); a further protocol is a further table.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from time import perf_counter
from typing import Final

import numpy as np

from cloister import __version__
from cloister.base.errors import InvalidInput
from cloister.engines.port import TensorSpec
from cloister.runtime.loaded import LoadedModel
from cloister.runtime.messages import Answer, infer_answer
from cloister.runtime.stages import Stage, Timings
from cloister.wire import bhttp, oip

_JSON: Final = (("content-type", "application/json"),)


@dataclass(frozen=True, slots=True)
class Call:
    """One inner request, or one record of a stream."""

    request: bhttp.Request
    content: memoryview
    header_length: int | None
    model: LoadedModel
    timings: Timings


Endpoint = Callable[[Call], Answer]


def _json(value: Mapping[str, object]) -> Answer:
    return Answer(200, _JSON, (json.dumps(value, separators=(",", ":")).encode(),))


def server(call: Call) -> Answer:
    """``GET /v2``."""
    del call
    return _json({"name": "cloister", "version": __version__, "extensions": ["binary_tensor_data"]})


def live(call: Call) -> Answer:
    """``GET /v2/health/live``."""
    del call
    return _json({"live": True})


def ready(call: Call) -> Answer:
    """``GET /v2/health/ready``."""
    del call
    return _json({"ready": True})


def model_ready(call: Call) -> Answer:
    """``GET /v2/models/{m}/ready``: it is, or this would not be reached."""
    return _json({"name": call.model.place.model.name, "ready": True})


def metadata(call: Call) -> Answer:
    """``GET /v2/models/{m}``."""
    model = call.model

    def tensors(specs: tuple[TensorSpec, ...]) -> list[object]:
        return [{"name": s.name, "datatype": s.datatype, "shape": list(s.shape)} for s in specs]

    return _json(
        {
            "name": model.place.model.name,
            "versions": [str(model.version)],
            "platform": model.package.engine,
            "inputs": tensors(model.package.inputs),
            "outputs": tensors(model.package.outputs),
        }
    )


def infer(call: Call) -> Answer:
    """``POST /v2/models/{m}/infer``."""
    model = call.model
    request = oip.decode_request(call.content, call.header_length)
    check_inputs(model.package.inputs, request.inputs)
    known = {spec.name: spec.datatype for spec in model.package.outputs}
    wanted = request.outputs or tuple(known)
    for name in wanted:
        if name not in known:
            raise InvalidInput("output-unknown", f"the model has no output {name[:64]!r}")
    started = perf_counter()
    found = model.session.run({tensor.name: tensor.data for tensor in request.inputs}, wanted)
    call.timings.add(Stage.INFERENCE, perf_counter() - started)
    outputs = tuple(oip.Tensor(name, known[name], np.asarray(found[name])) for name in wanted)
    response = oip.InferResponse(model.place.model.name, outputs, str(model.version), request.id)
    return infer_answer(response, binary=request.binary)


def check_inputs(specs: tuple[TensorSpec, ...], tensors: tuple[oip.Tensor, ...]) -> None:
    """Names, datatypes and shapes against the model, before the engine sees anything (clause 9.2).

    :raises InvalidInput: ``input-missing``, ``input-unknown``, ``input-datatype``, ``input-shape``.
    """
    given = {tensor.name: tensor for tensor in tensors}
    for spec in specs:
        tensor = given.pop(spec.name, None)
        if tensor is None:
            raise InvalidInput("input-missing", f"the model's input {spec.name!r} is missing")
        if tensor.datatype != spec.datatype:
            raise InvalidInput(
                "input-datatype", f"input {spec.name!r} is {tensor.datatype}; the model takes {spec.datatype}"
            )
        shape = tensor.shape
        fits = len(shape) == len(spec.shape) and all(
            got == want or (want < 0 and got > 0) for got, want in zip(shape, spec.shape, strict=True)
        )
        if not fits:
            raise InvalidInput(
                "input-shape", f"input {spec.name!r} has shape {list(shape)}; the model takes {list(spec.shape)}"
            )
    if given:
        raise InvalidInput("input-unknown", f"the model has no input {next(iter(given))[:64]!r}")


_SERVER: Final[Mapping[tuple[str, tuple[str, ...]], Endpoint]] = {
    ("GET", ("v2",)): server,
    ("GET", ("v2", "health", "live")): live,
    ("GET", ("v2", "health", "ready")): ready,
}
_MODEL: Final[Mapping[tuple[str, str], Endpoint]] = {
    ("GET", ""): metadata,
    ("GET", "ready"): model_ready,
    ("POST", "infer"): infer,
}
_STREAMS: Final[Mapping[tuple[str, str], Endpoint]] = {
    ("POST", "infer_stream"): infer,
}


def find(request: bhttp.Request, model: LoadedModel, *, stream: bool = False) -> Endpoint:
    """The endpoint of a request; streams have their own.

    :raises InvalidInput: ``endpoint-unknown``, ``model-other`` when the path names another model than the header.
    """
    words = tuple(request.path.split("/")[1:])
    if not stream and (found := _SERVER.get((request.method, words))) is not None:
        return found
    if words[:2] == ("v2", "models") and len(words) >= 3:
        _check_name(words[2], model)
        rest = words[3:]
        if rest[:1] == ("versions",) and len(rest) >= 2:
            if rest[1] != str(model.version):
                raise InvalidInput("model-other", "the path names another version than the one the keys are for")
            rest = rest[2:]
        table = _STREAMS if stream else _MODEL
        if len(rest) <= 1 and (found := table.get((request.method, rest[0] if rest else ""))) is not None:
            return found
    raise InvalidInput("endpoint-unknown", "there is no such endpoint inside the envelope")


def _check_name(name: str, model: LoadedModel) -> None:
    if name != model.place.model.name:
        raise InvalidInput("model-other", "the path names another model than the request's header")
