"""The stage of the demonstration: a local cloud, wiretaps where its network would be, and the people."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from cloister.client.client import Client
from cloister.client.identity import create_identity
from cloister.testing.local_cloud import LocalCloud
from cloister.testing.operator import Operator
from cloister.testing.wiretap import Wiretap

LEASE_S: Final = 3  # short, so that nobody waits a minute to see a revocation bite
PEOPLE: Final = ("alice", "bob", "carol", "dave")


@dataclass(slots=True)
class Stage:
    """Everything that the acts need.

    :param keyservice_wire: between everybody and the KeyService; ``gateway_wire`` between users and the gateway.
    :param people: alice owns the models; bob uses them; carol has no grant; dave never consents.
    """

    folder: Path
    cloud: LocalCloud
    keyservice: str
    gateway: str
    keyservice_wire: Wiretap
    gateway_wire: Wiretap
    people: dict[str, Client]

    @property
    def alice(self) -> Client:
        """The owner."""
        return self.people["alice"]

    @property
    def bob(self) -> Client:
        """The user."""
        return self.people["bob"]

    @property
    def operator(self) -> Operator:
        """What the cloud sees."""
        return Operator(self.cloud.folder, self.gateway)


@contextlib.contextmanager
def raised(folder: Path) -> Iterator[Stage]:
    """Start everything in a folder; nothing is left running."""
    settings = {"lease_s": LEASE_S}
    cloud = LocalCloud(folder, packer="all-in-one", instances=1, keep_alive_s=120.0, keyservice_settings=settings)
    with ExitStack() as stack:
        stack.callback(cloud.stop)
        cloud.prepare()
        keyservice = cloud.start_keyservice()
        keyservice_wire = stack.enter_context(Wiretap.before(keyservice))
        gateway = cloud.start_gateway(keyservice_wire.address)
        gateway_wire = stack.enter_context(Wiretap.before(gateway))
        profile = cloud.write_profile(keyservice_wire.address, gateway_wire.address)
        people: dict[str, Client] = {}
        for name in PEOPLE:
            people[name] = Client(profile, create_identity(cloud.home, name))
            stack.callback(people[name].close)
            people[name].register()
        yield Stage(folder, cloud, keyservice, gateway, keyservice_wire, gateway_wire, people)
