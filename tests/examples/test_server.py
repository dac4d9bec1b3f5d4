"""The example server answers concurrent requests with the model's numbers, and encodes them in batches."""

import asyncio
from collections.abc import Awaitable, Callable
from io import BytesIO
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import load

from deepencoder import DeepEncoder, DeepEncoderImageProcessor

from .programs import load_example

pytest.importorskip("fastapi")
httpx = pytest.importorskip("httpx")
server = load_example("server")
SIDE = 128


@pytest.fixture
def processor() -> DeepEncoderImageProcessor:
    """Makes pages of few tokens, with tiles where they are large enough."""
    return DeepEncoderImageProcessor(size={"height": SIDE, "width": SIDE}, tile_size=64, crop_to_patches=True)


def make_page(width: int, height: int, **options: Any) -> bytes:
    pixels = torch.randint(0, 256, (height, width, 3), dtype=torch.uint8).numpy()
    file = BytesIO()
    Image.fromarray(pixels).save(file, "png", **options)
    return file.getvalue()


def serve(app: Any, use: Callable[[Any], Awaitable[None]]) -> None:
    """Run a client against the application, without a network."""

    async def main() -> None:
        transport = httpx.ASGITransport(app)
        async with (
            app.router.lifespan_context(app),
            httpx.AsyncClient(transport=transport, base_url="http://a") as client,
        ):
            await use(client)

    asyncio.run(main())


def test_concurrent_requests_are_encoded_in_batches(
    tiny_model: DeepEncoder, processor: DeepEncoderImageProcessor
) -> None:
    pages = [make_page(60 + 40 * index, 90) for index in range(7)]  # The first ones have no tiles.
    with torch.no_grad():
        expected = [
            tiny_model(**processor(Image.open(BytesIO(page)), return_tensors="pt")).vision_tokens[0] for page in pages
        ]
    batches: list[int] = []
    tiny_model.register_forward_pre_hook(lambda module, arguments: batches.append(len(arguments[0])))

    async def use(client: Any) -> None:
        answers = await asyncio.gather(*(client.post("/encode", content=page) for page in pages))
        for answer, tokens in zip(answers, expected, strict=True):
            assert answer.status_code == 200, answer.text
            torch.testing.assert_close(load(answer.content)["vision_tokens"], tokens, atol=1e-5, rtol=0)

    serve(server.make_app(tiny_model, processor, server.Limits(batch=4, batch_seconds=0.5)), use)
    assert len(set(map(len, expected))) > 2  # They have different numbers of tiles.
    assert sum(batches) == len(pages) and 1 < max(batches) <= 4, batches


def test_outputs_and_formats(tiny_model: DeepEncoder, processor: DeepEncoderImageProcessor) -> None:
    page = make_page(60, 60)
    with torch.no_grad():
        expected = tiny_model(**processor(Image.open(BytesIO(page)), return_tensors="pt"))

    async def use(client: Any) -> None:
        answer = await client.post("/encode?output=pooled&format=json", content=page)
        torch.testing.assert_close(torch.tensor(answer.json()["pooled"]), expected.pooler_output[0], atol=1e-5, rtol=0)
        answer = await client.post("/encode?output=pooled", content=page)
        assert set(load(answer.content)) == {"pooled"}
        assert (await client.post("/encode?output=depth", content=page)).status_code == 422

    serve(server.make_app(tiny_model, processor), use)


def test_the_orientation_of_a_photograph_is_applied(tiny_model: DeepEncoder, processor: Any) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by 90 degrees
    pages = [make_page(200, 64, exif=exif), make_page(64, 200)]

    async def use(client: Any) -> None:
        lengths = [len(load((await client.post("/encode", content=page)).content)["vision_tokens"]) for page in pages]
        assert lengths == [processor.get_number_of_image_tokens(200, 64)] * 2

    assert processor.get_number_of_image_tokens(200, 64) != processor.get_number_of_image_tokens(64, 200)
    serve(server.make_app(tiny_model, processor), use)


def test_bad_pages_fail_alone_and_say_why(
    tiny_model: DeepEncoder, processor: DeepEncoderImageProcessor, monkeypatch: pytest.MonkeyPatch
) -> None:
    good = make_page(60, 60)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10_000)
    bad = {
        b"": (422, "it is empty"),
        b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n": (422, "not an image that Pillow can read"),
        good[: len(good) // 2]: (422, "The page cannot be used"),
        make_page(300, 100): (422, "too large to decode safely"),
        good * 100: (413, "more than 100000 bytes"),
    }

    async def use(client: Any) -> None:
        answers = await asyncio.gather(*(client.post("/encode", content=page) for page in [good, *bad, good]))
        assert answers[0].status_code == answers[-1].status_code == 200
        for answer, (code, words) in zip(answers[1:-1], bad.values(), strict=True):
            assert answer.status_code == code and words in answer.json()["detail"], answer.text

    serve(server.make_app(tiny_model, processor, server.Limits(upload_bytes=100_000)), use)


def test_a_server_that_is_full_says_so(tiny_model: DeepEncoder, processor: DeepEncoderImageProcessor) -> None:
    page = make_page(60, 60)

    async def use(client: Any) -> None:
        answers = await asyncio.gather(*(client.post("/encode", content=page) for _ in range(6)))
        codes = sorted(answer.status_code for answer in answers)
        assert codes == [200, 200, 503, 503, 503, 503]
        assert all(answer.headers["retry-after"] for answer in answers if answer.status_code == 503)
        assert (await client.post("/encode", content=page)).status_code == 200  # There is room again.

    serve(server.make_app(tiny_model, processor, server.Limits(waiting=2)), use)


def test_an_upload_that_does_not_arrive_is_given_up(
    tiny_model: DeepEncoder, processor: DeepEncoderImageProcessor
) -> None:
    async def dripping() -> Any:
        for _ in range(100):
            yield b"x"
            await asyncio.sleep(0.05)

    async def use(client: Any) -> None:
        assert (await client.post("/encode", content=dripping())).status_code == 408

    serve(server.make_app(tiny_model, processor, server.Limits(upload_seconds=0.2)), use)


def test_an_error_of_the_model_does_not_end_the_server(
    tiny_model: DeepEncoder, processor: DeepEncoderImageProcessor
) -> None:
    page = make_page(60, 60)

    async def use(client: Any) -> None:
        weight = tiny_model.view_separator
        del tiny_model.view_separator
        with pytest.raises(AttributeError):  # The transport raises what a server would log.
            await client.post("/encode", content=page)
        tiny_model.view_separator = weight
        assert (await client.post("/encode", content=page)).status_code == 200

    serve(server.make_app(tiny_model, processor), use)
