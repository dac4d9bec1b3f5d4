"""What the three models share beyond transformers' own base class: where they come from, and how they are shared.

Unusual: a model that is pushed to the Hub takes its code along, so that it loads where this package is not installed;
one that is saved to a folder does so when it is told to.
"""

import os
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel
from transformers.utils import CONFIG_NAME

from ..configuration.package_services import call_service
from ..configuration.remote_code import flat_name, register_remote_code, settle_auto_map

__all__ = ["DeepEncoderPreTrainedModel"]


class DeepEncoderPreTrainedModel(PreTrainedModel):
    """The base of the three models."""

    @classmethod
    def from_original(cls, source: str | Path, **kwargs: Any) -> Any:
        r"""Load the encoder out of a checkpoint of other code, such as `deepseek-ai/DeepSeek-OCR`.

        What the checkpoint is is told by the names of its tensors. Of a model on the Hub only the encoder's bytes are
        downloaded; what is made of them is compared with transformers' class for the original where there is one, and
        kept in the Hub's cache. A local checkpoint is converted in memory, and only the encoder's tensors are read.

        Args:
            source: a Hub id, a folder, or a `.safetensors`, `.pth`, `.pt` or `.bin` file. No code of a pickle is run.
            kwargs: `revision`, `token`, `cache_dir`, `local_files_only` and `force_download`, as in `from_pretrained`;
                `full_download=True` to download whole files (for a server that knows no ranges of bytes);
                `verify=False` to compare nothing, `verify=True` to insist; `num_attention_heads`, `hidden_act` and
                `layer_norm_eps` of a CLIP or ViT tower, where nothing tells them. All others are
                `from_pretrained`'s: `dtype`, `device_map`, `attn_implementation` and so on.

        Returns:
            a model of this class, in evaluation mode and in the checkpoint's dtype.

        Raises:
            `ValueError`: an unknown, damaged or quantised checkpoint, one that holds a model of another class, or one
                that the converted model differs from.
            `OSError`: there is no such source, or it cannot be reached.
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
        """Write weights and configuration: transformers' `save_pretrained`.

        Args:
            save_directory: the folder.
            self_contained: write the code, an image processor and a model card, too, where they are missing: the
                folder loads with `trust_remote_code=True` where this package is not installed. (A model that came with
                its own code takes that along in any case, and nothing else.)
            push_to_hub: push the folder to `repo_id`, else to its own name, with all that.
            args, kwargs: see transformers.

        Raises:
            `ValueError`: a model that cannot be shared with its code: quantised, with adapters, or of a subclass.
        """
        register_remote_code(type(self), "AutoModel")
        with_code_of_its_own = self._auto_class is not None
        if (self_contained or push_to_hub) and not with_code_of_its_own:
            call_service("check_shareable", self)
        if push_to_hub:
            names = ("repo_id", "commit_message", "private", "token", "create_pr", "revision", "tags")
            hub = {name: kwargs.pop(name) for name in names if name in kwargs}
            self.save_pretrained(save_directory, *args, self_contained=self_contained, **kwargs)
            repo_id = hub.pop("repo_id", Path(save_directory).resolve().name)
            if with_code_of_its_own:
                self.push_to_hub(repo_id, **hub)
            else:
                call_service("push_folder", save_directory, repo_id, **hub)
            return
        super().save_pretrained(save_directory, *args, **kwargs)
        folder = Path(save_directory)
        if not (folder / CONFIG_NAME).is_file():
            return  # another process writes, or adapters were saved
        names_here = {"AutoConfig": flat_name(type(self.config)), "AutoModel": flat_name(type(self))}
        settle_auto_map(folder / CONFIG_NAME, **names_here)
        if self_contained and not with_code_of_its_own:
            call_service("complete_folder", folder, self)

    def push_to_hub(  # type: ignore[override]
        self, repo_id: str, *, tags: list[str] | None = None, max_shard_size: int | str | None = "50GB", **kwargs: Any
    ) -> str:
        """Share the model with its code, an image processor and a model card: transformers' `push_to_hub`.

        Args:
            repo_id: `name` or `owner/name`.
            tags: more tags for the model card.
            max_shard_size: as in `save_pretrained`.
            kwargs: `private`, `token`, `revision`, `create_pr`, `commit_message`, `commit_description`.

        Returns:
            the address of the commit.
        """
        kwargs |= {} if tags is None else {"tags": tags}
        register_remote_code(type(self), "AutoModel")
        # One that came with its code may be where the package is not; adapters are pushed by themselves.
        if self._auto_class is not None or getattr(self, "_hf_peft_config_loaded", False):
            return super().push_to_hub(repo_id, max_shard_size=max_shard_size, **kwargs)  # type: ignore[arg-type]
        return call_service("push_model", self, repo_id, max_shard_size=max_shard_size, **kwargs)
