"""Corpora: pages from any source, through the model, into shards of features."""
