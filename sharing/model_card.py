"""The model card of a shared model.

Unusual: a card states only what the folder proves. The base model, the licence and the verification come from the
report of the conversion, the architecture from the configuration, and the numbers of tokens from the image processor.
What is not known is left out: weights without a stated licence get no `license` field.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCard, ModelCardData

from ..configuration.composite import reads_pages
from ..conversion.readers.hub import looks_like_hub_id
from ..conversion.report import REPORT_NAME, last_part
from ..modeling.catalog import MODELS
from ..processing import DeepEncoderImageProcessor
from ..processing.modes import mode_for, modes_of
from .model_facts import MEASURED_ON, describe_stored, describe_weights, measurements_of

__all__ = ["CARD_MARK", "make_model_card", "read_report"]

CARD_MARK = "<!-- written by deepencoder -->"
"""Ends every generated card. A card without it was written by hand and is never replaced."""

TAGS = ("deepencoder", "ocr", "vision", "document")
# Names of published architectures by width and number of layers.
CLIP_NAMES = {(768, 12): "CLIP-B", (1024, 24): "CLIP-L", (1280, 32): "CLIP-H"}
SAM_NAMES = {(768, 12): "SAM ViT-B", (1024, 24): "SAM ViT-L", (1280, 32): "SAM ViT-H"}
A4_AT_150_DPI = {"height": 1754, "width": 1240}
TOKENS_GUIDE = "https://github.com/deepencoder/deepencoder/blob/main/docs/tokens.md"

CITATIONS = {
    "deepseek-ocr": """\
@article{wei2025deepseekocr,
  title = {DeepSeek-OCR: Contexts Optical Compression},
  author = {Wei, Haoran and Sun, Yaofeng and Li, Yukun},
  journal = {arXiv preprint arXiv:2510.18234},
  year = {2025}
}""",
    "deepseek-ocr-2": """\
@article{wei2026deepseekocr2,
  title = {DeepSeek-OCR 2: Visual Causal Flow},
  author = {Wei, Haoran and Sun, Yaofeng and Li, Yukun},
  journal = {arXiv preprint arXiv:2601.20552},
  year = {2026}
}""",
    "sam": """\
