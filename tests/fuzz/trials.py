"""The rules that every case must keep, and how a case is run under them.

Unusual: the rules are watched from inside the process that runs the case. An audit hook sees programs that start,
connections that open, and any use of the canary, a folder that no input has a right to; the kernel tells the peak of
memory; and a watchdog thread ends a process that hangs, after printing where.
"""

import faulthandler
import os
import shutil
import sys
import tempfile
import traceback
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from random import Random
from typing import Any

import torch

from ..conftest import ROOT
from .materials import CANARY, Materials

__all__ = ["Area", "Failure", "RefusedError", "Trial", "TrialRunner", "ViolationError"]

MAX_MESSAGE = 3000  # characters of an error message
# Events of Python's audit hooks that no input may cause.
FORBIDDEN_EVENTS = {
    "os.exec": "started a program",
    "os.posix_spawn": "started a program",
    "os.spawn": "started a program",
    "os.system": "started a program",
    "subprocess.Popen": "started a program",
    "socket.connect": "opened a connection",
    "socket.getaddrinfo": "looked up a host",
}


class ViolationError(AssertionError):
    """A case broke a rule."""


class RefusedError(Exception):
    """The code under test refused its input with one of the documented errors, which ends most cases."""


@dataclass(frozen=True)
class Failure:
    """A case that broke a rule.

    Args:
        case: its name, `AREA/NUMBER`.
        reason: what happened, in one line.
        place: where it was raised, by which failures are grouped.
        facts: what the case consisted of.
        detail: the traceback.
    """

    case: str
    reason: str
    place: str = ""
    facts: str = ""
    detail: str = ""


def _chain(error: BaseException) -> Iterator[BaseException]:
    """Yield an error and those that led to it."""
    seen: set[int] = set()
    following: BaseException | None = error
    while following is not None and id(following) not in seen:
        seen.add(id(following))
        yield following
        following = following.__cause__ or following.__context__


class _Watch:
    """Notes forbidden events of this process while it is on. Audit hooks cannot be removed."""

    def __init__(self) -> None:
        self.on, self.seen = False, list[str]()
        sys.addaudithook(self._note)

    def _note(self, event: str, arguments: tuple[Any, ...]) -> None:
        if not self.on:
            return
        if event in FORBIDDEN_EVENTS:
            self.seen.append(f"{FORBIDDEN_EVENTS[event]}: {arguments!r:.200}")
        elif any(isinstance(value, (str, bytes, os.PathLike)) and CANARY in str(value) for value in arguments):
            self.seen.append(f"touched the canary: {event} {arguments!r:.200}")


def _resident_bytes() -> int:
    try:
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:
        return 0  # Only Linux tells.


def _reset_peak() -> None:
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        pass


def _peak_bytes() -> int:
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        return 0
    return next(int(line.split()[1]) << 10 for line in lines if line.startswith("VmHWM:"))


@dataclass
class Trial:
    """What a case is given.

    Args:
        random: the source of all choices.
        folder: an empty folder of its own.
        materials: valid inputs, which are not to be changed.
        facts: what the case consists of, for the report.
    """

    random: Random
    folder: Path
    materials: Materials
    watch: _Watch
    facts: dict[str, str] = field(default_factory=dict)

    def note(self, **facts: Any) -> None:
        """Record what the case consists of."""
        self.facts |= {name: f"{value!r:.300}" for name, value in facts.items()}

    def chance(self, probability: float) -> bool:
        return self.random.random() < probability

    @contextmanager
    def may_raise(self, *kinds: type[BaseException], one_line: bool = False) -> Iterator[None]:
        """Run the code under test. The documented errors end the case well, by [`RefusedError`]; others are failures.

        Args:
            kinds: the documented errors.
            one_line: whether their message must be one line.
        """
        self.watch.on = True
        try:
            yield
        except kinds as error:
            self.watch.on = False
            self._check_error(error, one_line)
            raise RefusedError(str(error)) from error
        finally:
            self.watch.on = False

    def _check_error(self, error: BaseException, one_line: bool) -> None:
        message = str(error)
        kind = type(error).__name__
        if not message.strip():
            raise ViolationError(f"{kind} without a message") from error
        if one_line and len(message) > MAX_MESSAGE:
            raise ViolationError(
                f"{kind} with a message of {len(message):,} characters: {message[:100]}..."
            ) from error
        if one_line and "\n" in message.strip():
            raise ViolationError(f"{kind} with a message of several lines: {message!r:.300}") from error
        if any(isinstance(each, MemoryError) for each in _chain(error)):
            causes = " from ".join(type(each).__name__ for each in _chain(error))
            raise ViolationError(f"memory ran out: {causes}: {message:.200}") from error


