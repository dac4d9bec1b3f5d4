"""The commands of `deepencoder`."""
