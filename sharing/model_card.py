"""The model card of a shared model, made of what its folder says of it.

Unusual: nothing is claimed that the folder does not tell: the base model and its licence come from the report of the
conversion, the numbers of tokens from the image processor.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCard, ModelCardData

from ..conversion.readers.hub import looks_like_hub_id
from ..conversion.report import REPORT_NAME
from ..processing import DeepEncoderImageProcessor
from ..processing.modes import MODES

__all__ = ["CARD_MARK", "make_model_card"]

# By which a card that nobody has written over is known.
CARD_MARK = "<!-- written by deepencoder -->"

TAGS = ("deepencoder", "ocr", "vision", "document")
WHAT = {
    "deepencoder": "DeepSeek-OCR's vision encoder: a SAM ViT, a 16x convolutional compressor, a CLIP-L on the "
    "compressed map, and a projector. It turns a page into vision tokens.",
    "deepencoder_sam": "A SAM image encoder with the convolutional compressor of DeepSeek-OCR, GOT and Vary: pixels "
    "to a map of features.",
    "deepencoder_clip_vision": "A CLIP image tower (or a plain ViT): pixels to tokens and a class token.",
}
CLASSES = {
    "deepencoder": "DeepEncoder",
    "deepencoder_sam": "SamEncoder",
    "deepencoder_clip_vision": "ClipVisionEncoder",
}
RESULTS = {
    "deepencoder": "outputs.vision_tokens[0]",
    "deepencoder_sam": "outputs.last_hidden_state",
    "deepencoder_clip_vision": "outputs.pooler_output",
}


def _what(config: Any) -> str:
    if config.model_type == "deepencoder_sam" and not config.downsample_channels:
        return "A SAM image encoder: pixels to a map of features."
    if not getattr(config, "use_patch_embedding", True):
        return "The CLIP half of a DeepEncoder: a map of features to tokens and a class token."
    return WHAT[config.model_type]


def read_report(folder: Path) -> dict[str, Any]:
    """Return the report of the conversion that made a folder's model, or nothing."""
    path = folder / REPORT_NAME
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}


def _modes() -> str:
    processor = DeepEncoderImageProcessor()
    rows = ["| mode | view | tiles | vision tokens |", "|---|---|---|---|"]
    for name, fields in MODES.items():
        side, shape = fields["size"]["height"], "padded" if fields["do_pad"] else "squashed"
        tokens, tiles = str(processor.get_number_of_image_tokens(side, side, mode=name)), ""
        if fields["crop_to_patches"]:
            page = processor.get_number_of_image_tokens(1754, 1240, mode=name)
            tiles = f"{processor.min_patches} to {processor.max_patches} of {fields['tile_size']}"
            tokens = f"{page} for an A4 page at 150 dpi"
        rows.append(f"| `{name}` | {side} x {side}, {shape} | {tiles} | {tokens} |")
    return "\n".join(rows)


def _conversion(report: Mapping[str, Any]) -> str:
    lines = [
        f"Converted from `{report['source']}`"
        + (f" at commit `{report['commit']}`" if report.get("commit") else "")
        + f", recognised as {report['layout']}: {sum(map(len, report['mapped'].values()))} tensors used, "
        f"{len(report['unused'])} not, {len(report['initialized'])} newly initialised, kept in {report['dtype']}."
    ]
    if report["initialized"]:
        names = ", ".join(f"`{name}`" for name in report["initialized"])
        lines.append(f"**Newly initialised, to be trained:** {names}.")
    verification = report.get("verification") or {}
    for name, figures in verification.get("outputs", {}).items():
        lines.append(
            f"- {name}: at most {figures['max_difference']:.1e} from {verification['reference']} on the same input "
            f"(mean {figures['mean_difference']:.1e}, values up to {figures['largest_value']:.1f})"
        )
    return "\n".join(lines)


def make_model_card(
    folder: Path,
    config: Any,
    num_parameters: int,
    repo_id: str | None = None,
    tags: Sequence[str] = (),
    license: str | None = None,
    picture: str | None = None,
) -> ModelCard:
    """Write the model card of a model.

    Args:
        folder: where it is saved; a `conversion_report.json` there tells where it came from.
        config: its configuration.
        num_parameters: how many it has.
        repo_id: where it will be; a placeholder where that is not known.
        tags: more tags.
        license: of the weights, as the Hub names it. Default: that of the checkpoint they were converted from, where
            it tells; else Apache-2.0 for weights that were not converted, and `"other"` for those that were.
        picture: name of a picture beside the card.
    """
    model_type = config.model_type
    report = read_report(folder)
    source = str(report.get("source", ""))
    base_model = source if report.get("commit") and looks_like_hub_id(source) else None
    told = report.get("license")
    data = ModelCardData(
        library_name="transformers",
        pipeline_tag="image-feature-extraction",
        license=license or told or ("other" if report else "apache-2.0"),
        base_model=base_model,
        tags=sorted({*TAGS, *tags}),
    )
    name = CLASSES[model_type]
    model = repo_id or "this/repository"
    parts = [
        f"# {model.rpartition('/')[2] if repo_id else name}",
        _what(config),
        f"{num_parameters:,} parameters. Model type `{model_type}`.",
    ]
    if picture is not None:
        parts.append(f"![A sample page, and what the encoder makes of it]({picture})")
        parts.append("*A sample page with its token grid, and the features of each token as colours.*")
    takes_pixels = getattr(config, "use_patch_embedding", True)
    processor = f'processor = AutoImageProcessor.from_pretrained("{model}"{{trust}})\n' if takes_pixels else ""
    forward = 'outputs = model(**processor("page.png", return_tensors="pt"))'
    if not takes_pixels:
        forward = "outputs = model(patch_embeds=feature_map)  # (batch, hidden, height, width)"
    usage = f"""\
{processor}model = AutoModel.from_pretrained("{model}"{{trust}}).eval()
{forward}
features = {RESULTS[model_type]}"""
    parts += [
        "## Use",
        "With the package (`pip install deepencoder`), whose classes are then used:",
        "```python\nimport deepencoder\nfrom transformers import AutoImageProcessor, AutoModel\n\n"
        + usage.format(trust="")
        + "\n```",
        "Without it, by the code in this repository:",
        "```python\nfrom transformers import AutoImageProcessor, AutoModel\n\n"
        + usage.format(trust=", trust_remote_code=True")
        + "\n```",
    ]
    if model_type == "deepencoder":
        parts += ["## Modes", _modes(), 'Choose one with `processor(page, mode="gundam", return_tensors="pt")`.']
    if report:
        parts += ["## Conversion", _conversion(report)]
    return ModelCard(f"---\n{data.to_yaml()}\n---\n\n" + "\n\n".join([*parts, CARD_MARK]) + "\n")
