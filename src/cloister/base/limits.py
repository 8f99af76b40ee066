"""Every length, count and lifetime that bounds what a stranger can make us do, in one place, with its reason."""

from __future__ import annotations

from typing import Final

KIB: Final = 1024
MIB: Final = 1024 * KIB

# --- sealed requests and responses (spec/protocol.md, section 8) ---
CHUNK_SIZE: Final = MIB  # plaintext bytes a chunk: a 600 KB tensor is one chunk, one AEAD call
MAX_HEADER: Final = 4 * KIB  # a request header is about 250 bytes; room for ids at their longest
MAX_REQUEST_BODY: Final = 64 * MIB  # unary request, plaintext; 100 images of 224x224x3 float32
MAX_RESPONSE_BODY: Final = 256 * MIB
REQUEST_FRESHNESS_S: Final = 120  # how far a request's issue time may lie from the runtime's clock (S6)

# --- calls to the KeyService (section 5) ---
MAX_CALL: Final = 256 * KIB  # evidence with collateral is the largest part, below 64 KiB
MAX_STATEMENT: Final = 64 * KIB
STATEMENT_LIFETIME_S: Final = 600  # a withheld statement dies by itself
CLOCK_SKEW_S: Final = 60  # how far ahead of ours an issuer's clock may be
CHALLENGE_LIFETIME_S: Final = 60
PRESENCE_BURST: Final = (
    4  # quotes that strangers may ask of a runtime at once; each takes the TEE milliseconds to seconds
)
PRESENCE_INTERVAL_S: Final = 5.0  # and one more after each of these
SESSION_LIFETIME_S: Final = 600  # after this a runtime attests again, with fresh evidence
LEASE_S: Final = 60  # how long a released key may be used (S5)
LEASE_REQUESTS: Final = 100_000  # and for how many requests: the host owns the clock

# --- the KeyService's log and state (section 6, 13) ---
MAX_ENTRY: Final = 80 * KIB  # a statement of MAX_STATEMENT and its frame
MAX_STATUS: Final = 4 * KIB  # a head with the co-signatures of all witnesses, and a signature
MAX_RECEIPT: Final = 8 * KIB  # 64 hashes and a signature
MAX_MODELS_PER_OWNER: Final = 10_000
MAX_VERSIONS_PER_MODEL: Final = 1_000  # a version is a new tuple of all: bounded, so that publishing stays cheap
MAX_GRANTS_PER_OWNER: Final = 100_000
MAX_CONSENTS_PER_USER: Final = 10_000
MAX_POLICIES_PER_IDENTITY: Final = 1_000
MAX_DELEGATES: Final = 16
MAX_APPROVED: Final = 8 * KIB  # a statement that waits for a second person: a few hundred bytes
MAX_WAITING: Final = 32  # statements of one identity that wait at once
APPROVAL_S: Final = 24 * 3600  # for a second person to say it too: over a night, not over a week
APPROVAL_MARGIN_S: Final = 600  # keys beside it live so much longer, for clocks of replicas differ
MAX_KEY_ROTATIONS: Final = 1_000  # keys of one identity, none of which comes back
MAX_SERVICE_KEYS: Final = 100_000  # (model, versions, policy) triples with a service key
SERVICE_KEY_EPOCH_S: Final = 24 * 3600  # bounds what one leaked service key opens
KEYSERVICE_EPOCH_S: Final = 3600  # one quote, one call key
KEYSERVICE_EPOCH_GRACE_S: Final = 300  # calls sealed to the epoch before are still opened
VERIFICATIONS_AT_ONCE: Final = 8  # of evidence, which anybody may send: half of the threads
HANDOVERS_AT_ONCE: Final = 4  # likewise, of those that join; each may wait for witnesses
MAX_SESSIONS: Final = 10_000
MAX_SESSIONS_PER_PLATFORM: Final = 1_000  # of one machine; with more its own oldest go
MAX_CHALLENGES_REDEEMED: Final = 20_000  # within CHALLENGE_LIFETIME_S; each cost its sender genuine evidence
MAX_QUERY_NONCES: Final = 400_000  # of all identities, within the queries' lifetimes: 660 a second; 50 MB
MAX_QUERY_NONCES_PER_IDENTITY: Final = 2_000
QUERY_NONCE_SHARE: Final = 256  # an identity holds 1/256 of what is free: a thousand that hoard leave 8,000
NEWCOMER_S: Final = 24 * 3600  # for so long an identity stands in line with strangers when the log grows too fast
MAX_RATE_KEYS: Final = 65_536  # buckets of one kind that are not full: 10 MB
MAX_DENIALS: Final = 10_000  # remembered reasons, newest first
QUERY_PAGE: Final = 64  # items of one page: a reply stays below MAX_CBOR_ITEMS
SESSION_WINDOW: Final = 1_024  # how far sequence numbers of one session may arrive out of order
COMMIT_BATCH: Final = 256  # entries that share one transaction
MAX_COMMIT_QUEUE: Final = 4_096  # proposals waiting; beyond it: busy
MAX_LEAVES: Final = 1_024  # leaf hashes in one answer: 32 KiB

