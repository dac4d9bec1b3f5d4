"""What the models share beyond transformers' base class: loading original checkpoints, and sharing with their code.

Unusual: a model that is pushed to the Hub is accompanied by its code, so that it loads where this package is not
installed. A model that is saved to a folder is so on request.
"""

import os
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel
from transformers.utils import CONFIG_NAME

from ..configuration.package_services import call_service
from ..configuration.remote_code import flat_name, register_remote_code, settle_auto_map
from .quantization import check_saves_again, loads_again
from .slow_dtypes import warn_if_slow

__all__ = ["DeepEncoderPreTrainedModel"]


class DeepEncoderPreTrainedModel(PreTrainedModel):
    """Base class of the models in this package."""

    @classmethod
    def from_pretrained(cls, *args: Any, **kwargs: Any) -> Any:
        """Load a model as transformers' `from_pretrained` does.

        It warns once if the model will run on a CPU without instructions for its dtype.
        """
        loaded = super().from_pretrained(*args, **kwargs)
        warn_if_slow(
            loaded[0] if isinstance(loaded, tuple) else loaded
        )  # The other one holds facts about the loading.
        return loaded

    @classmethod
    def from_original(cls, source: str | Path, **kwargs: Any) -> Any:
        r"""Load the encoder from a checkpoint of other code, such as `deepseek-ai/DeepSeek-OCR`.

        The format is recognised from the tensor names. From a model on the Hub only the encoder's bytes are
        downloaded. The converted model is compared with transformers' implementation of the original, where there is
        one, and kept in the Hub's cache. A local checkpoint is converted in memory, and only the encoder's tensors
        are read.

        Args:
            source (`str` or `Path`): a Hub id, a folder, or a `.safetensors`, `.pth`, `.pt` or `.bin` file. Code in
                pickles is never run.
            kwargs: `revision`, `token`, `cache_dir`, `local_files_only` and `force_download`, as in
                `from_pretrained`; `full_download=True` to download whole files, for a server without support for byte
                ranges; `verify=False` to skip the comparison, `verify=True` to fail if it is impossible;
                `num_attention_heads`, `hidden_act` and `layer_norm_eps` of a CLIP or ViT tower, if the checkpoint
                does not tell them. All others are those of `from_pretrained`: `dtype`, `device_map`,
                `attn_implementation` and so on.

        Returns:
            a model of this class, in evaluation mode and in the dtype of the checkpoint.

        Raises:
            `ValueError`: the checkpoint is unknown, damaged or quantised, holds a model of another class, or the
                converted model differs from the original.
            `OSError`: the source does not exist, or cannot be reached.
        """
        return call_service("load_original", cls, source, **kwargs)

    def save_pretrained(
        self,
        save_directory: str | os.PathLike[Any],
        *args: Any,
        self_contained: bool = False,
        push_to_hub: bool = False,
        **kwargs: Any,
    ) -> None:
        """Save weights and configuration to a folder, as transformers' `save_pretrained`.

        Args:
            save_directory: the folder. It is created if it does not exist.
            self_contained: also write the code, an image processor and a model card, where they are missing. The
                folder then loads with `trust_remote_code=True` where this package is not installed. (A model that was
                itself loaded by code in its repository always saves that code, and nothing else.)
            push_to_hub: push all of these to `repo_id`, by default the name of the folder.
            args, kwargs: as in transformers.

        Raises:
            `ValueError`: the model cannot be shared with its code: it is quantised, has adapters, or is of a subclass.
                Or torchao quantised it outside of `from_pretrained`.
        """
        register_remote_code(type(self), "AutoModel")
        is_remote_code = self._auto_class is not None
        if (self_contained or push_to_hub) and not is_remote_code:
            call_service("check_shareable", self)
        if push_to_hub:
            names = ("repo_id", "commit_message", "private", "token", "create_pr", "revision", "tags")
            hub = {name: kwargs.pop(name) for name in names if name in kwargs}
            self.save_pretrained(save_directory, *args, self_contained=self_contained, **kwargs)
            repo_id = hub.pop("repo_id", Path(save_directory).resolve().name)
            if is_remote_code:
                self.push_to_hub(repo_id, **hub)
            else:
                call_service("push_folder", save_directory, repo_id, **hub)
            return
        if kwargs.get("state_dict") is None and not getattr(self, "_hf_peft_config_loaded", False):
            check_saves_again(self)
        if getattr(self, "hf_quantizer", None) is not None:
            # There is no other format. transformers cannot undo how torchao restored the weights of a saved model.
            kwargs["save_original_format"] = False
        with loads_again(self):
            super().save_pretrained(save_directory, *args, **kwargs)
        folder = Path(save_directory)
        if not (folder / CONFIG_NAME).is_file():
            return  # Another process writes the files, or only adapters were saved.
        names_here = {"AutoConfig": flat_name(type(self.config)), "AutoModel": flat_name(type(self))}
        settle_auto_map(folder / CONFIG_NAME, **names_here)
        if self_contained and not is_remote_code:
            call_service("complete_folder", folder, self)

    def push_to_hub(  # type: ignore[override]
        self, repo_id: str, *, tags: list[str] | None = None, max_shard_size: int | str | None = "50GB", **kwargs: Any
    ) -> str:
        """Push the model to the Hub with its code, an image processor and a model card.

        Args:
            repo_id: `name` or `owner/name`; the repository is created if it does not exist.
            tags: tags of the model card, beside the usual ones.
            max_shard_size: size of the largest file of weights, as in `save_pretrained`.
            kwargs: `private`, `token`, `revision`, `create_pr`, `commit_message` and `commit_description`, as in
                transformers' `push_to_hub`, and `license`, the licence of the weights for the model card.

        Returns:
            the address of the commit.
        """
        kwargs |= {} if tags is None else {"tags": tags}
        register_remote_code(type(self), "AutoModel")
        # A model that was loaded by code in its repository may be used without the package. Adapters are pushed alone.
        if self._auto_class is not None or getattr(self, "_hf_peft_config_loaded", False):
            return super().push_to_hub(repo_id, max_shard_size=max_shard_size, **kwargs)  # type: ignore[arg-type]
        return call_service("push_model", self, repo_id, max_shard_size=max_shard_size, **kwargs)
