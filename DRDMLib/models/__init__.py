"""Models: a network with its metadata, and the catalog of those that are available."""