# --- blocks and snapshots (clause 13.23) ---
BLOCK_ENTRIES: Final = 1_024  # entries a block: a record of 100 KB, which is read for one proof or one page of events
MAX_BLOCK: Final = MIB  # its record: 96 KiB of hashes, and whom each entry concerns: at most 6 parties of 34 bytes
BLOCKS_KEPT: Final = 32  # opened blocks in memory: 4 MB
SNAPSHOT_LEAST: Final = 1_024  # entries that are worth one at a shutdown: a shorter log is read in 0.1 s
SNAPSHOT_ENTRIES: Final = 16_384  # after so many another one is written: they are read in a second
SNAPSHOT_SHARE: Final = 16  # or after this part of its own rows, so that a large state is not written all the time
SNAPSHOT_PART: Final = 256 * KIB  # one record of it: the writer waits for one at a time
MAX_SNAPSHOT_PARTS: Final = 1 << 20
SCRUB_ENTRIES: Final = 16  # that are read at a time: callers wait for them
SCRUB_PAUSE: Final = 9.0  # times as long as it took: a tenth of one processor

# --- the KeyService's store in a database (clause 13.22) ---
MAX_STORE_RECORD: Final = 2 * MIB  # twice the largest that is written
MAX_STORE_REPLY: Final = 8 * MIB  # a page of records and one more, in hexadecimal
STORE_PAGE_ROWS: Final = 1_024  # records that are asked for at a time, and
STORE_STATEMENT_ROWS: Final = 4_096  # records that one statement writes: it takes a second at most
STORE_PAGE_BYTES: Final = MIB  # what they may be together; one record at least
STORE_DEADLINE_S: Final = 10.0  # for reading or writing once, a new connection included
STORE_STATEMENT_S: Final = 8.0  # the server gives a statement up before we do
STORE_RECONNECT_S: Final = 2.5  # how long a server that restarts is waited for: less than replicas wait for a leader
STORE_RETRY_S: Final = 0.1
STORE_LOCK_S: Final = 5.0  # until whoever held the namespace before is gone: a process that was killed is at once

# --- witnesses (clauses 13.7 to 13.12) ---
MAX_AUDITORS: Final = 16  # identities to which a measured configuration opens the whole log
MAX_WITNESSES: Final = 16  # what every head carries with it: 110 bytes each
MAX_CHECKPOINT: Final = 8 * KIB  # a note of three lines, a signature, and further ones that are skipped
MAX_NOTE_SIGNATURES: Final = 32
MAX_WITNESS_NAME: Final = 128
MAX_ADD_CHECKPOINT: Final = 12 * KIB  # 63 proof lines of 45 bytes, and a checkpoint
MAX_WITNESSED_LOGS: Final = 10_000  # each was added by the witness's operator
MAX_KEPT_CONFLICTS: Final = 16  # proofs of a fork that a witness keeps of one log: two are enough
WITNESS_REPEATS_PER_S: Final = (
    20  # of a head that does not grow, each log; growth needs the log key, and is not limited
)
CONFIRM_INTERVAL_S: Final = 10.0  # how often an idle KeyService has its head confirmed anew
CONFIRM_PATIENCE_S: Final = 10.0  # how long an entry waits for its confirmation
CONFIRM_RETRY_S: Final = 1.0  # after a witness failed
WITNESS_DEADLINE_S: Final = 5.0  # for one exchange with a witness
HEAD_FRESHNESS_S: Final = 120  # how old a co-signature may be for a caller: twelve intervals

# --- rotation of the KeyService's root (clause 13.27) ---
MAX_ROOT_GENERATIONS: Final = 16  # log keys of one KeyService: descriptions and exports carry all their certificates
MAX_KEY_CERTIFICATE: Final = 512  # 230 bytes with the largest numbers
MAX_LOG_KEYS: Final = MAX_ROOT_GENERATIONS * MAX_KEY_CERTIFICATE

# --- replicas of the KeyService (clauses 13.14 ff.) ---
MAX_REPLICAS: Final = 3  # with five, unconfirmed entries of three that led and died could leave no majority (ADR 12)
JOIN_PATIENCE_S: Final = 60.0  # how long one that starts asks its peers for the root secret
JOIN_RETRY_S: Final = 1.0
REPLICA_ROWS: Final = 256  # entries in one answer to a replica that follows, and
REPLICA_ROWS_BYTES: Final = MIB  # their bytes; one entry at least
MAX_ROOT: Final = 8 * KIB  # the root secret with what is kept of earlier ones
MAX_SEALED_ROOT: Final = 16 * KIB  # sealed by whatever the TEE has
MAX_REPLICA_REQUEST: Final = 8 * KIB  # a position and a head with the co-signatures of all witnesses
MAX_REPLICA_REPLY: Final = 2 * MIB  # a full answer with its frame
REPLICA_WAIT_S: Final = 1.0  # how long one that leads holds back the answer to one that has everything
REPLICA_DEADLINE_S: Final = 3.0  # for one exchange between replicas
LEADER_SILENCE_S: Final = 3.0  # without an answer of one that leads, another takes over
LEADER_JITTER_S: Final = 1.0  # and up to so much later, so that not all do at once
FOLLOWER_SILENCE_S: Final = 6.0  # without a majority of followers, one that leads steps down
LEADER_REST_S: Final = 10.0  # one that led without a majority lets others try so long
LEAD_DEFERRALS: Final = 8  # how often a replica lets one with a longer log go first
REPEATED_STATEMENTS: Final = 64  # newest entries of an identity among which a repeated statement is looked for

