"""Checkpoints of other code: what their keys are called here."""
