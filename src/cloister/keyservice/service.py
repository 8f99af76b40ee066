"""The KeyService without its transport: bytes in, bytes out, thread-safe (spec/protocol.md, sections 5 to 7)."""

from __future__ import annotations

from typing import Final, final

from cloister.adapters.logs import EventLog
from cloister.attest.types import Configuration
from cloister.base.errors import CloisterError, InvalidInput, Refused, Tampered, Unavailable
from cloister.base.limits import HANDOVERS_AT_ONCE, MAX_LEAVES
from cloister.keyservice.anchors.port import Anchor, Unanchored
from cloister.keyservice.bundles import Bundles
from cloister.keyservice.custody.upkeep import Custody
from cloister.keyservice.epochs import Epochs
from cloister.keyservice.freshness import QueryNonces
from cloister.keyservice.ledger import Ledger
from cloister.keyservice.limiting.limiter import Limiter
from cloister.keyservice.limiting.verifications import Verifications
from cloister.keyservice.proposals import Proposal, Written
from cloister.keyservice.queries import Queries
from cloister.keyservice.releases import Releases
from cloister.keyservice.replication.acceptance import Acceptance
from cloister.keyservice.replication.handover import Donor
from cloister.keyservice.root import Root
from cloister.keyservice.settings import Settings
from cloister.keyservice.state.rules import authenticate, check
from cloister.keyservice.state.state import State
from cloister.keyservice.telemetry import Telemetry
from cloister.keyservice.unacknowledged import Unacknowledged
from cloister.keyservice.vault import Vault
from cloister.log import entry as log
from cloister.log.export import ExportHeader
from cloister.log.receipt import Receipt
from cloister.wire import cbor
from cloister.wire.calls import ATTEST, HANDOVER, QUERY, STATEMENT, Call, open_call, seal_reply, sign_status
from cloister.wire.cbor import Fields
from cloister.wire.checkpoint import Checkpoint
from cloister.wire.provisioning import open_session_call, parse_session_call, seal_session_reply
from cloister.wire.statements import Approve, Statement, peek_query, peek_statement, verify_query

NONCE_LENGTH: Final = 32
# What a statement meets that is in the log: its number, or for those about the identity what they did to it.
_REPEATED: Final = frozenset({"statement-replayed", "identity-known", "identity-disabled", "signature-invalid"})


def call_refused() -> InvalidInput:
    """The one answer to everything that fails before it has authenticated (S10)."""
    return InvalidInput("call-refused", "the call was not accepted", hint="Attest the KeyService again, and retry.")


