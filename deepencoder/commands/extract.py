"""`deepencoder extract`: a corpus in, shards of features out.

Unusual: processes that `accelerate launch -m deepencoder extract` starts share the corpus. The first Ctrl-C or SIGTERM
ends the run after the current batch; a second one ends it at once, which costs at most one shard per process.
"""

import json
import os
import re
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from datetime import timedelta
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from ..extraction import settings
from ..extraction.limits import GIVE_UP_AFTER, MAX_PAGES_PER_DOCUMENT, PAGE_MEMORY, PAGE_TIMEOUT
from ..extraction.outputs import DTYPES, OUTPUTS
from ..processing.token_pooling import VectorOptions
from .dataclass_options import takes_options
from .errors import UserError, one_line, reported_as
from .models import PAGE_READER, Source, load_model, load_processor, name_source, pick_device, runtime_of
from .options import (
    DeviceOption,
    Dtype,
    FullDownloadOption,
    ModelOption,
    ModeOption,
    RevisionOption,
    RuntimeOption,
    TrustOption,
)
from .terminal import make_console
from .verify import verify_folder

if TYPE_CHECKING:
    import torch

__all__ = ["ExtractOptions", "extract"]

KeptDtype = Enum("KeptDtype", {name: name for name in DTYPES}, type=str)  # type: ignore[misc]
Engine = Enum("Engine", {"local": "local", "ray": "ray"}, type=str)
ShardFormat = Enum("ShardFormat", {name: name for name in settings.FORMATS}, type=str)  # type: ignore[misc]
UNITS = {"": 1, "B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30}
MAX_LINES = 20  # Failed pages that are printed; all of them are in the file.
WORLD_SIZES = ("WORLD_SIZE", "PMI_SIZE", "OMPI_COMM_WORLD_SIZE", "MV2_COMM_WORLD_SIZE")  # Those that accelerate reads.
MAX_WAIT = timedelta(days=365)  # Time that processes may wait for the slowest one at the end.


@dataclass(frozen=True)
class ExtractOptions:
    """The arguments and options of the command."""

    sources: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="SOURCE...",
            help="Images, PDFs, TIFFs, folders, globs, parquet files, WebDataset tars, folders written by "
            "Dataset.save_to_disk, and Hub ids of datasets.",
            show_default=False,
        ),
    ] = None
    output: Annotated[
        Path | None,
        typer.Option(
            "--output", "-o", metavar="DIR", help="New folder, or one whose work is continued.", show_default=False
        ),
    ] = None
    model: ModelOption = None
    mode: ModeOption = None
    outputs: Annotated[str, typer.Option(help=f"Outputs to keep, out of {','.join(OUTPUTS)}.")] = "pooled"
    dtype: Annotated[
        KeptDtype, typer.Option(help="Dtype in which features are kept; bfloat16 is stored as float32.")
    ] = KeptDtype("float16")
    model_dtype: Annotated[
        Dtype,
        typer.Option(
            help="Dtype in which the model computes; auto is the dtype of the checkpoint, or float32 on a CPU without "
            "instructions for that."
        ),
    ] = Dtype.auto
    vector_pool: Annotated[
        int, typer.Option(min=1, help="Side of a cell of multi_vector, in tokens; each cell becomes one vector.")
    ] = VectorOptions.pool
    vector_width: Annotated[int, typer.Option(min=1, help="Length of the vectors of multi_vector.")] = (
        VectorOptions.width
    )
    device: DeviceOption = None
    runtime: RuntimeOption = None
    batch_size: Annotated[
        str, typer.Option(help="Pages per batch; auto chooses by the number of pixels and the free memory.")
    ] = "auto"
    shard_size: Annotated[str, typer.Option(help="Size of the features in a shard.")] = "512MB"
    shard_minutes: Annotated[float, typer.Option(help="Minutes after which a shard is closed, whatever its size.")] = (
        30.0
    )
    workers: Annotated[
        int | None,
        typer.Option(help="Processes that decode pages. Default: half the cores, at most 8.", show_default=False),
    ] = None
    page_timeout: Annotated[float, typer.Option(help="Seconds after which decoding a page is given up.")] = (
        PAGE_TIMEOUT
    )
    page_memory: Annotated[str, typer.Option(help="Memory that decoding a page may take, on Linux.")] = (
        f"{PAGE_MEMORY >> 30}GiB"
    )
    max_pages_per_document: Annotated[
        int, typer.Option(min=1, help="Pages of one PDF or TIFF that are read; it may claim any number.")
    ] = MAX_PAGES_PER_DOCUMENT
    give_up_after: Annotated[
        int, typer.Option(min=1, help="Failed pages in a row after which the rest of a PDF or TIFF is not tried.")
    ] = GIVE_UP_AFTER
    dpi: Annotated[int, typer.Option(help="Resolution at which PDF pages are rendered, in DPI.")] = 144
    split: Annotated[str | None, typer.Option(help="Dataset split to read.")] = None
    column: Annotated[str | None, typer.Option(help="Image column of tables and datasets.")] = None
    format: Annotated[ShardFormat, typer.Option(help="File format of the features; metadata is always parquet.")] = (
        ShardFormat("parquet")
    )
    resume: Annotated[bool, typer.Option(help="Continue the work in DIR instead of refusing the folder.")] = True
    retry_failed: Annotated[
        bool, typer.Option("--retry-failed", help="Try the pages again that failed in earlier runs.")
    ] = False
    redo_damaged: Annotated[
        bool,
        typer.Option(
            "--redo-damaged",
            help="Read all shards in DIR back first, set damaged ones aside in DIR/damaged, and extract their pages "
            "again.",
        ),
    ] = False
    verify: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            help="Extract nothing: read everything back that is in DIR, and list the damaged shards.",
            show_default=False,
        ),
    ] = None
    strict: Annotated[bool, typer.Option("--strict", help="End at the first page that cannot be used.")] = False
    engine: Annotated[
        Engine, typer.Option(help="ray runs Ray Data on the cluster of RAY_ADDRESS, or on this machine.")
    ] = Engine("local")
    actors: Annotated[
        int | None,
        typer.Option(min=1, help="Copies of the model with engine ray. Default: one per GPU.", show_default=False),
    ] = None
    as_json: Annotated[bool, typer.Option("--json", help="Print the summary as JSON.")] = False
    revision: RevisionOption = None
    trust_remote_code: TrustOption = False
    full_download: FullDownloadOption = False


