"""The contenders: every way of running a DeepEncoder that the comparison knows, one row each.

Unusual: a contender that cannot run here is left out and named with its reason, never an error.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from deepencoder.runtimes.trials.trial import Trial
from deepencoder.runtimes.trials.ways import WAYS, open_torch

from .files import FOLDER
from .llama_cpp import LIBRARY

BENCHMARKS = Path(__file__).parents[1]
REFERENCE = "torch, float32"
ANCHORS = {"float32": REFERENCE, "bfloat16": "torch, bfloat16", "int8": "torch, int8"}
"""The contender of each precision that runs in every turn, and that others are compared with."""


def _no_reason() -> str | None:
    return None


@dataclass(frozen=True, eq=False)
class Contender:
    """A way of running the model.

    Args:
        name: its name in tables; ours begin with `torch`.
        precision: the group in which it runs: `"float32"`, `"bfloat16"` or `"int8"`.
        opener: the function that loads it; see [`Trial`].
        packages: the packages that must be installed, by the names of their modules.
        files: what is prepared for it, besides the models: `"graphs"` or `"gguf"`.
        arguments: further arguments of `opener`.
        imported: further modules that are imported before the loading is timed.
        environment: further environment variables of its process.
        unavailable: returns why it cannot run, or None.
    """

    name: str
    precision: str
    opener: str
    packages: Mapping[str, str]
    files: str | None = None
    arguments: Mapping[str, Any] = field(default_factory=dict)
    imported: tuple[str, ...] = ()
    environment: Mapping[str, str] = field(default_factory=dict)
    unavailable: Callable[[], str | None] = _no_reason

    def reason_to_leave_out(self) -> str | None:
        """Return why it cannot run here, or None."""
        missing = [package for module, package in self.packages.items() if find_spec(module) is None]
        return f"{', '.join(missing)} not installed" if missing else self.unavailable()

    def start(self, sides: tuple[int, ...], threads: int) -> Trial:
        """Start the process in which it runs."""
        return Trial(
            self.opener,
            modules=(*self.packages, *self.imported),
            folders=[BENCHMARKS],
            environment=dict(self.environment) | {"OMP_NUM_THREADS": str(threads)},
            folder=str(FOLDER),
            sides=sides,
            threads=threads,
            **self.arguments,
        )


def _llama_cpp_missing() -> str | None:
    return None if LIBRARY.exists() else "not built: make llama.cpp"


def _llama_cpp(gguf_type: str, precision: str) -> Contender:
    return Contender(
        f"llama.cpp, {gguf_type}",
        precision,
        "peers.llama_cpp:open_llama_cpp",
        {},
        "gguf",
        {"gguf_type": gguf_type},
        unavailable=_llama_cpp_missing,
    )


_OURS = ("deepencoder.modeling.deepencoder",)


def _transformers(precision: str) -> Contender:
    return Contender(
        f"transformers' class, {precision}",
        precision,
        "peers.transformers_class:open_class",
        {"torch": "torch", "transformers": "transformers"},
        arguments={"precision": precision},
        imported=("transformers.models.unlimited_ocr.modeling_unlimited_ocr",),
    )


def _compiled(precision: str) -> Contender:
    opener, arguments = f"{open_torch.__module__}:{open_torch.__name__}", {"precision": precision, "compiled": True}
    name = f"torch, {precision}, compiled"
    return Contender(name, precision, opener, {"torch": "torch"}, arguments=arguments, imported=_OURS)


def _int8(name: str, **arguments: Any) -> Contender:
    packages = {"torch": "torch", "torchao": "torchao"}
    return Contender(name, "int8", "peers.int8:open_int8", packages, arguments=arguments, imported=_OURS)


CONTENDERS: tuple[Contender, ...] = (
    *(
        Contender(
            way.title,
            way.precision,
            way.opener,
            {name: name for name in way.packages},
            "graphs" if way.format else None,
            way.arguments,
            imported=way.imported,
        )
        for way in WAYS
    ),
    _transformers("float32"),
    _transformers("bfloat16"),
    _llama_cpp("f32", "float32"),
    _llama_cpp("bf16", "bfloat16"),
    _llama_cpp("f16", "bfloat16"),
    _compiled("float32"),
    _compiled("bfloat16"),
    _int8("torch, int8"),
    _int8("torch, int8, compiled", compiled=True),
    _llama_cpp("q8_0", "int8"),
)
"""All contenders. The ways of the package come first."""


def versions() -> dict[str, str]:
    """Return the versions of the packages that contenders need, of those that are installed."""
    found = {}
    for name in sorted({package for contender in CONTENDERS for package in contender.packages.values()}):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    build = LIBRARY.parents[1] / "version.txt"
    return found | ({"llama.cpp": build.read_text().strip()} if build.exists() else {})
