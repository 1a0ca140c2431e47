"""Prove that a field is invertible, repair it where it is not, invert and measure it."""