@dataclass(frozen=True)
class Area:
    """One kind of input.

    Args:
        name: name of the area.
        share: how many of 1,000 cases are of this area.
        run: makes an input from a [`Trial`], gives it to the code under test, and checks the result. It raises
            [`ViolationError`], or anything else that the code under test may not raise.
        seconds: time after which a case hangs.
        memory: bytes that a case may take.
    """

    name: str
    share: int
    run: Callable[[Trial], None]
    seconds: float = 30.0
    memory: int = 1 << 30


def _place_of(error: BaseException) -> str:
    """Return where an error was raised: the last frame in the package, and the last one of all."""
    frames = traceback.extract_tb(error.__traceback__)
    package = [frame for frame in frames if frame.filename.startswith(str(ROOT)) and ".venv" not in frame.filename]
    ours = [frame for frame in package if "/tests/" not in frame.filename] or package
    chosen = dict.fromkeys(
        f"{Path(frame.filename).name}:{frame.lineno} {frame.name}" for frame in (*ours[-1:], frames[-1])
    )
    return " > ".join(chosen)


class TrialRunner:
    """Runs cases by name, in whichever process calls it.

    Args:
        areas: the areas by name.
        materials: the valid inputs.
        seed: seed of the run.
    """

    def __init__(self, areas: dict[str, Area], materials: Materials, seed: int) -> None:
        self.areas, self.materials, self.seed = areas, materials, seed

    @cached_property
    def _watch(self) -> _Watch:
        return _Watch()

    def __call__(self, case: str) -> Failure | None:
        """Run a case. Returns its failure, or None."""
        name, _, number = case.partition("/")
        area = self.areas[name]
        folder = Path(tempfile.mkdtemp(prefix=f"{name}-", dir=self.materials.scratch))
        trial = Trial(Random(f"{self.seed}/{case}"), folder, self.materials, self._watch)
        torch.manual_seed(int(number))
        self._watch.seen.clear()
        faulthandler.dump_traceback_later(area.seconds, exit=True, file=sys.__stderr__)
        before = _resident_bytes()
        _reset_peak()
        failure = None
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                area.run(trial)
            self._check(area, _peak_bytes() - before)
        except RefusedError:
            failure = self._refused_badly(case, trial, area, _peak_bytes() - before)
        except BaseException as error:  # Panics of Rust libraries are no `Exception`.
            detail = "".join(traceback.format_exception(error))
            reason = f"{type(error).__name__}: {error}".replace("\n", " | ")
            failure = Failure(case, reason[:500], _place_of(error), str(trial.facts), detail)
        finally:
            faulthandler.cancel_dump_traceback_later()
            shutil.rmtree(folder, ignore_errors=True)
        return failure

    def _refused_badly(self, case: str, trial: Trial, area: Area, taken: int) -> Failure | None:
        try:
            self._check(area, taken)
        except ViolationError as error:
            return Failure(case, str(error), f"{area.name}: {str(error)[:30]}", str(trial.facts))
        return None

    def _check(self, area: Area, taken: int) -> None:
        """Check what was watched while the case ran."""
        if self._watch.seen:
            raise ViolationError(self._watch.seen[0])
        if taken > area.memory:
            raise ViolationError(f"took {taken >> 20:,} MiB of memory, more than {area.memory >> 20:,} MiB")
