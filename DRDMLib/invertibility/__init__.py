"""Invertibility of displacement fields.

``certificate`` proves that the map of a field is invertible, ``repair`` changes a field where it is not, ``inverse``
computes the inverse map, ``metrics`` measures displacement and folding.
"""