@article{kirillov2023segment,
  title = {Segment Anything},
  author = {Kirillov, Alexander and Mintun, Eric and Ravi, Nikhila and Mao, Hanzi and Rolland, Chloe and
            Gustafson, Laura and Xiao, Tete and Whitehead, Spencer and Berg, Alexander C. and Lo, Wan-Yen and
            Doll{\\'a}r, Piotr and Girshick, Ross},
  journal = {arXiv preprint arXiv:2304.02643},
  year = {2023}
}""",
    "clip": """\
@article{radford2021learning,
  title = {Learning Transferable Visual Models From Natural Language Supervision},
  author = {Radford, Alec and Kim, Jong Wook and Hallacy, Chris and Ramesh, Aditya and Goh, Gabriel and
            Agarwal, Sandhini and Sastry, Girish and Askell, Amanda and Mishkin, Pamela and Clark, Jack and
            Krueger, Gretchen and Sutskever, Ilya},
  journal = {arXiv preprint arXiv:2103.00020},
  year = {2021}
}""",
}


def _base_model(report: Mapping[str, Any]) -> str | None:
    """Return the Hub id of the checkpoint that was converted, or None if it did not come from the Hub."""
    source = str(report.get("source", ""))
    return source if report.get("commit") and looks_like_hub_id(source) else None


def read_report(folder: Path) -> dict[str, Any]:
    """Return the report of the conversion that wrote a folder; an empty one if it was not converted.

    Of a local path, only the last part is returned; earlier versions wrote the whole path.

    Raises:
        `ValueError`: the report is damaged.
    """
    path = folder / REPORT_NAME
    if not path.is_file():
        return {}
    try:
        report = json.loads(path.read_text(encoding="utf-8"))
        return report | {"source": _base_model(report) or last_part(report["source"])}
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError(f"{path} is damaged: {type(error).__name__}: {error}.") from error


def _takes_pixels(config: Any) -> bool:
    return getattr(config, "use_patch_embedding", True)


def _is_plain_vit(config: Any) -> bool:
    return config.model_type == "deepencoder_clip_vision" and config.post_norm == "all"


def _summary(config: Any) -> str:
    if config.model_type == "deepencoder_sam" and not config.downsample_channels:
        return "A SAM image encoder. It turns pixels into a feature map."
    if not _takes_pixels(config):
        return "The CLIP half of a DeepEncoder. It turns a feature map into tokens and a class token."
    if _is_plain_vit(config):
        return "A plain ViT. It turns pixels into tokens and a class token."
    if config.model_type == "deepencoder_clip_vision":
        return "A CLIP image tower. It turns pixels into tokens and a class token."
    return MODELS[config.model_type].summary


def _describe_tower(config: Any, names: Mapping[tuple[int, int], str], otherwise: str) -> str:
    name = names.get((config.hidden_size, config.num_hidden_layers), otherwise)
    return f"- {name}: {config.num_hidden_layers} layers of width {config.hidden_size}"


def _describe_sam(config: Any) -> Iterator[str]:
    yield _describe_tower(config, SAM_NAMES, "SAM ViT") + f", patches of {config.patch_size} pixels"
    if config.downsample_channels:
        channels = " and ".join(map(str, config.downsample_channels))
        factor = 4 ** len(config.downsample_channels)
        yield f"- Compressor: convolutions of stride 2 to {channels} channels, {factor} times fewer tokens"


def _describe_clip(config: Any) -> Iterator[str]:
    names, otherwise = ({}, "ViT") if _is_plain_vit(config) else (CLIP_NAMES, "CLIP ViT")
    tower = _describe_tower(config, names, otherwise)
    yield tower + (f", patches of {config.patch_size} pixels" if config.use_patch_embedding else "")


def _describe_queries(config: Any) -> Iterator[str]:
    yield _describe_tower(config.query_config, {}, "Query encoder, Qwen2 layers")
    counts = zip(config.query_counts, config.query_sizes, strict=True)
    yield "- Learned queries: " + ", ".join(f"{count} for views of {size} pixels" for count, size in counts)


def _architecture(folder: Path, config: Any, num_parameters: int) -> str:
    stored = describe_stored(folder)
    lines = [
        f"{num_parameters:,} parameters. Model type `{config.model_type}`.",
        f"The weights take {describe_weights(num_parameters)}" + (f"; here they are {stored}." if stored else "."),
        "",
    ]
    if reads_pages(config):
        is_first = config.model_type == "deepencoder"
        second = _describe_clip(config.clip_config) if is_first else _describe_queries(config)
        lines += [*_describe_sam(config.sam_config), *second]
        projector = "none" if config.projector_type == "identity" else config.projector_type
        lines.append(f"- Projector: {projector}, {config.hidden_size} to {config.projection_dim} channels")
    else:
        lines += _describe_sam(config) if config.model_type == "deepencoder_sam" else _describe_clip(config)
    return "\n".join(lines)


def _usage(config: Any, repo_id: str | None) -> str:
    model = repo_id or "this/repository"
    lines = [
        f'processor = AutoImageProcessor.from_pretrained("{model}"{{trust}})',
        f'model = AutoModel.from_pretrained("{model}"{{trust}}).eval()',
        'outputs = model(**processor("page.png", return_tensors="pt"))',
        f"features = {MODELS[config.model_type].main_output}",
    ]
    imports = "from transformers import AutoImageProcessor, AutoModel"
    if not _takes_pixels(config):
        lines[2] = "outputs = model(patch_embeds=feature_map)  # (batch, hidden, height, width)"
        del lines[0]
        imports = "from transformers import AutoModel"
    code = imports + "\n\n" + "\n".join(lines)
    return "\n\n".join(
        (
            "## Use",
            "With the `deepencoder` package, which is installed from a clone of its repository by `pip install .`:",
            f"```python\nimport deepencoder\n{code.format(trust='')}\n```",
            "Without the package, by the code in this repository:",
            f"```python\n{code.format(trust=', trust_remote_code=True')}\n```",
        )
    )


def _modes_table(config: Any, processor: DeepEncoderImageProcessor) -> str:
    rows = ["| mode | global view | tiles | vision tokens |", "|---|---|---|---|"]
    for name, fields in modes_of(config.token_scheme).items():
        side, shape = fields["size"]["height"], "padded" if fields["do_pad"] else "squashed"
        tokens, tiles = str(processor.get_number_of_image_tokens(side, side, mode=name)), ""
        if fields["crop_to_patches"]:
            page = processor.get_number_of_image_tokens(**A4_AT_150_DPI, mode=name)
            fewest, most = (fields.get(field, getattr(processor, field)) for field in ("min_patches", "max_patches"))
            tiles = f"{fewest} to {most} of {fields['tile_size']} x {fields['tile_size']}"
            tokens = f"{page} for an A4 page at 150 dpi"
        rows.append(f"| `{name}` | {side} x {side}, {shape} | {tiles} | {tokens} |")
    return "\n".join(rows)


def _costs_table(config: Any, num_parameters: int) -> str:
    """Return what a page costs in each mode, or nothing if it was not measured for a model of this size."""
    measured = measurements_of(config, num_parameters)
    if not measured:
        return ""
    dtypes = list(next(iter(measured.values())))
    rows = ["| mode | " + " | ".join(dtypes) + " |", "|---" * (1 + len(dtypes)) + "|"]
    for mode, found in measured.items():
        cells = [f"{found[dtype].seconds:.2f} s, {found[dtype].gigabytes:.2f} GB" for dtype in dtypes]
        rows.append(f"| `{mode}` | " + " | ".join(cells) + " |")
    text = (
        f"Time for one page on {MEASURED_ON}, and the memory it takes in addition to the weights. For `gundam`, the "
        "page has six tiles. Other processors differ; on one without AMX, bfloat16 may be slower than float32."
    )
    return "\n\n".join(("## Costs", text, "\n".join(rows)))


EXAMPLE_MODES = {"cells": "gundam", "queries": "v2"}
_SEQUENCES = {
    "cells": "the tiles' rows, then the view's rows, a newline token after each row, one separator at the end. Tiles "
    "are stitched first, so a row runs across all tiles that lie side by side.",
    "queries": "the queries of each tile, then those of the view, one separator at the end. A query is no cell of the "
    "page.",
}


def _vision_tokens(config: Any, processor: DeepEncoderImageProcessor) -> str:
    layout = (
        f"`outputs.vision_tokens` holds one tensor `(tokens, {config.projection_dim})` per image: "
        f"{_SEQUENCES[config.token_scheme]} `processor.get_number_of_image_tokens(height, width, mode=...)` counts "
        "the tokens of a page."
    )
    choice = (
        f'Choose a mode with `processor(page, mode="{EXAMPLE_MODES[config.token_scheme]}", return_tensors="pt")`. '
        "`processor.get_token_layout(height, width)` says which part of the page each token is; see "
        f"[where a token lies]({TOKENS_GUIDE})."
    )
    return "\n\n".join(("## Vision tokens", layout, _modes_table(config, processor), choice))


def _limits(config: Any, report: Mapping[str, Any]) -> str:
    lines = [
        "This is an encoder: it returns features, and no text. Reading a page takes a language model that was trained "
        "on these features.",
        "The languages and scripts for which the features are good are unknown: no evaluation is part of this "
        "repository.",
    ]
    if reads_pages(config):
        lines.append(
            "Every page is resized to the resolution of the mode. Text that is illegible at that resolution is lost: "
            "choose a larger mode, or tiles."
        )
    else:
        side, unit = (config.image_size, "pixels") if _takes_pixels(config) else (config.grid_size, "positions")
        lines.append(
            f"The position tables were made for inputs of {side} x {side} {unit}. Other resolutions work with resized "
            "tables, which may cost quality."
        )
    if not report:
        lines.append("Nothing is recorded here of where the weights come from, or of what they were trained on.")
    if report.get("initialized"):
        lines.append("Some weights are newly initialised (see below): train them before using the features.")
    return "## Limits\n\n" + "\n".join(f"- {line}" for line in lines)


def _conversion(report: Mapping[str, Any]) -> str:
    commit = f" at commit `{report['commit']}`" if report.get("commit") else ""
    lines = [
        f"Converted from `{report['source']}`{commit}, recognised as {report['layout']}: "
        f"{sum(map(len, report['mapped'].values()))} tensors used, {len(report['unused'])} not used, "
        f"{len(report['initialized'])} newly initialised, stored in {report['dtype']}."
    ]
    if report["initialized"]:
        names = ", ".join(f"`{name}`" for name in report["initialized"])
        lines.append(f"**Newly initialised, to be trained:** {names}.")
    verification = report.get("verification") or {}
    for name, figures in verification.get("outputs", {}).items():
        lines.append(
            f"- {name}: differs by at most {figures['max_difference']:.1e} from {verification['reference']} on the "
            f"same input (mean {figures['mean_difference']:.1e}, values up to {figures['largest_value']:.1f})"
        )
    return "## Conversion\n\n" + "\n".join(lines)


def _licence(license: str | None) -> str:
    weights = f"`{license}`" if license else "no licence is stated for them; ask whoever published them"
    return f"## Licence\n\nWeights: {weights}. Code in this repository: Apache-2.0."


def _citation(config: Any) -> str:
    if config.model_type == "deepencoder":
        names = ["deepseek-ocr", "sam", "clip"]
    elif config.model_type == "deepencoder_v2":
        names = ["deepseek-ocr-2", "sam"]
    elif config.model_type == "deepencoder_sam":
        names = ["deepseek-ocr", "sam"] if config.downsample_channels else ["sam"]
    elif not _takes_pixels(config):
        names = ["deepseek-ocr", "clip"]
    else:
        names = [] if _is_plain_vit(config) else ["clip"]
    return "\n".join(["## Citation", "", "```bibtex", *(CITATIONS[name] for name in names), "```"]) if names else ""


def make_model_card(
    folder: Path,
    config: Any,
    num_parameters: int,
    image_processor: DeepEncoderImageProcessor | None = None,
    repo_id: str | None = None,
    tags: Sequence[str] = (),
    license: str | None = None,
    picture: str | None = None,
) -> ModelCard:
    """Write the model card of a model.

    Args:
        folder: where the model is saved. A `conversion_report.json` in it tells which checkpoint was converted.
        config: the model's configuration.
        num_parameters: number of parameters of the model.
        image_processor: the model's image processor, which counts vision tokens. Default: one with default fields.
        repo_id: Hub id of the repository. Default: a placeholder.
        tags: tags beside the usual ones.
        license: licence of the weights, as the Hub spells it. Default: that of the converted checkpoint, where its
            own model card states one; otherwise the card has none.
        picture: name of a picture that lies beside the card.
    """
    report = read_report(folder)
    license = license or report.get("license")
    data = ModelCardData(
        library_name="transformers",
        pipeline_tag="image-feature-extraction",
        license=license,
        base_model=_base_model(report),
        tags=sorted({*TAGS, *tags}),
    )
    sections = [
        f"# {repo_id.rpartition('/')[2] if repo_id else MODELS[config.model_type].name}",
        _summary(config),
        _architecture(folder, config, num_parameters),
    ]
    if picture is not None:
        sections.append(
            f"![A sample page and its features]({picture})\n\n"
            "*A sample page with its token grid, and the features of each token as colours.*"
        )
    sections.append(_usage(config, repo_id))
    if reads_pages(config):
        processor = image_processor or DeepEncoderImageProcessor(mode=mode_for(config))
        sections.append(_vision_tokens(config, processor))
        sections.append(_costs_table(config, num_parameters))
    sections.append(_limits(config, report))
    if report:
        sections.append(_conversion(report))
    sections += [_licence(license), _citation(config), CARD_MARK]
    return ModelCard(f"---\n{data.to_yaml()}\n---\n\n" + "\n\n".join(filter(None, sections)) + "\n")
