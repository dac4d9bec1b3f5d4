"""The encoder inside other people's models and libraries."""

from ..lazy import lazy_attributes

__all__: list[str] = []

__getattr__, __dir__ = lazy_attributes(__name__, {})
