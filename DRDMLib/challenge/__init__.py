"""Test registration programs: pairs of images with a known transform between them, and the score of a result."""
