"""Options that several commands share."""

from enum import Enum
from typing import Annotated

import typer

from ..processing.modes import MODES
from ..runtimes.engines import RUNTIMES

__all__ = [
    "DeviceOption",
    "Dtype",
    "FullDownloadOption",
    "Mode",
    "ModeOption",
    "ModelOption",
    "RevisionOption",
    "Runtime",
    "RuntimeOption",
    "TrustOption",
]

Mode = Enum("Mode", {name: name for name in MODES}, type=str)  # type: ignore[misc]
Runtime = Enum("Runtime", {name: name for name in ("torch", *RUNTIMES)}, type=str)  # type: ignore[misc]


class Dtype(str, Enum):
    """Dtype of a model's weights; `auto` keeps the dtype of the checkpoint."""

    auto = "auto"
    float32 = "float32"
    bfloat16 = "bfloat16"
    float16 = "float16"


ModelOption = Annotated[
    str | None,
    typer.Option(
        "--model",
        "-m",
        help="Folder or Hub id of a model: one of this package, or an original such as deepseek-ai/DeepSeek-OCR. "
        "Default: the small page reader that ships with the package.",
        show_default=False,
    ),
]
ModeOption = Annotated[
    Mode | None,
    typer.Option(help="Resolution mode. Default: the mode of the model's image processor.", show_default=False),
]
DeviceOption = Annotated[
    str | None,
    typer.Option(
        help="Device to compute on: cpu, cuda, cuda:1, mps, ... Default: an accelerator if there is one.",
        show_default=False,
    ),
]
RevisionOption = Annotated[str | None, typer.Option(help="Branch, tag or commit of a model on the Hub.")]
FullDownloadOption = Annotated[
    bool,
    typer.Option("--full-download", help="Download the whole files of an original, not only the encoder's tensors."),
]
TrustOption = Annotated[
    bool, typer.Option("--trust-remote-code", help="Allow Python code from the model's repository to run.")
]
RuntimeOption = Annotated[
    Runtime | None,
    typer.Option(
        help="What computes the model: torch, or its exported graphs in another library, in float32 unless another "
        "dtype is given. Graphs of a model that is not exported yet are exported and kept in the Hugging Face cache. "
        "Default: torch, and for a folder of exported graphs the library that runs them.",
        show_default=False,
    ),
]
