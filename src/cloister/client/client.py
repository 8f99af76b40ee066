"""The SDK's front: infer as a user, publish and grant as an owner (docs/tutorial).

from cloister import Client

with Client.open(identity="bob") as client:
    outputs = client.infer("breast-cancer", {"input": x})
    print(outputs["probabilities"], outputs.provenance.measurement.hex())
"""

from __future__ import annotations

import itertools
import time
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, TypeVar

import numpy.typing as npt

from cloister.adapters.clock import SystemClock
from cloister.adapters.http.blocking import HttpClient
from cloister.adapters.keyservice import HttpTransport, KeyServiceLink
from cloister.attest.types import CollateralSource
from cloister.base.clock import Clock
from cloister.base.errors import CloisterError, InvalidInput, Unavailable
from cloister.base.ids import ModelId
from cloister.base.limits import MAX_RESPONSE_BODY
from cloister.client import explain
from cloister.client.account import Account
from cloister.client.approvals import Approvals
from cloister.client.evidence import ProfileCollateral
from cloister.client.exchange import DEADLINE_S, OUTER_REFUSAL, SEALED_HEADERS, content_of, pause_before_next
from cloister.client.identity import Identity, list_identities, load_identity
from cloister.client.inference import Outputs, SealedInference, open_answer, open_inference, seal_http, seal_inference
from cloister.client.keyring import Keyring
from cloister.client.ownership import Ownership
from cloister.client.profile import Profile, default_home, load_profile
from cloister.client.sealing import SealingKeys
from cloister.client.usage import Usage

T = TypeVar("T")


