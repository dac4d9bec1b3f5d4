"""The recipe that trained the page reader, the small DeepEncoder that ships with the package.

Unusual: nothing here is installed with the package. Run it from a checkout, as `python -m training.train`.
"""
