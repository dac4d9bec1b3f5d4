"""A vision-language model of one's own: the DeepEncoder in front of a causal language model of transformers.

    python examples/vision_language_model.py

Copy this file and change it. It defines a configuration, a processor and a model, and registers them with
transformers' Auto classes. As a program, it teaches a tiny model with random weights to tell pages apart, saves and
loads it, and reads a page. docs/vision-language.md explains it part by part.
"""

import tempfile
from collections.abc import Sequence
from typing import Any

import torch
from PIL import Image
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import nn
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    AutoProcessor,
    BatchFeature,
    GenerationMixin,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    ProcessorMixin,
)
from transformers.image_utils import load_image
from transformers.modeling_outputs import CausalLMOutputWithPast

from deepencoder import DeepEncoderConfig, DeepEncoderImageProcessor, insert_vision_tokens

IMAGE_TOKEN = "<image>"


class PageReaderConfig(PreTrainedConfig):
    """Configurations of both parts, and the id of the placeholder that stands for one vision token."""

    model_type = "page_reader"
    sub_configs = {"vision_config": DeepEncoderConfig, "text_config": AutoConfig}

    vision_config: Any = None
    text_config: Any = None
    image_token_id: int = 0

    def __post_init__(self, **kwargs: Any) -> None:
        if not isinstance(self.vision_config, PreTrainedConfig):
            self.vision_config = DeepEncoderConfig(**(self.vision_config or {}))
        if not isinstance(self.text_config, PreTrainedConfig):
            fields = dict(self.text_config or {})
            self.text_config = AutoConfig.for_model(fields.pop("model_type", "llama"), **fields)
        super().__post_init__(**kwargs)


class PageReaderProcessor(ProcessorMixin):
    """Prepares pages and prompts: each `<image>` in a prompt becomes one placeholder for each vision token."""

    def __init__(self, image_processor: Any, tokenizer: Any, **kwargs: Any) -> None:
        super().__init__(image_processor, tokenizer, **kwargs)

    def __call__(  # type: ignore[override]
        self, images: Any, text: str | Sequence[str], mode: str | None = None, **kwargs: Any
    ) -> BatchFeature:
        """Prepare one page or several, as images, paths or URLs, and one prompt or several."""
        images = images if isinstance(images, (list, tuple)) else [images]
        text = [text] if isinstance(text, str) else text
        pages = [load_image(image) for image in images]  # It turns them by their EXIF orientation.
        counts = [self.image_processor.get_number_of_image_tokens(page.height, page.width, mode) for page in pages]
        found = sum(prompt.count(IMAGE_TOKEN) for prompt in text)
        if found != len(pages):
            raise ValueError(f"text has {found} times {IMAGE_TOKEN}, but there are {len(pages)} images.")
        left = iter(counts)
        expanded = []
        for prompt in text:
            start, *rest = prompt.split(IMAGE_TOKEN)
            expanded.append(start + "".join(IMAGE_TOKEN * next(left) + part for part in rest))
        data = self.tokenizer(expanded, padding=True, return_tensors="pt", **kwargs)
        prepared = self.image_processor(pages, mode=mode, return_tensors="pt") if pages else {}
        names = ("input_ids", "attention_mask")
        return BatchFeature({name: data[name] for name in names} | dict(prepared))