@final
class KeyService:
    """Everything the KeyService answers. What it raises goes out in the clear; what it returns is sealed or public."""

    def __init__(
        self,
        ledger: Ledger,
        epochs: Epochs,
        releases: Releases,
        *,
        root: Root,
        settings: Settings,
        configuration: Configuration,
        events: EventLog,
        telemetry: Telemetry,
        limiter: Limiter,
        anchor: Anchor | None = None,
        bundles: Bundles | None = None,
        donor: Donor | None = None,
        acceptance: Acceptance | None = None,
        custody: Custody | None = None,
    ) -> None:
        self._ledger = ledger
        self._bundles = bundles
        self._donor = donor
        self._acceptance = acceptance
        self._custody = custody
        self._anchor: Anchor = anchor or Unanchored()
        self._unacknowledged = Unacknowledged()
        self._replicated = settings.replicas > 0
        self._epochs = epochs
        self._releases = releases
        self._root = root
        self._events = events
        self._telemetry = telemetry
        self._limiter = limiter
        self._handing_over = Verifications(HANDOVERS_AT_ONCE)
        self._nonces = QueryNonces()
        self._queries = Queries(
            ledger,
            releases.denials,
            keyservice=root.id,
            log_key=root.log_key,
            configuration=configuration.encoded,
            service_key_epoch_s=settings.service_key_epoch_s,
            entry=limiter.entry,
            auditors=settings.auditors,
        )

    # --- in the clear ---

    def description(self) -> bytes:
        """What the service says of itself, with this epoch's evidence (clause 5.1)."""
        return self._epochs.current().encoded

    def status(self, nonce: bytes) -> bytes:
        """The signed answer to 32 bytes: this epoch, the log's head (clause 5.3).

        :raises InvalidInput: ``call-refused``.
        """
        if len(nonce) != NONCE_LENGTH:
            raise call_refused()
        epoch = self._epochs.current().description.epoch
        return sign_status(self._root.log_key, epoch=epoch, nonce=nonce, head=self._ledger.shown_head())

    def bundle(self) -> bytes:
        """The trust bundle that the description names, as it was signed (clause 13.26.2).

        :raises InvalidInput: ``not-found``: there is none.
        """
        if self._bundles is None:
            raise InvalidInput("not-found", "this KeyService is configured without a trust bundle")
        return self._bundles.file(self._epochs.current().description.bundle_digest)

    def challenge(self) -> bytes:
        """A fresh challenge for a runtime (clause 7.1)."""
        return self._releases.challenges.issue(self._ledger.now())

    def consistency(self, data: bytes) -> bytes:
        """``{first, second}`` to ``{proof}``: the later log continues the earlier one (clause 13.3).

        :raises InvalidInput: ``call-refused``.
        """
        try:
            fields = Fields(cbor.decode(data, limit=64, what="the request"), "the request")
            first, second = fields.integer("first"), fields.integer("second")
            fields.done()
            return cbor.encode({"proof": list(self._ledger.consistency(first, second))})
        except CloisterError as error:
            raise call_refused() from error

    def checkpoint(self) -> bytes:
        """The head with its co-signatures, and as the log key signs it: an export's first record (13.13)."""
        head, root = self._ledger.shown_head(), self._root
        note = Checkpoint(root.id, head.size, head.root).sign(root.log_key)
        return cbor.encode(ExportHeader(root.id, root.log_keys, head, note).fields())

    def leaves(self, data: bytes) -> bytes:
        """``{first, count}`` to ``{leaves}``: salted commitments, which tell nothing but their number (13.3).

        :raises InvalidInput: ``call-refused``.
        """
        try:
            fields = Fields(cbor.decode(data, limit=64, what="the request"), "the request")
            first, count = fields.integer("first"), fields.integer("count", low=1, high=MAX_LEAVES)
            fields.done()
            return cbor.encode({"leaves": self._ledger.leaves(first, count)})
        except CloisterError as error:
            raise call_refused() from error

    # --- sealed ---

    def call(self, data: bytes) -> bytes:
        """One sealed call; results and errors alike are in the sealed reply (clauses 5.4 to 5.6).

        :raises InvalidInput: ``call-refused``. :raises Unavailable: ``call-epoch-gone``.
        """
        try:
            call = open_call(data, keyservice=self._root.id, keys_by_epoch=self._epochs.keys())
        except Unavailable:
            self._telemetry.refused("call-epoch-gone")
            raise
        except CloisterError as error:
            self._telemetry.refused("call-refused")
            raise call_refused() from error
        result: dict[str, object] | CloisterError
        with self._telemetry.timed(call.kind) as outcome:
            try:
                result = self._answer(call)
            except CloisterError as error:
                outcome.of(error)
                result = error
                self._report(error)
        return seal_reply(call.reply_secret, call.digest, result)

    def session(self, data: bytes) -> bytes:
        """One call of a session (clause 7.4).

        :raises InvalidInput: ``call-refused``: also when the session is over, or the number was used before.
        """
        try:
            call = parse_session_call(data)
            opened = self._releases.sessions.get(call.session, self._ledger.now())
            if opened is None:
                raise Refused("session-unknown", "there is no such session")
            body = open_session_call(call, opened.session)
            if not self._releases.sessions.accept(opened, call.sequence):
                raise Refused("session-replayed", "this call of the session was answered before")
        except CloisterError as error:
            self._telemetry.refused("call-refused")
            raise call_refused() from error
        result: dict[str, object] | CloisterError
        with self._telemetry.timed("release") as outcome:
            try:
                result = self._releases.release(opened, body)
            except CloisterError as error:
                outcome.of(error)
                result = error
                self._report(error)
        return seal_session_reply(opened.session, call, result)

    # --- for replicas and successors (clauses 13.15, 13.26) ---

    def handover_challenge(self) -> bytes:
        """A fresh challenge for one that joins.

        :raises Refused: ``replicas-none``.
        """
        return self._giver().challenges.issue(self._ledger.now())

    def hand_over(self, data: bytes) -> bytes:
        """One sealed call of one that joins; the root secret or the error is in the sealed reply.

        :raises InvalidInput: ``call-refused``. :raises Unavailable: ``call-epoch-gone``.
        :raises Refused: ``replicas-none``.
        """
        donor = self._giver()
        try:
            call = open_call(data, keyservice=self._root.id, keys_by_epoch=self._epochs.keys())
            if call.kind != HANDOVER or call.keys:
                raise InvalidInput("call-unknown", "only hand-overs are asked for here")
        except Unavailable:
            self._telemetry.refused("call-epoch-gone")
            raise
        except CloisterError as error:
            self._telemetry.refused("call-refused")
            raise call_refused() from error
        result: dict[str, object] | CloisterError
        with self._telemetry.timed(HANDOVER) as outcome:
            try:
                with self._handing_over.one():
                    result, claims = donor.hand_over(call.body)
                self._events.event("handed-over", tee=claims.tee.value)
            except CloisterError as error:
                outcome.of(error)
                result = error
                self._events.event("hand-over-refused", level="warning", code=error.code, family=error.family)
        return seal_reply(call.reply_secret, call.digest, result)

    def _giver(self) -> Donor:
        if self._donor is None:
            raise Refused(
                "replicas-none",
                "this KeyService is configured without a bundle_root, and hands its secret to nobody",
                hint="A trust bundle says who may have it: `bundle_root` in its configuration; it is measured.",
            )
        return self._donor

    def _report(self, error: CloisterError) -> None:
        """Tell the operator of a fault of ours or of the disk, by type: the text may hold what a caller sent."""
        if error.code in ("keyservice-internal", "store-unavailable"):
            cause = type(error.__cause__).__name__ if error.__cause__ else ""
            self._events.event("internal-error", level="error", code=error.code, error=cause)

    def _answer(self, call: Call) -> dict[str, object]:
        if call.kind != STATEMENT and call.keys:
            raise InvalidInput("keys-mismatch", "keys travel beside statements only")
        match call.kind:
            case k if k == STATEMENT:
                return self._statement(call)
            case k if k == QUERY:
                return self._query(call.body)
            case k if k == ATTEST:
                return self._releases.attest(call.body)
            case _:
                raise InvalidInput("call-unknown", "calls of this kind are unknown to this version")

    def _statement(self, call: Call) -> dict[str, object]:
        """Apply one statement; the acknowledgement is made after it is durable (clause 6.2)."""
        unverified = peek_statement(call.body)
        written = self._unacknowledged.find(call.body)  # said before, to the byte: verified, written, not acknowledged
        if written is None or not self._ledger.has(written):
            written = self._write(call, unverified)
        try:
            done = self._ledger.confirm(written)
        except Unavailable:
            self._unacknowledged.keep(call.body, written)
            raise
        receipt = Receipt(self._root.id, done.index, done.entry.leaf(), done.head, done.inclusion)
        return {
            "sequence": unverified.sequence,
            "entry": done.index,
            "time": done.entry.time,
            "salt": done.entry.salt,
            "head": done.head.fields(),
            "inclusion": list(done.inclusion),
            "pending": self._waits_until(done.index),
            "receipt": receipt.sign(self._root.log_key),
        }

    def _waits_until(self, index: int) -> int:
        """Until when the statement in this entry waited for a second person from the start; 0: it did not (6.8)."""
        with self._ledger.read() as (state, _):
            item = state.proposed.get(index)
        return 0 if item is None else item.until

    def _write(self, call: Call, statement: Statement) -> Written:
        try:
            written = self._apply(call, statement.issuer)
        except (Refused, Tampered) as error:
            found = self._repeated(statement, call.body) if error.code in _REPEATED else None
            if found is None:
                raise
            return found
        return written

    def _apply(self, call: Call, issuer: bytes) -> Written:
        with self._ledger.read() as (state, _):
            identity = state.identities.get(issuer)
        verified = authenticate(call.body, identity)
        recovering = identity is not None and verified.signed_by == identity.recovery_key

        def propose(state: State, vault: Vault, now: float) -> Proposal:
            check(state, verified, call.keys, now)
            _require_key(state, vault, verified.statement)
            # After everything that a replay fails at: nobody else spends what the issuer may say.
            self._limiter.statement(state, verified.statement, now, by_recovery_key=recovering)
            return Proposal(log.STATEMENT, call.body, call.keys[0] if call.keys else None)

        written = self._ledger.write(propose)
        if written is None:
            msg = "a statement is always an entry"
            raise AssertionError(msg)
        return written

    def _repeated(self, unverified: Statement, statement: bytes) -> Written | None:
        """Its entry, if a replica wrote this very statement, and while it lives: perhaps nobody acknowledged it."""
        if not self._replicated:
            return None
        try:
            unverified.check_time(self._ledger.now())
        except CloisterError:
            return None
        return self._ledger.find_statement(unverified.issuer, statement)

    def _query(self, body: bytes) -> dict[str, object]:
        issuer = peek_query(body).issuer
        with self._ledger.read() as (state, now):
            identity = state.identities.get(issuer)
        if identity is None:
            raise Refused("identity-unknown", "this identity is not registered here", hint="Register it first.")
        query = verify_query(body, identity.public_key)
        if query.keyservice != self._root.id:
            raise Refused("query-other-keyservice", "the query is for another KeyService")
        query.check_time(now)
        if identity.disabled:
            raise Refused("identity-disabled", "an identity that was disabled asks nothing more")
        self._nonces.use(issuer, query.nonce, float(query.issued_at + query.lifetime), now)
        self._limiter.query(issuer)
        result = self._queries.answer(issuer, query.kind, query.about)
        if self._anchor.protects:
            age = self._anchor.state().age_s
            result["confirmed"] = -1 if age is None else int(age)
        return result

    # --- upkeep ---

    def maintain(self) -> None:
        """What time brings: a newer bundle, a new epoch, secrets to destroy, sessions that are over. Every few seconds.

        :raises Unavailable: evidence or store are away; the rest was done, and the next call tries again.
        """
        self._anchor.tick()
        self._releases.sessions.sweep(self._ledger.now())
        try:
            if self._bundles is not None and not self._ledger.following:
                self._bundles.record()
        finally:
            self._renew()

    def _renew(self) -> None:
        try:
            if self._epochs.turn():
                self._events.event("epoch", epoch=self._epochs.current().description.epoch.hex())
        finally:
            if self._acceptance is not None:
                self._acceptance.look()
            self._ledger.sweep()
        if self._custody is not None:
            self._custody.upkeep()

    def healthy(self) -> bool:
        """Whether it can answer: the log is open."""
        return self._ledger.open

    def close(self) -> None:
        """Refuse what comes; close the store."""
        self._ledger.close()


def _require_key(state: State, vault: Vault, statement: Statement) -> None:
    """Of an approval: the key that waits beside the statement is still there, whatever the clock did.

    :raises Refused: ``key-destroyed``.
    """
    if not isinstance(statement.body, Approve):
        return
    item = state.proposed.get(statement.body.entry)
    if item is not None and item.keyed and not vault.holds(item.entry):
        raise Refused("key-destroyed", "the key was destroyed, because its time was over", hint="Say it again.")
