"""What models and image processors need from the rooms above them: converting original checkpoints, and sharing.

Unusual: imports point from the conversion and sharing rooms down to the models, and a model repository on the Hub
holds the models without those rooms. So the package registers its services here when it is imported, and a model calls
them by name. Code that was loaded from a repository finds no services, and says that the package is needed.
"""

from collections.abc import Callable
from typing import Any

__all__ = ["call_service", "provide_services"]

_services: dict[str, Callable[[], Callable[..., Any]]] = {}


def provide_services(services: dict[str, Callable[[], Callable[..., Any]]]) -> None:
    """Register services. Each value imports the function that does the work, and returns it."""
    _services.update(services)


def call_service(name: str, *args: Any, **kwargs: Any) -> Any:
    """Call a service of the installed package.

    Raises:
        `ImportError`: the code was loaded from a model repository, and the package is not installed or not imported.
    """
    if name not in _services:
        raise ImportError(
            f"{name} needs the deepencoder package: install the package, import deepencoder, and load the model again."
        )
    return _services[name]()(*args, **kwargs)
