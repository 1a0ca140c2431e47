"""Algorithms 3 and 4 over a whole dataset: planned, shared among processes, resumed, checked and recorded.

What depends on what: ``plan`` says which samples there are, ``sources`` reads a case, ``sampling`` makes one sample
within ``limits``, ``records`` tell how, ``run`` drives it all, ``layouts`` and ``quality`` describe the result.
"""
