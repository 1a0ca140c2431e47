"""The method on tensors: displacement fields, the forward process, recovery.

Imports images, files and models only as types, so that it can be read beside the paper.
"""
