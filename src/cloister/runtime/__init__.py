"""The enclave runtime: leased keys, cached models, isolation, many sealed requests at once over one copy of a model.

stages      the ten stages of a request, timed                     isolation   who may be in the room together
keys        the attested link to the KeyService                    leases      released keys, and until when
loader      encrypted files straight into an engine's memory       models      what is resident, within a budget
scheduler   slots, a bounded fair queue, deadlines                 replay      what was answered already
messages    the inner request and response                         endpoints   what the inside serves
serve       one sealed request from bytes to bytes                 streams     the same for streams
server      outer HTTP                                             app         composition root
"""
