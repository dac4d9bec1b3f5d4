"""A folder that transformers.js loads, in Node or in a browser: the graph, and what describes it.

Unusual: its image processors know none of DeepSeek-OCR's. A page that is padded needs the class `VLMImageProcessor`,
which centres it as Pillow does, but fills in the colour after the normalisation. So the colour is written as the value
that becomes the normalised one. ONNX metadata cannot be read there, so `config.json` says where the tokens lie.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np

from ...configuration.atomic_files import new_folder
from ...processing import DeepEncoderImageProcessor
from .exporting import describe_layout, export_model

__all__ = ["export_for_transformers_js", "image_processor_fields"]

LANCZOS = 1  # In Node, the other filters of the library do not smooth a page before they shrink it.
GRAPH_NAME = "model.onnx"
DATA_NAME = "model.onnx_data"  # The only name for external data that transformers.js looks for.


def _rename_data(graph: Path) -> int:
    """Give the external data of a graph its name; return how many files they are: 1, or 0 for none."""
    import onnx

    written = graph.with_name(f"{graph.name}.data")
    if not written.exists():
        return 0
    proto = onnx.load(graph, load_external_data=False)
    for tensor in proto.graph.initializer:
        for entry in tensor.external_data:
            if entry.key == "location":
                entry.value = DATA_NAME
    written.rename(graph.with_name(DATA_NAME))
    onnx.save(proto, graph)
    return 1


def image_processor_fields(processor: DeepEncoderImageProcessor, image_size: int) -> dict[str, Any]:
    """Return the `preprocessor_config.json` for square views of one size.

    Raises:
        `ValueError`: the processor leaves pixels as bytes, which this library cannot.
    """
    if not processor.do_rescale or not processor.do_resize:
        raise ValueError("image_processor must have do_rescale and do_resize for transformers.js, and lacks one.")
    mean, std = np.zeros(3), np.ones(3)
    if processor.do_normalize:
        mean, std = mean + processor.image_mean, std * processor.image_std  # Either may be one number.
    factor = float(processor.rescale_factor)
    fields = {
        "do_resize": True,
        "resample": LANCZOS,
        "do_rescale": True,
        "rescale_factor": factor,
        "do_normalize": bool(processor.do_normalize),
        "image_mean": mean.tolist(),
        "image_std": std.tolist(),
        "do_convert_rgb": True,
    }
    square = {"height": image_size, "width": image_size}
    if not processor.do_pad:
        return {"image_processor_type": "ViTImageProcessor", "size": square, "do_pad": False, **fields}
    # The library only multiplies the colour by the factor, and writes it beside pixels that are normalised already.
    color = (np.zeros(3) + processor.background_color) * factor
    return {
        "image_processor_type": "VLMImageProcessor",
        # The library rounds the sides down. Half a pixel more comes close to Pillow, which rounds them.
        "size": {"longest_edge": image_size + 0.5},
        "do_pad": True,
        "pad_size": square,
        "background_color": ((color - mean) / std / factor).tolist(),
        **fields,
    }


def export_for_transformers_js(
    model: Any, folder: str | Path, image_processor: DeepEncoderImageProcessor, image_size: int
) -> dict[str, Any]:
    """Export a model as a folder that transformers.js loads with `AutoModel` and `AutoImageProcessor`.

    Args:
        model: a [`DeepEncoder`], [`SamEncoder`] or [`ClipVisionEncoder`].
        folder: the folder to create, with `onnx/model.onnx`, its weights, `config.json` and
            `preprocessor_config.json`.
        image_processor: prepares the pages for this model. Its padding and normalisation are used, and its size is
            not.
        image_size: side of the pages, in pixels.

    Returns:
        what [`export_model`] returns.

    Raises:
        `FileExistsError`: the folder exists already.
        `ValueError`: the image processor does what transformers.js cannot; or an error of [`export_model`].
        `ImportError`: onnx or onnxscript is not installed.
    """
    preprocessing = image_processor_fields(image_processor, image_size)
    with new_folder(Path(folder)) as temporary:
        graph = temporary / "onnx" / GRAPH_NAME
        facts = export_model(model, graph, image_size)
        model = getattr(model, "_orig_mod", model)  # torch.compile's wrapper
        config = json.loads(model.config.to_json_string(use_diff=False))
        # In a browser the library looks for int8 weights unless it is told otherwise.
        choices = {"dtype": "fp32", "use_external_data_format": {GRAPH_NAME: _rename_data(graph)}}
        layout = {"image_size": image_size} | describe_layout(model.config, image_size)
        config |= {"layout": layout, "transformers.js_config": choices}
        for name, fields in (("config.json", config), ("preprocessor_config.json", preprocessing)):
            (temporary / name).write_text(json.dumps(fields, indent=2) + "\n", encoding="utf-8")
    return facts
