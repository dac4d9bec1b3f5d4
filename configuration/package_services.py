"""What models and image processors ask of the rooms above them: converting originals, and sharing on the Hub.

Unusual: imports point from the conversion and sharing rooms down to the models, and a repository on the Hub takes the
models along without those rooms. So the package registers its services here when it is imported, and a model calls
them by name. Where only the Hub's copy of the code is present, a call says that the package is needed.
"""

from collections.abc import Callable
from typing import Any

__all__ = ["call_service", "provide_services"]

_services: dict[str, Callable[[], Callable[..., Any]]] = {}


def provide_services(services: dict[str, Callable[[], Callable[..., Any]]]) -> None:
    """Register services: for each name a function that imports and returns the one that does the work."""
    _services.update(services)


def call_service(name: str, *args: Any, **kwargs: Any) -> Any:
    """Call a service of the installed package.

    Raises:
        `ImportError`: this code came with a model, and the package itself is not imported.
    """
    if name not in _services:
        raise ImportError(f"{name} needs the deepencoder package: install it, and import deepencoder first.")
    return _services[name]()(*args, **kwargs)
