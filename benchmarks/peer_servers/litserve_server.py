"""LitServe, one worker; an upload in a form, its only binary path."""

import litserve
from engine import PORT, infer
from fastapi import Request, Response


class Api(litserve.LitAPI):
    """Bytes in, bytes out."""

    def setup(self, device: str) -> None:
        """The engine is loaded by the import."""

    async def decode_request(self, request: Request) -> bytes:
        """The uploaded file, as it is."""
        return request["image"].file.read()

    async def predict(self, body: bytes) -> bytes:
        """One inference."""
        return infer(body)

    async def encode_response(self, output: bytes) -> Response:
        """The output as it is."""
        return Response(output, media_type="application/octet-stream")


if __name__ == "__main__":
    server = litserve.LitServer(Api(api_path="/infer", enable_async=True), accelerator="cpu", workers_per_device=1)
    server.run(host="127.0.0.1", port=PORT, num_api_servers=1, log_level="error", generate_client_file=False)