# --- custodians (clauses 13.24 ff.) ---
MAX_CUSTODIANS: Final = 16  # people or organisations who are called together; a share of each is 1.2 KiB of the record
MAX_CUSTODIAN_KEY: Final = 4 * KIB  # a public key in hexadecimal, or a private one in PEM form
MAX_CUSTODY_RECORD: Final = 64 * KIB  # 16 shares and the root; it is kept beside an entry, whose limit is 80 KiB
MAX_RECOVERY_OFFER: Final = 512 * KIB  # such a record, evidence and what was endorsed with it
MAX_RECOVERY_ANSWER: Final = 2 * KIB  # a share of 32 bytes, sealed

# --- backups of the KeyService (clause 13.25) ---
BACKUP_ROWS: Final = 64  # entries that are read at once, while statements wait: half a millisecond
MAX_BACKUP_ROWS: Final = 256  # entries in one record
BACKUP_ROWS_BYTES: Final = MIB  # and their bytes; one entry at least
MAX_BACKUP_RECORD: Final = 2 * MIB  # such a page with its frame
MAX_BACKUP_KEPT: Final = 64  # records beside the log: its head, the newest co-signed one, what custodians need
BACKUP_S: Final = 3600.0  # after so long a backup that is still being fetched is cut
RESTORE_BATCH: Final = 4_096  # records written in one transaction while restoring, and
RESTORE_BATCH_BYTES: Final = 8 * MIB  # their bytes; one page more at most
MAX_BACKUP_HISTORY: Final = 4 * KIB  # the note of when the last backup was made
MAX_STANDING: Final = 64 * KIB  # what an operator is told over the control socket
CONTROL_CONNECTIONS: Final = 8  # of the operator's own commands

# --- names and records ---
MAX_NAME: Final = 64  # model and policy names: [a-z0-9][a-z0-9._-]*
MAX_VERSION: Final = 32
MAX_POLICY: Final = 32 * KIB
MAX_EVIDENCE: Final = 64 * KIB  # an SGX/TDX quote is 5 KiB, a Nitro document 5 KiB
MAX_COLLATERAL: Final = 256 * KIB
MAX_SIMULATED_EVIDENCE: Final = 4 * KIB  # a token has about 400 bytes
SIMULATED_EVIDENCE_LIFETIME_S: Final = 86_400  # vendors' collateral lives for weeks; a simulated token for a day
MAX_CONFIGURATION: Final = 16 * KIB  # a measured configuration is a few hundred bytes
MAX_CONFIGURATION_ENTRIES: Final = 128
MAX_POLICY_RULES: Final = 64
MAX_POLICY_ENTRIES: Final = 256  # of one allow-list
MAX_BUNDLE: Final = 64 * KIB  # a policy, keys of witnesses and successors
MAX_BUNDLE_ENTRIES: Final = 64  # of each of its lists
COLLATERAL_TIMEOUT_S: Final = 10.0  # for each wait on a vendor's service
COLLATERAL_DEADLINE_S: Final = 30.0  # for all requests that one platform's collateral takes
COLLATERAL_QUESTIONS: Final = 4  # to vendors at a time: below the KeyService's 16 threads, which serve everybody else
COLLATERAL_REFRESH_S: Final = 86_400  # how old cached collateral gets while the service answers; it is valid for weeks
MAX_COLLATERAL_BUNDLE: Final = 16 * MIB  # an air-gapped fleet of 500 platforms
MAX_COLLATERAL_ENTRIES: Final = 1024
MAX_QUOTE_PADDING: Final = 4 * KIB  # zeros after a quote: TDX generators fill their buffer; 70 bytes were seen
MAX_QE_AUTHENTICATION: Final = KIB  # 32 bytes in every quote seen
MAX_PCK_CHAIN: Final = 16 * KIB  # three certificates of about 1 KiB, as PEM

# --- models (spec/model-format.md) ---
MAX_MANIFEST: Final = 256 * KIB
MAX_MODEL_FILES: Final = 64
MAX_MODEL_BYTES: Final = 64 * 1024 * MIB
MAX_TENSORS: Final = 64  # inputs, and outputs, of one model
MAX_RANK: Final = 8
MAX_GRAPH_BYTES: Final = 64 * MIB  # the graph without weights
MAX_GRAPH_NODES: Final = 100_000

# --- CBOR ---
MAX_CBOR_DEPTH: Final = 16
MAX_CBOR_ITEMS: Final = 4096
