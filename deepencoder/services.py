"""The services that models and image processors call by name; see `configuration/package_services.py`.

Unusual: each service is a row of a table, and its module is imported when the service is first called.
"""

from collections.abc import Callable
from importlib import import_module
from typing import Any

__all__ = ["SERVICES"]


def _service(module: str, name: str) -> Callable[[], Callable[..., Any]]:
    return lambda: getattr(import_module(module, __package__), name)


SERVICES = {
    name: _service(module, name)
    for module, names in {
        ".conversion.from_original": ("load_original", "load_original_image_processor"),
        ".conversion.halves": ("join_halves",),
        ".runtimes.exported_model": ("load_exported",),
        ".sharing.repository": ("check_shareable", "complete_folder"),
        ".sharing.upload": ("push_folder", "push_model", "push_part"),
    }.items()
    for name in names
}
