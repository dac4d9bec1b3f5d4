"""`deepencoder extract`: a corpus in, shards of features out.

Unusual: started by `accelerate launch -m deepencoder extract`, its processes share the corpus. The first Ctrl-C (or
SIGTERM) ends after the batch at hand; the second at once, and what is lost then is one shard.
"""

import json
import os
import re
import signal
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from datetime import timedelta
from enum import Enum
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from transformers.utils.hub import extract_commit_hash

from ..extraction import batches, extraction, features, shards
from ..extraction.workers import PAGE_TIMEOUT
from .errors import UserError, one_line
from .models import DEMO_NOTICE, Source, load_model, load_processor, pick_device
from .options import Dtype, FullDownloadOption, Mode, ModelOption, RevisionOption, TrustOption
from .terminal import make_console

__all__ = ["extract"]

KeptDtype = Enum("KeptDtype", {name: name for name in batches.DTYPES}, type=str)  # type: ignore[misc]
Engine = Enum("Engine", {"local": "local", "ray": "ray"}, type=str)
ShardFormat = Enum("ShardFormat", {name: name for name in shards.FORMATS}, type=str)  # type: ignore[misc]
FLOAT16, LOCAL, PARQUET = KeptDtype("float16"), Engine("local"), ShardFormat("parquet")
UNITS = {"": 1, "B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30}
MOST_LINES = 20  # of failed pages on the screen; all are in the file
WORLD_SIZES = ("WORLD_SIZE", "PMI_SIZE", "OMPI_COMM_WORLD_SIZE", "MV2_COMM_WORLD_SIZE")  # as accelerate reads them
A_LONG_TIME = timedelta(days=365)  # that processes may wait for the slowest at the end


def _to_bytes(size: str) -> int:
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([KMG]?I?B?)", size.strip().upper())
    number = float(match[1]) * UNITS.get(match[2], 0) if match else 0
    if number < 1:
        raise UserError(f"--shard-size must be a size such as 512MB, got {size!r}.")
    return int(number)


def _to_batch_size(value: str) -> int | str:
    if value != "auto" and not (value.isdecimal() and int(value)):
        raise UserError(f"--batch-size must be auto or a positive number, got {value!r}.")
    return value if value == "auto" else int(value)


def _identify(source: Source | None) -> str:
    """Name the very weights."""
    if source is None:
        return "demo"
    if os.path.exists(source.model):
        return features.identify_model(source.model)
    path = source.find("config.json")
    commit = extract_commit_hash(path, None)
    if commit is None:
        raise UserError(f"--model {source.model!r}: its commit is not known.")
    return commit


@contextmanager
def _stopped_by_signals() -> Iterator[Callable[[], int]]:
    """Give what returns the first signal that asked to end, or 0; a second one ends at once."""
    received: list[int] = []

    def note(number: int, _: Any) -> None:
        if received:
            raise KeyboardInterrupt
        received.append(number)

    numbers = [signal.SIGINT, signal.SIGTERM]
    before = [signal.signal(number, note) for number in numbers]
    try:
        yield lambda: received[0] if received else 0
    finally:
        for number, handler in zip(numbers, before, strict=True):
            signal.signal(number, handler)


class _LoadModel:
    """Loads the model where it is called: here, or in an actor on another machine."""

    def __init__(self, source: Source | None, dtype: Dtype, device: str | None, processor: Any) -> None:
        self.source, self.dtype, self.device, self.processor = source, dtype, device, processor

    def __call__(self) -> tuple[Any, Any]:
        return load_model(self.source, self.dtype, pick_device(self.device)), self.processor


class _Bar:
    """The progress bar of one process, and the failed pages above it."""

    def __init__(self, console: Console, shown: bool) -> None:
        self.console, self.failed = console, 0
        self.bar = Progress(
            TextColumn("Extracting"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("pages, {task.fields[rate]} pages/s, {task.fields[failed]} failed, left"),
            TimeRemainingColumn(),
            console=console,
            disable=not shown or not console.is_terminal,
            transient=True,
        )
        self.task = self.bar.add_task("", total=None, rate="-", failed=0)

    def update(self, progress: extraction.Progress) -> None:
        speed = self.bar.tasks[0].speed
        self.bar.update(
            self.task,
            completed=progress.written + progress.failed,
            total=progress.total,
            failed=progress.failed,
            rate="-" if speed is None else f"{speed:.2f}",
        )
        if progress.failed > self.failed:
            self.failed = progress.failed
            if self.failed <= MOST_LINES:
                self.console.print(f"Failed: {progress.error}", style="yellow", soft_wrap=True)
            elif self.failed == MOST_LINES + 1:
                self.console.print("More pages failed: failures.jsonl names them.", style="yellow")


def extract(
    sources: Annotated[
        list[str],
        typer.Argument(
            metavar="SOURCE...",
            help="Images, PDFs, TIFFs, folders, globs, parquet files, WebDataset tars, folders of datasets, Hub ids.",
        ),
    ],
    output: Annotated[Path, typer.Option("--output", "-o", metavar="DIR", help="A new folder, or one to go on with.")],
    model: ModelOption = None,
    mode: Annotated[Mode | None, typer.Option(help="Default: the model's own.", show_default=False)] = None,
    outputs: Annotated[str, typer.Option(help="Any of pooled,tokens,vision_tokens.")] = "pooled",
    dtype: Annotated[KeptDtype, typer.Option(help="Of the features; bfloat16 is kept as float32.")] = FLOAT16,
    model_dtype: Annotated[Dtype, typer.Option(help="In which the model computes.")] = Dtype.auto,
    device: Annotated[str | None, typer.Option(help="Default: an accelerator if there is one.")] = None,
    batch_size: Annotated[str, typer.Option(help="Pages, or auto: by pixels and memory.")] = "auto",
    shard_size: Annotated[str, typer.Option(help="Of features in a file.")] = "512MB",
    shard_minutes: Annotated[float, typer.Option(help="A shard is closed after so long, whatever its size.")] = 30.0,
    workers: Annotated[
        int | None, typer.Option(help="Processes that decode. Default: half the cores, 8 at most.", show_default=False)
    ] = None,
    page_timeout: Annotated[
        float, typer.Option(help="Seconds that decoding a page may take; then it fails.")
    ] = PAGE_TIMEOUT,
    dpi: Annotated[int, typer.Option(help="At which PDFs are rendered.")] = 144,
    split: Annotated[str | None, typer.Option(help="Of datasets.")] = None,
    column: Annotated[str | None, typer.Option(help="With images, of tables and datasets.")] = None,
    format: Annotated[ShardFormat, typer.Option(help="Of the features.")] = PARQUET,
    resume: Annotated[bool, typer.Option(help="Go on with the work in DIR.")] = True,
    retry_failed: Annotated[bool, typer.Option("--retry-failed", help="Try pages again that failed before.")] = False,
    strict: Annotated[bool, typer.Option("--strict", help="End at the first page that cannot be used.")] = False,
    engine: Annotated[Engine, typer.Option(help="ray: Ray Data, on the cluster of RAY_ADDRESS or here.")] = LOCAL,
    actors: Annotated[
        int | None, typer.Option(min=1, help="With ray: copies of the model. Default: one a GPU.", show_default=False)
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the summary as JSON.")] = False,
    revision: RevisionOption = None,
    trust_remote_code: TrustOption = False,
    full_download: FullDownloadOption = False,
) -> None:
    """Extract features of a whole corpus into parquet shards, which datasets and pyarrow open as they are.

    The same command goes on where an earlier one ended, however it ended. Pages that cannot be used are in
    DIR/failures.jsonl. For several GPUs or machines: accelerate launch -m deepencoder extract ...
    """
    console, errors = make_console(), make_console(stderr=True)
    chosen_batch_size, shard_bytes = _to_batch_size(batch_size), _to_bytes(shard_size)
    if workers is None:
        workers = max(1, min(8, (os.cpu_count() or 1) // 2))
    if workers < 0 or dpi < 1 or not (shard_minutes > 0 and page_timeout > 0):
        raise UserError("--workers must not be negative, --dpi, --shard-minutes and --page-timeout must be positive.")
    target_device, rank, world_size, gather = _join_processes(device)
    if model is None and rank == 0:
        errors.print(DEMO_NOTICE, style="yellow", soft_wrap=True)
    source = None if model is None else Source(model, trust_remote_code, revision, full_download)
    processor = load_processor(source)
    try:
        settings = extraction.ExtractionSettings(
            sources=tuple(sources),
            model=model or "demo",
            commit=_identify(source),
            mode=mode.value if mode is not None else processor.mode or "custom",
            outputs=tuple(name.strip() for name in outputs.split(",")),
            dtype=dtype.value,
            dpi=dpi,
            split=split,
            column=column,
            format=format.value,
            model_dtype=model_dtype.value,
        )
    except ValueError as error:
        raise UserError(f"--{one_line(error)}") from error

    if engine is not LOCAL:
        summary = _extract_with_ray(
            settings,
            output,
            _LoadModel(source, model_dtype, device, processor),
            actors=actors,
            batch_size=chosen_batch_size,
            page_timeout=page_timeout,
            shard_size=shard_bytes,
            resume=resume,
            retry_failed=retry_failed,
            strict=strict,
        )
        _report(console, output, summary, as_json, interrupted=False)
        return

    bar = _Bar(errors, rank == 0)
    with _stopped_by_signals() as stopped, bar.bar:
        try:
            summary = extraction.extract_features(
                settings,
                output,
                _LoadModel(source, model_dtype, str(target_device), processor),
                batch_size=chosen_batch_size,
                workers=workers,
                page_timeout=page_timeout,
                shard_size=shard_bytes,
                shard_seconds=60 * shard_minutes,
                resume=resume,
                retry_failed=retry_failed,
                strict=strict,
                count=errors.is_terminal,
                rank=rank,
                world_size=world_size,
                gather=gather,
                stop=lambda: bool(stopped()),
                on_progress=bar.update,
            )
        except OSError as error:
            raise UserError(f"{one_line(error).removesuffix('.')}. Finished shards in {output} are kept.") from error
        except (ImportError, ValueError, RuntimeError) as error:
            raise UserError(one_line(error)) from error
        received = stopped()
    if rank == 0:
        _report(console, output, summary, as_json, bool(received))
    _leave_processes(world_size)
    if received:
        raise typer.Exit(128 + received)


def _extract_with_ray(
    settings: extraction.ExtractionSettings, output: Path, load: _LoadModel, **options: Any
) -> extraction.ExtractionSummary:
    from ..extraction.ray_engine import extract_with_ray

    try:
        return extract_with_ray(settings, output, load, load.processor, **options)
    except OSError as error:
        raise UserError(f"{one_line(error).removesuffix('.')}. Finished shards in {output} are kept.") from error
    except (ImportError, ValueError, RuntimeError) as error:
        raise UserError(one_line(error)) from error


def _report(
    console: Console, output: Path, summary: extraction.ExtractionSummary, as_json: bool, interrupted: bool
) -> None:
    if as_json:
        console.print(json.dumps({"output": str(output), **asdict(summary)}), soft_wrap=True)
        return
    if summary.done and not summary.written and not summary.newly_failed:
        text = f"Nothing to do: {output} holds all {summary.pages:,} pages"
        console.print(f"{text}, and {summary.failed:,} failed." if summary.failed else f"{text}.", soft_wrap=True)
        return
    rate = summary.written / summary.seconds if summary.seconds else 0
    console.print(
        f"{output}: {summary.written:,} pages in {summary.seconds:.1f} s ({rate:.2f} pages/s), "
        f"{summary.newly_failed:,} failed; in all {summary.pages:,} pages in {summary.shards:,} files, "
        f"{summary.bytes / 1e6:,.1f} MB",
        soft_wrap=True,
    )
    if summary.failed:
        console.print(f"Failed pages and why: {output / shards.FAILURES}", soft_wrap=True)
    if interrupted:
        console.print("Interrupted: the same command goes on from here.")


def _join_processes(device: str | None) -> tuple[torch.device, int, int, Callable[[Any], Sequence[Any]] | None]:
    """Return this process' device, rank, how many there are, and how to hear from all of them."""
    if all(os.environ.get(name, "1") == "1" for name in WORLD_SIZES):
        return pick_device(device), 0, 1, None
    from accelerate import PartialState
    from accelerate.utils import gather_object

    state = PartialState(cpu=device == "cpu", timeout=A_LONG_TIME)
    chosen = state.device if device is None else pick_device(device)
    return chosen, state.process_index, state.num_processes, lambda value: gather_object([value])


def _leave_processes(world_size: int) -> None:
    if world_size > 1:
        torch.distributed.destroy_process_group()
