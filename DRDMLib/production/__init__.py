"""Run Algorithms 3 and 4 over a whole dataset, with several processes, resuming, limits and records.

``plan`` lists the samples, ``sources`` reads a case, ``sampling`` makes one sample within ``limits``, ``records``
describe how each sample was made, ``run`` controls the run, and ``layouts`` and ``quality`` describe the result.
"""
