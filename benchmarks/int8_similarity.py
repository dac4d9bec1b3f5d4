"""The effect of int8 weights: cosine similarity of each vision token to float32, on the example pages.

    python benchmarks/int8_similarity.py [MODEL] [--mode base] [PAGE ...]

Without MODEL, a model of the published sizes with seeded random weights is used. Its figures show the effect of
rounding at these sizes and say nothing about real features.
"""

import argparse
import platform
import tempfile
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torchao.quantization import Int8DynamicActivationInt8WeightConfig, Int8WeightOnlyConfig
from transformers import AutoModel, TorchAoConfig

from deepencoder import DeepEncoder, DeepEncoderConfig, DeepEncoderImageProcessor

PAGES = sorted((Path(__file__).parents[1] / "examples").glob("[!e]*.png"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="?")
    parser.add_argument("--mode", default="base")
    parser.add_argument("--pages", nargs="*", type=Path, default=PAGES)
    options = parser.parse_args()
    processor = DeepEncoderImageProcessor(mode=options.mode)
    inputs: list[Any] = [processor(page, return_tensors="pt") for page in options.pages]
    with tempfile.TemporaryDirectory() as folder, torch.inference_mode():
        if options.model is None:
            torch.manual_seed(0)
            DeepEncoder(DeepEncoderConfig()).save_pretrained(folder)
        source = options.model or folder
        model = AutoModel.from_pretrained(source, dtype=torch.float32)
        expected = [model(**page).vision_tokens[0] for page in inputs]
        del model
        versions = ", ".join(f"{name} {version(name)}" for name in ("torch", "torchao", "transformers"))
        print(f"{options.model or 'random weights'}, {options.mode}, {platform.machine()}; {versions}\n")
        print("| weights | page | lowest similarity | mean |")
        print("|---|---|---|---|")
        for config in (Int8WeightOnlyConfig(), Int8DynamicActivationInt8WeightConfig()):
            model = AutoModel.from_pretrained(source, dtype=torch.float32, quantization_config=TorchAoConfig(config))
            for page, tokens, path in zip(inputs, expected, options.pages, strict=True):
                similarity = torch.cosine_similarity(model(**page).vision_tokens[0], tokens, dim=-1)
                name = type(config).__name__.removesuffix("Config")
                print(f"| {name} | {path.name} | {similarity.min():.5f} | {similarity.mean():.5f} |")


if __name__ == "__main__":
    main()
