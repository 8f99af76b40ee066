"""Makes the folder that compose.yaml takes, for a trial in which one person is operator, signer, owner and user.

    python deploy/compose/prepare.py [--folder cloister-compose] [--image IMAGE] [--gateway-image IMAGE]

What a runtime measures is taken from the image, by running it once. Run it again after the images were built anew: keys
and models stay, the trust bundle and the policy are made for the new code. (A KeyService's secrets are sealed to its
code, though: `compose down --volumes` first.)
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from cloister.base.errors import CloisterError
from cloister.testing.compose_folder import GATEWAY_PORT, KEYSERVICE_PORT, ComposeFolder, ComposeSettings
from cloister.testing.containers import Engine


def main() -> int:
    """See the module."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=Path("cloister-compose"))
    parser.add_argument("--image", default="localhost/cloister:test")
    parser.add_argument("--gateway-image", default="localhost/cloister-gateway:test")
    parser.add_argument("--instances", type=int, default=2, help="runtimes that the gateway uses at most")
    parser.add_argument("--concurrency", type=int, default=4, help="requests at once in a runtime (measured)")
    parser.add_argument("--memory-mb", type=int, default=1024, help="for models in a runtime (measured)")
    parser.add_argument("--keyservice-port", type=int, default=KEYSERVICE_PORT)
    parser.add_argument("--gateway-port", type=int, default=GATEWAY_PORT)
    args = parser.parse_args()
    try:
        engine = Engine.find(args.image)
        folder = ComposeFolder(
            args.folder,
            ComposeSettings(
                args.image,
                args.gateway_image,
                engine.measurement(args.image),
                instances=args.instances,
                concurrency=args.concurrency,
                memory_mb=args.memory_mb,
                keyservice_port=args.keyservice_port,
                gateway_port=args.gateway_port,
            ),
        )
        folder.prepare()
    except CloisterError as error:
        print(f"prepare: {error}", file=sys.stderr)
        return 1
    print(f"{folder.folder} is ready. Go on with:")
    print(f"  export CLOISTER_HOME={folder.home}")
    print(f"  docker compose --env-file {folder.folder / '.env'} --file {Path(__file__).parent / 'compose.yaml'} up -d")
    return 0


if __name__ == "__main__":
    sys.exit(main())