class PageReader(PreTrainedModel, GenerationMixin):
    """The encoder, a linear layer between the two widths, and a language model."""

    config: PageReaderConfig
    config_class = PageReaderConfig
    base_model_prefix = "page_reader"
    input_modalities = ["image", "text"]
    supports_gradient_checkpointing = True
    _supports_sdpa = True
    _no_split_modules: list[str] = []

    def __init__(self, config: PageReaderConfig) -> None:
        super().__init__(config)
        self.vision_tower = AutoModel.from_config(config.vision_config)
        self.connector = nn.Linear(config.vision_config.projection_dim, config.text_config.hidden_size)
        self.language_model = AutoModelForCausalLM.from_config(config.text_config)
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        return self.language_model.get_input_embeddings()

    def set_input_embeddings(self, value: nn.Module) -> None:
        self.language_model.set_input_embeddings(value)

    def get_image_features(self, pixel_values: torch.Tensor, **pages: Any) -> list[torch.Tensor]:
        """Return the vision tokens of each page, `(length, projection_dim)`."""
        features = self.vision_tower.get_image_features(pixel_values, **pages, return_dict=True)
        return features.pooler_output

    def embed_prompt(self, input_ids: torch.Tensor, vision_tokens: Sequence[torch.Tensor]) -> torch.Tensor:
        """Embed prompts, with the pages' vision tokens in the place of the placeholders.

        Args:
            input_ids: `(batch, length)`.
            vision_tokens: what `get_image_features` returned, or `deepencoder extract` stored.

        Returns:
            `(batch, length, hidden)`: the `inputs_embeds` of `forward` and `generate`.
        """
        embeds = self.get_input_embeddings()(input_ids)
        weight = next(self.connector.parameters())
        projected = [self.connector(tokens.to(weight.device, weight.dtype)) for tokens in vision_tokens]
        return insert_vision_tokens(embeds, input_ids, projected, self.config.image_token_id)

    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        pixel_values: torch.Tensor | None = None,
        pixel_values_local: torch.Tensor | None = None,
        patches_grid: torch.Tensor | None = None,
        num_local_patches: torch.Tensor | None = None,
        inputs_embeds: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        **kwargs: Any,
    ) -> CausalLMOutputWithPast:
        """Predict the next tokens; all further arguments, such as `labels`, are the language model's."""
        if pixel_values is not None:
            pages = {
                "pixel_values_local": pixel_values_local,
                "patches_grid": patches_grid,
                "num_local_patches": num_local_patches,
            }
            inputs_embeds = self.embed_prompt(input_ids, self.get_image_features(pixel_values, **pages))
        if inputs_embeds is None:
            inputs_embeds = self.get_input_embeddings()(input_ids)
        return self.language_model(
            inputs_embeds=inputs_embeds, attention_mask=attention_mask, position_ids=position_ids, **kwargs
        )

    def prepare_inputs_for_generation(  # type: ignore[override]
        self, *args: Any, inputs_embeds: Any = None, is_first_iteration: bool = False, **kwargs: Any
    ) -> Any:
        kwargs |= {"inputs_embeds": inputs_embeds, "is_first_iteration": is_first_iteration}
        inputs = super().prepare_inputs_for_generation(*args, **kwargs)
        if not is_first_iteration and kwargs.get("use_cache", True):
            for name in ("pixel_values", "pixel_values_local", "patches_grid", "num_local_patches"):
                inputs.pop(name, None)  # The pages are in the cache.
        return inputs


AutoConfig.register("page_reader", PageReaderConfig, exist_ok=True)
AutoModelForImageTextToText.register(PageReaderConfig, PageReader, exist_ok=True)
AutoProcessor.register(PageReaderConfig, PageReaderProcessor, exist_ok=True)


def make_tokenizer(words: Sequence[str]) -> PreTrainedTokenizerFast:
    """Make a tokenizer of whole words, for demonstrations. With a real language model, use its own and add a token."""
    vocabulary = {word: index for index, word in enumerate(["<pad>", "<eos>", "<unk>", IMAGE_TOKEN, *words])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        eos_token="<eos>",
        unk_token="<unk>",
        extra_special_tokens={"image_token": IMAGE_TOKEN},
        padding_side="left",
    )


def make_tiny_reader(words: Sequence[str]) -> tuple[PageReader, PageReaderProcessor]:
    """Make a small model with random weights, and its processor, whose pages have 128 pixels and 7 vision tokens."""
    tokenizer = make_tokenizer(words)
    text_config = {
        "model_type": "llama",
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "vocab_size": len(tokenizer),
        "pad_token_id": tokenizer.pad_token_id,
        "eos_token_id": tokenizer.eos_token_id,
    }
    image_token_id = tokenizer.convert_tokens_to_ids(IMAGE_TOKEN)
    config = PageReaderConfig(
        vision_config=DeepEncoderConfig.tiny(), text_config=text_config, image_token_id=image_token_id
    )
    image_processor = DeepEncoderImageProcessor(size={"height": 128, "width": 128})
    return PageReader(config), PageReaderProcessor(image_processor, tokenizer)


def main() -> None:
    torch.manual_seed(0)
    words = ["read", "black", "white"]
    model, processor = make_tiny_reader(words)
    pages = [Image.new("RGB", (300, 400), color) for color in ("black", "white")]
    inputs = processor(pages, [f"{IMAGE_TOKEN} read black", f"{IMAGE_TOKEN} read white"])
    labels = inputs["input_ids"].clone()
    labels[:, :-1] = -100  # Only the answer, the last token, counts.

    model.vision_tower.sam_encoder.requires_grad_(False)
    optimizer = torch.optim.AdamW([part for part in model.parameters() if part.requires_grad], lr=3e-3)
    for step in range(20):
        loss = model(**inputs, labels=labels).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        if step % 5 == 4:
            print(f"step {step + 1}: loss {loss.item():.3f}")

    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        processor.save_pretrained(folder)
        model = AutoModelForImageTextToText.from_pretrained(folder)
        processor = AutoProcessor.from_pretrained(folder)
    inputs = processor(pages, [f"{IMAGE_TOKEN} read"] * 2)
    answers = model.generate(**inputs, max_new_tokens=1, do_sample=False)
    print(processor.batch_decode(answers[:, inputs["input_ids"].shape[1] :]))


if __name__ == "__main__":
    main()
