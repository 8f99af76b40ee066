"""Print how evidence names this code and this configuration, for the policy and the successors of a trust bundle.

Makes nothing, and needs no KeyService: on the machine, or in the TEE, where the next build will run.
"""

from __future__ import annotations

import argparse
from typing import Final

from cloister.cli.keyservice import options
from cloister.cli.output import Output

SUMMARY: Final = "say what a trust bundle must name of this build"


def configure(parser: argparse.ArgumentParser) -> None:
    """Options."""
    options.add_tee(parser)


def run(args: argparse.Namespace, out: Output) -> int:
    """Do it."""
    from cloister.adapters.tee.measurement import own_code

    place = options.open_place(args)
    code, configuration = own_code(place.tee.attester).hex(), place.settings.measured().digest.hex()
    out.result(
        {
            "tee": place.tee.attester.tee.value,
            "measurement": place.tee.measurement.hex(),
            "configuration": configuration,
            "successor": f"{code}:{configuration}",
        }
    )
    return 0
