"""The method on tensors: displacement fields, the forward process, recovery.

Imports nothing of images, files or models but for types, so that it can be read beside the paper.
"""
