"""MLServer, no parallel workers, raw bytes through a custom handler (its OIP route has no binary tensors over REST)."""

import asyncio

from engine import PORT, infer
from fastapi import Request, Response
from mlserver import MLModel, MLServer
from mlserver.handlers import custom_handler
from mlserver.settings import ModelSettings, Settings


class Vision(MLModel):
    """Bytes in, bytes out."""

    async def load(self) -> bool:
        """The engine is loaded by the import."""
        return True

    @custom_handler(rest_path="/infer")
    async def serve(self, request: Request) -> Response:
        """One inference, off the event loop."""
        body = await request.body()
        output = await asyncio.get_running_loop().run_in_executor(None, infer, body)
        return Response(output, media_type="application/octet-stream")


async def main() -> None:
    """Start with one model."""
    settings = Settings(
        host="127.0.0.1", http_port=PORT, grpc_port=PORT + 1, metrics_port=PORT + 2, parallel_workers=0, debug=False
    )
    server = MLServer(settings)
    await server.start([ModelSettings(name="vision", implementation=Vision)])


asyncio.run(main())
