"""Containers of pages, one module each; `kinds.py` holds the table that recognises them.

To add a kind of source, write a module with a function that lists its pages, and add a row to `kinds.SOURCE_KINDS`. A
page that is not an encoded image needs a subclass of [`Page`] that reads it (see `pdf.py`).
"""
