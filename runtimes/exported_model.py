"""A DeepEncoder that runs as exported graphs, in OpenVINO or ONNX Runtime.

Unusual: this is a model without the weights of a model. The graphs encode views; what turns views into pages is the
code that [`DeepEncoder`] has, too. It holds two parameters, the newline and the separator, which tell its device and
dtype like those of any model.
"""

import os
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import nn

from ..configuration import DeepEncoderConfig
from ..modeling.deepencoder import DeepEncoder
from ..modeling.inputs import check_pixel_values
from ..modeling.pages import DeepEncoderOutput, PagePreTrainedModel
from .graph_folders import GraphFolder, open_folder

__all__ = ["ExportedDeepEncoder", "load_exported"]

PIXELS_TOGETHER = 1 << 20  # Views are run a few at a time, since larger batches are no faster on a CPU.


class ExportedDeepEncoder(PagePreTrainedModel):
    """A [`DeepEncoder`] for inference that runs as exported graphs, one for each size of views.

    It takes the inputs of a [`DeepEncoder`], tiles and batches of pages with different numbers of tiles included, and
    returns the same [`DeepEncoderOutput`]. It computes neither gradients nor hidden states and attention weights.
    Make it with [`from_pretrained`].
    """

    config: DeepEncoderConfig
    base_model_prefix = "deepencoder"
    bare_parameters = DeepEncoder.bare_parameters

    lay_out: Callable[..., Any] = DeepEncoder.lay_out

    def __init__(self, folder: GraphFolder) -> None:
        super().__init__(folder.config)
        self.graphs = folder
        dtype = getattr(torch, folder.dtype)
        tokens = folder.load_tokens()
        self.image_newline = nn.Parameter(tokens["image_newline"].to(dtype), requires_grad=False)
        self.view_separator = nn.Parameter(tokens["view_separator"].to(dtype), requires_grad=False)

    @classmethod
    def from_pretrained(  # type: ignore[override]
        cls,
        model: str | os.PathLike[str],
        *,
        runtime: str | None = None,
        dtype: torch.dtype | str | None = None,
        revision: str | None = None,
        **options: Any,
    ) -> "ExportedDeepEncoder":
        """Open exported graphs, or export a model.

        Args:
            model: a folder that `deepencoder export` made; or a folder, a file of weights or a Hub id of a
                [`DeepEncoder`] or of an original such as `deepseek-ai/DeepSeek-OCR`. A graph of the latter is exported
                when a size of views is first used, and kept in the Hugging Face cache.
            runtime (`str`, *optional*): `"openvino"` or `"onnxruntime"`. Default: the one whose graphs are in the
                folder, or the first of them that is installed.
            dtype (*optional*): the dtype in which the graphs compute. Default, and `"auto"`: `torch.float32`, whatever
                the dtype of the checkpoint. OpenVINO also computes in `torch.bfloat16`.
            revision (`str`, *optional*): branch, tag or commit of a model on the Hub.
            options: `full_download`, as in `from_original`.

        Raises:
            `ValueError`: an argument has none of the values above, or the model is not a [`DeepEncoder`].
            `ImportError`: the runtime is not installed.
            `OSError`: there is no such model, or a graph cannot be opened.
        """
        name = "float32" if dtype in (None, "auto") else str(dtype).removeprefix("torch.")
        return cls(open_folder(os.fspath(model), runtime, name, revision, **options)).eval()

    def encode_view(self, pixel_values: torch.Tensor, **options: Any) -> Any:
        """Encode square views of one size; see [`DeepEncoder.encode_view`].

        Raises:
            `ValueError`: there is no graph for this size, or something is asked for that graphs do not give.
        """
        sam = self.config.sam_config
        check_pixel_values(pixel_values, "pixel_values", sam.num_channels, sam.patch_size)
        for name in ("output_hidden_states", "output_attentions"):
            if options.get(name):
                raise ValueError(f"{name}: exported graphs do not give it. Use the DeepEncoder itself.")
        if torch.is_grad_enabled() and pixel_values.requires_grad:
            raise ValueError("pixel_values must not require gradients, which exported graphs do not compute.")
        height, width = pixel_values.shape[2:]
        if height != width:
            raise ValueError(f"pixel_values must be square for an exported graph, got {height} x {width} pixels.")
        run = self.graphs.get(height).run
        parts = pixel_values.detach().to("cpu", torch.float32).split(max(1, PIXELS_TOGETHER // (height * width)))
        results = [run(part.contiguous().numpy()) for part in parts]
        fused, pooled, projected = (
            torch.from_numpy(np.concatenate(arrays)).to(self.dtype) for arrays in zip(*results, strict=True)
        )
        side = -(-height // sam.total_stride)
        output = DeepEncoderOutput(last_hidden_state=fused, pooler_output=pooled)
        return (
            fused,
            projected.unflatten(1, (side, side)),
            output,
        )  # (views, side * side, ..) -> (views, side, side, ..)

    def _apply(self, fn: Callable[[torch.Tensor], torch.Tensor], *args: Any, **kwargs: Any) -> Any:
        """Refuse another device or dtype, to which `.to`, `.cuda`, `.half` and others would convert the parameters."""
        probe = fn(torch.empty(0, dtype=self.dtype))
        if probe.device.type != "cpu" or probe.dtype != self.dtype:
            raise ValueError(
                f"An ExportedDeepEncoder runs on the CPU in {self.dtype}, got {probe.device.type} and {probe.dtype}: "
                "from_pretrained takes a dtype."
            )
        return super()._apply(fn, *args, **kwargs)

    def save_pretrained(self, *args: Any, **kwargs: Any) -> None:
        """Refuse: there are no weights to save.

        Raises:
            `ValueError`: always.
        """
        raise ValueError(f"An ExportedDeepEncoder cannot be saved: copy its folder of graphs, {self.graphs.path}.")

    def push_to_hub(self, *args: Any, **kwargs: Any) -> str:  # type: ignore[override]
        """Refuse, as [`save_pretrained`] does.

        Raises:
            `ValueError`: always.
        """
        raise ValueError(f"An ExportedDeepEncoder cannot be pushed: upload its folder of graphs, {self.graphs.path}.")


def load_exported(model: str | os.PathLike[str], **options: Any) -> ExportedDeepEncoder:
    """Open exported graphs, or export a model; see [`ExportedDeepEncoder.from_pretrained`]."""
    return ExportedDeepEncoder.from_pretrained(model, **options)
