"""A server that turns pages into vision tokens, and encodes requests that arrive together as one batch.

    pip install ".[serve]"
    python examples/server.py --model my-encoder --mode base
    curl --data-binary @page.png "http://127.0.0.1:8000/encode?output=pooled&format=json"

A page is decoded and prepared on a thread of its own, so that a bad page fails alone. One thread runs the model, on
all pages that are ready by then. Uploads, pages that wait and the size of a batch are limited; see `Limits`.
"""

import argparse
import asyncio
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, Literal

import torch
import uvicorn
from fastapi import FastAPI, HTTPException, Request, Response
from fastapi.responses import JSONResponse
from safetensors.torch import save

from deepencoder import DeepEncoder, DeepEncoderImageProcessor
from deepencoder.extraction.pages import ImagePage, load_page

Output = Literal["pooled", "vision_tokens"]
Format = Literal["safetensors", "json"]
TIMEOUT = (TimeoutError, asyncio.TimeoutError)  # Python 3.10 has two.


@dataclass(frozen=True)
class Limits:
    """What a server accepts.

    Args:
        upload_bytes: size of a request's body.
        upload_seconds: time in which it must arrive.
        waiting: requests at a time, in whatever state; further ones are told to come back later.
        decoders: pages that are decoded at a time. Pillow refuses more than 179 million pixels, or 0.5 GB.
        batch: pages that are encoded at a time.
        batch_seconds: how long a page that is ready waits for others.
    """

    upload_bytes: int = 32 * 2**20
    upload_seconds: float = 30
    waiting: int = 16
    decoders: int = 2
    batch: int = 4
    batch_seconds: float = 0.01


DEFAULTS = Limits()


@torch.inference_mode()
def encode(model: Any, pages: list[Any]) -> list[dict[str, torch.Tensor]]:
    """Encode prepared pages as one batch; return the outputs of each by name."""
    tiles = [page["pixel_values_local"] for page in pages if "pixel_values_local" in page]
    outputs = model(
        torch.cat([page["pixel_values"] for page in pages]).to(model.device),
        pixel_values_local=torch.cat(tiles).to(model.device) if tiles else None,
        patches_grid=torch.cat([page["patches_grid"] for page in pages]),
    )
    return [
        {"pooled": pooled.float().cpu(), "vision_tokens": tokens.float().cpu()}
        for pooled, tokens in zip(outputs.pooler_output, outputs.vision_tokens, strict=True)
    ]


class Batcher:
    """Collects pages from concurrent requests, and encodes them in batches on a thread of its own."""

    def __init__(self, model: Any, limits: Limits) -> None:
        self.model, self.limits = model, limits
        self.queue: asyncio.Queue[tuple[Any, asyncio.Future[Any]]] = asyncio.Queue()
        self.thread = ThreadPoolExecutor(1, "model")

    async def submit(self, page: Any) -> dict[str, torch.Tensor]:
        future = asyncio.get_running_loop().create_future()
        self.queue.put_nowait((page, future))
        return await future

    async def collect(self) -> list[tuple[Any, asyncio.Future[Any]]]:
        """Wait for a page, and shortly for others."""
        loop = asyncio.get_running_loop()
        batch = [await self.queue.get()]
        deadline = loop.time() + self.limits.batch_seconds
        while len(batch) < self.limits.batch:
            try:
                batch.append(await asyncio.wait_for(self.queue.get(), deadline - loop.time()))
            except TIMEOUT:
                break
        return batch

    async def run(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            batch = await self.collect()
            try:
                found = await loop.run_in_executor(self.thread, encode, self.model, [page for page, _ in batch])
                for (_, future), outputs in zip(batch, found, strict=True):
                    if not future.done():
                        future.set_result(outputs)
            except Exception as error:
                for _, future in batch:
                    if not future.done():
                        future.set_exception(error)


async def read_body(request: Request, limit: int) -> bytes:
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > limit:
            raise HTTPException(413, f"The page has more than {limit} bytes.")
    return bytes(body)


def prepare(processor: Any, data: bytes) -> Any:
    """Decode a page, whatever its format, and prepare it for the model."""
    return processor(load_page(ImagePage("upload", data=data)), return_tensors="pt")


def make_app(model: Any, processor: Any, limits: Limits = DEFAULTS) -> FastAPI:
    """Return the application, which encodes pages in the mode of the image processor."""
    batcher, decoders = Batcher(model, limits), ThreadPoolExecutor(limits.decoders, "decoder")
    slots = asyncio.Semaphore(limits.waiting)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        runner = asyncio.create_task(batcher.run())
        yield
        runner.cancel()

    app = FastAPI(title="DeepEncoder", lifespan=lifespan)

    @app.post("/encode")
    async def encode_page(
        request: Request, output: Output = "vision_tokens", format: Format = "safetensors"
    ) -> Response:
        """Encode one page: an image file, which is the body of the request."""
        if slots.locked():
            raise HTTPException(503, f"{limits.waiting} pages are waiting already.", {"Retry-After": "1"})
        async with slots:
            try:
                data = await asyncio.wait_for(read_body(request, limits.upload_bytes), limits.upload_seconds)
                page = await asyncio.get_running_loop().run_in_executor(decoders, prepare, processor, data)
            except TIMEOUT:
                raise HTTPException(408, f"The page took more than {limits.upload_seconds} seconds.") from None
            except ValueError as error:
                raise HTTPException(422, f"The page cannot be used: {error}") from None
            tensor = (await batcher.submit(page))[output]
        if format == "json":
            return JSONResponse({output: tensor.tolist()})
        return Response(save({output: tensor}), media_type="application/octet-stream")

    return app


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="a folder or a Hub id of a DeepEncoder")
    parser.add_argument("--mode", help="resolution mode; the default is that of the model's image processor")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=8000)
    options = parser.parse_args()
    model = DeepEncoder.from_pretrained(options.model).eval()
    processor = DeepEncoderImageProcessor.from_pretrained(options.model, mode=options.mode)
    uvicorn.run(make_app(model, processor), host=options.host, port=options.port)


if __name__ == "__main__":
    main()