class Client(Ownership, Usage, Approvals):
    """One identity's way to the KeyService and to the models. Thread-safe; close it, or use it as a context.

    :param profile: where the services are. :param identity: who speaks.
    :param owner: for whom models are offered, when that identity delegated to this one.
    :param collateral: where collateral for the KeyService's evidence comes from; by default, as the profile says.
    """

    def __init__(
        self,
        profile: Profile,
        identity: Identity,
        *,
        collateral: CollateralSource | None = None,
        clock: Clock | None = None,
        http: HttpClient | None = None,
        owner: bytes | None = None,
    ) -> None:
        self.profile = profile
        self.owner = owner or identity.id
        self.clock: Clock = clock or SystemClock()
        self._http = http or HttpClient(self.clock)
        keyring = Keyring(identity)
        link = KeyServiceLink(
            HttpTransport(self._http, profile.keyservice),
            bundle=lambda: profile.open_bundle(self.clock.now()),
            collateral=collateral or ProfileCollateral(profile.collateral, profile.home, self.clock),
            clock=self.clock,
            heads=keyring,
        )
        self.account = Account(identity, keyring, link, self.clock)
        self.keys = SealingKeys(self.account)

    @classmethod
    def open(
        cls,
        home: Path | str | None = None,
        identity: str | None = None,
        passphrase: str | None = None,
        *,
        owner: bytes | None = None,
    ) -> Client:
        """From the client's folder: by default ``CLOISTER_HOME`` or ``~/.cloister``, and the only identity there.

        :raises InvalidInput: ``profile-missing``, ``identity-unknown``, ``identity-ambiguous``.
        """
        folder = Path(home) if home is not None else default_home()
        profile = load_profile(folder)
        return cls(profile, load_identity(folder, identity or only_identity(folder), passphrase), owner=owner)

    def __enter__(self) -> Client:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close connections."""
        self._http.close()

    # --- inference ---

    def infer(
        self,
        model: str | ModelId,
        inputs: Mapping[str, npt.ArrayLike],
        outputs: Sequence[str] = (),
        *,
        deadline_s: float = DEADLINE_S,
    ) -> Outputs:
        """Run a model on encrypted inputs; sent again, sealed anew, while the service is only unavailable.

        :param model: its id, or its name where this identity consented to one model of that name.
        :param inputs: input name to array. :param outputs: the outputs wanted; all of them when empty.
        :returns: output name to array, with ``.provenance``.
        :raises InvalidInput: the runtime refused these inputs. :raises Refused: a rule says no; the KeyService was
            asked which. :raises Unavailable: not answered before the deadline. :raises Tampered: the answer, or what
            the KeyService said, is not authentic.
        """
        target = self.model_id(model)

        def once(now: float) -> Outputs:
            sealed = seal_inference(self.keys.key(target), self.account.identity, inputs, outputs, now)
            consented = self.keys.consented(target)
            return open_inference(sealed, self.exchange(sealed, deadline_s), consented.manifest_digest)

        return self._until(deadline_s, target, once)

    def infer_stream(
        self, model: str | ModelId, inputs: Iterable[Mapping[str, npt.ArrayLike]], *, deadline_s: float = DEADLINE_S
    ) -> Iterator[Outputs]:
        """Run a model on a stream of inputs over one sealed request; answers come in order, as they are made.

        Memory is bounded by one inference in each direction, however long the stream. See ``client.stream_call``.
        """
        import asyncio

        from cloister.adapters.http.client import AsyncHttpClient
        from cloister.client.stream_call import infer_stream

        target = self.model_id(model)

        with asyncio.Runner() as runner:
            http = AsyncHttpClient()
            answers = infer_stream(http, self, target, inputs, deadline_s=deadline_s)
            try:
                while (outputs := runner.run(_following(answers))) is not None:
                    yield outputs
            finally:
                runner.run(answers.aclose())
                runner.run(http.close())

    def metadata(self, model: str | ModelId, *, deadline_s: float = DEADLINE_S) -> dict[str, Any]:
        """OIP v2 model metadata: name, versions, platform, inputs and outputs."""
        target = self.model_id(model)

        def once(now: float) -> dict[str, Any]:
            import json

            key, path = self.keys.key(target), f"/v2/models/{target.name}"
            sealed = seal_http(key, self.account.identity, now, method="GET", path=path)
            consented = self.keys.consented(target)
            response, _ = open_answer(sealed, self.exchange(sealed, deadline_s), consented.manifest_digest)
            value = json.loads(bytes(response.content))
            if not isinstance(value, dict):
                raise InvalidInput("oip-malformed", "the model's metadata is not an object")
            return value

        return self._until(deadline_s, target, once)

    def _until(self, deadline_s: float, target: ModelId, once: Callable[[float], T]) -> T:
        end = self.clock.monotonic() + deadline_s
        again = True
        for attempt in itertools.count():
            try:
                return once(self.clock.now())
            except Unavailable as error:
                time.sleep(pause_before_next(error, attempt, end - self.clock.monotonic()))
            except CloisterError as error:
                reason = self.explained(error, target, again=again)
                if reason is not None:
                    raise reason from error
                again = False
                time.sleep(explain.AGAIN_S)
        raise AssertionError

    def explained(self, error: CloisterError, target: ModelId, *, again: bool) -> CloisterError | None:
        """The same error, or the KeyService's reason where a runtime may not give one.

        :param again: whether the request may be sent again; then ``None`` when no standing rule refuses it.
        """
        if error.code != OUTER_REFUSAL:
            return error
        self.keys.forget(target)
        return explain.refusal(self.account, target, again=again)

    def exchange(self, sealed: SealedInference, deadline_s: float) -> bytes:
        """Send one sealed request as it is, once; returns the sealed answer."""
        return content_of(
            self._http.request(
                "POST",
                self.profile.gateway,
                sealed.target,
                headers=SEALED_HEADERS,
                content=sealed.data,
                deadline_s=deadline_s,
                max_answer=MAX_RESPONSE_BODY,
                idempotent=True,
            )
        )


async def _following(answers: AsyncIterator[Outputs]) -> Outputs | None:
    return await anext(answers, None)


def only_identity(home: Path) -> str:
    """The name of the only identity in a folder.

    :raises InvalidInput: ``identity-unknown``, ``identity-ambiguous``.
    """
    names = list_identities(home)
    if len(names) == 1:
        return names[0]
    if not names:
        raise InvalidInput(
            "identity-unknown", f"there is no identity in {home}", hint="Make one with `cloister identity new NAME`."
        )
    raise InvalidInput("identity-ambiguous", f"there are several identities: {', '.join(names)}", hint="Name one.")