def _to_bytes(option: str, size: str) -> int:
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([KMG]?I?B?)", size.strip().upper())
    number = float(match[1]) * UNITS.get(match[2], 0) if match else 0
    if number < 1:
        raise UserError(f"{option} must be a size such as 512MB, got {size!r}.")
    return int(number)


def _to_batch_size(value: str) -> int | str:
    if value != "auto" and not (value.isdecimal() and int(value)):
        raise UserError(f"--batch-size must be auto or a positive number, got {value!r}.")
    return value if value == "auto" else int(value)


def _make_run_options(options: ExtractOptions) -> settings.RunOptions:
    batch_size, shard_size = _to_batch_size(options.batch_size), _to_bytes("--shard-size", options.shard_size)
    workers = max(1, min(8, (os.cpu_count() or 1) // 2)) if options.workers is None else options.workers
    if workers < 0 or options.dpi < 1 or not (options.shard_minutes > 0 and options.page_timeout > 0):
        raise UserError("--workers must not be negative, --dpi, --shard-minutes and --page-timeout must be positive.")
    return settings.RunOptions(
        batch_size=batch_size,
        workers=workers,
        page_timeout=options.page_timeout,
        page_memory=_to_bytes("--page-memory", options.page_memory),
        max_pages_per_document=options.max_pages_per_document,
        give_up_after=options.give_up_after,
        shard_size=shard_size,
        shard_seconds=60 * options.shard_minutes,
        resume=options.resume,
        retry_failed=options.retry_failed,
        redo_damaged=options.redo_damaged,
        strict=options.strict,
        count=make_console(stderr=True).is_terminal,
    )


def _identify(source: Source) -> tuple[str, Source]:
    """Return the identity of the model's weights, and the source of the very weights that have it."""
    from ..extraction.models import identify_model, revision_of

    with reported_as(f"--model {source.model!r} cannot be loaded", OSError, ValueError):
        identity = identify_model(source.model, source.revision)
    return identity, replace(source, revision=revision_of(identity) or source.revision)


def _make_settings(options: ExtractOptions, processor: Any, commit: str, runtime: str) -> settings.ExtractionSettings:
    try:
        return settings.ExtractionSettings(
            sources=tuple(options.sources or ()),
            model=options.model or PAGE_READER,
            commit=commit,
            mode=options.mode.value if options.mode is not None else processor.mode or "custom",
            outputs=tuple(name.strip() for name in options.outputs.split(",")),
            dtype=options.dtype.value,
            dpi=options.dpi,
            split=options.split,
            column=options.column,
            format=options.format.value,
            model_dtype=options.model_dtype.value,
            vector_pool=options.vector_pool,
            vector_width=options.vector_width,
            runtime=runtime,
        )
    except ValueError as error:
        raise UserError(f"--{one_line(error)}") from error


class _LoadModel:
    """Loads the model where it is called: in this process, or in an actor on another machine."""

    def __init__(self, source: Source, options: ExtractOptions, device: str | None, processor: Any) -> None:
        self.source, self.device, self.processor = source, device, processor
        self.dtype, self.runtime = options.model_dtype, options.runtime

    def __call__(self) -> tuple[Any, Any]:
        return load_model(self.source, self.dtype, pick_device(self.device), self.runtime), self.processor


@contextmanager
def _stopped_by_signals() -> Iterator[Callable[[], int]]:
    """Yield a function that returns the first signal that asked to end, or 0. A second signal ends at once."""
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

    def update(self, progress: settings.Progress) -> None:
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
            if self.failed <= MAX_LINES:
                self.console.print(f"Failed: {progress.error}", style="yellow", soft_wrap=True)
            elif self.failed == MAX_LINES + 1:
                self.console.print("More pages failed; see failures.jsonl.", style="yellow")


@contextmanager
def _reported_errors(output: Path) -> Iterator[None]:
    """Turn the errors of an extraction into one line each."""
    try:
        yield
    except OSError as error:
        raise UserError(f"{one_line(error).removesuffix('.')}. Finished shards in {output} are kept.") from error
    except (ImportError, ValueError, RuntimeError) as error:
        raise UserError(one_line(error)) from error


def _report(output: Path, summary: settings.ExtractionSummary, as_json: bool, interrupted: bool = False) -> None:
    from ..extraction.ledger import FAILURES

    console = make_console()
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
        f"{summary.newly_failed:,} failed; in total {summary.pages:,} pages in {summary.shards:,} files, "
        f"{summary.bytes / 1e6:,.1f} MB",
        soft_wrap=True,
    )
    if summary.failed:
        console.print(f"Failed pages and the reasons: {output / FAILURES}", soft_wrap=True)
    if interrupted:
        console.print("Interrupted. The same command continues from here.")


def _exit_if_nothing_is_written(summary: settings.ExtractionSummary) -> None:
    """End with exit code 1 if there were pages, but there are no features of any."""
    if summary.failed and not summary.pages:
        raise typer.Exit(1)


def _join_processes(device: str | None) -> "tuple[torch.device, settings.ProcessGroup]":
    """Return the device of this process, and the processes that a launcher started together with it."""
    if all(os.environ.get(name, "1") == "1" for name in WORLD_SIZES):
        return pick_device(device), settings.ProcessGroup()
    from accelerate import PartialState
    from accelerate.utils import gather_object

    state = PartialState(cpu=device == "cpu", timeout=MAX_WAIT)
    chosen = state.device if device is None else pick_device(device)
    processes = settings.ProcessGroup(
        state.process_index, state.num_processes, gather=lambda value: gather_object([value])
    )
    return chosen, processes


def _leave_processes(processes: settings.ProcessGroup) -> None:
    if processes.world_size > 1:
        import torch

        torch.distributed.destroy_process_group()


@takes_options(ExtractOptions)
def extract(options: ExtractOptions) -> None:
    """Extract the features of a whole corpus into parquet shards, which datasets and pyarrow open as they are.

    The same command continues where an earlier one ended, however it ended. Pages that cannot be used are listed in
    DIR/failures.jsonl. For several GPUs or machines: accelerate launch -m deepencoder extract ...
    """
    if options.verify is not None:
        if options.sources or options.output is not None:
            raise UserError("--verify takes neither sources nor --output.")
        verify_folder(options.verify, options.as_json)
        return
    if not options.sources or options.output is None:
        raise UserError(f"{'--output' if options.sources else 'SOURCE...'} is missing: what to extract, and where to.")
    run_options = _make_run_options(options)
    device, processes = _join_processes(options.device)
    source = name_source(
        options.model,
        options.trust_remote_code,
        options.revision,
        options.full_download,
        notice=processes.rank == 0,
    )
    commit, source = _identify(source)
    processor = load_processor(source)
    chosen = _make_settings(options, processor, commit, runtime_of(source, options.runtime))
    if options.engine.value == "ray":
        load = _LoadModel(source, options, options.device, processor)
        _extract_with_ray(options, options.output, chosen, load, run_options)
    else:
        load = _LoadModel(source, options, str(device), processor)
        _extract_here(options, options.output, chosen, load, run_options, processes)


def _extract_with_ray(
    options: ExtractOptions,
    output: Path,
    chosen: settings.ExtractionSettings,
    load: _LoadModel,
    run_options: settings.RunOptions,
) -> None:
    from ..extraction.ray_engine import extract_with_ray

    with _reported_errors(output):
        summary = extract_with_ray(chosen, output, load, load.processor, run_options, actors=options.actors)
    _report(output, summary, options.as_json)
    _exit_if_nothing_is_written(summary)


def _extract_here(
    options: ExtractOptions,
    output: Path,
    chosen: settings.ExtractionSettings,
    load: _LoadModel,
    run_options: settings.RunOptions,
    processes: settings.ProcessGroup,
) -> None:
    from ..extraction.local_engine import extract_features

    bar = _Bar(make_console(stderr=True), shown=processes.rank == 0)
    with _stopped_by_signals() as stopped, bar.bar:
        with _reported_errors(output):
            summary = extract_features(
                chosen,
                output,
                load,
                run_options,
                processes,
                stop=lambda: bool(stopped()),
                on_progress=bar.update,
            )
        received = stopped()
    if processes.rank == 0:
        _report(output, summary, options.as_json, bool(received))
    _leave_processes(processes)
    if received:
        raise typer.Exit(128 + received)
    _exit_if_nothing_is_written(summary)
