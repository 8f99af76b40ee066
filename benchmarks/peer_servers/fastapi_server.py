"""FastAPI on uvicorn: the server that people write by hand. The engine runs in Starlette's thread pool."""

import uvicorn
from engine import PORT, infer
from fastapi import FastAPI, Request, Response
from starlette.concurrency import run_in_threadpool

app = FastAPI()


@app.get("/ready")
def ready() -> str:
    """For the benchmark."""
    return "yes"


@app.post("/infer")
async def serve(request: Request) -> Response:
    """Bytes in, bytes out."""
    return Response(await run_in_threadpool(infer, await request.body()), media_type="application/octet-stream")


uvicorn.run(app, host="127.0.0.1", port=PORT, log_level="error", access_log=False)
