"""Sharing models on the Hub: what a repository holds, its model card, and the upload."""
