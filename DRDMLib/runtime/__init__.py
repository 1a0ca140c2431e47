"""The computer that does the work: devices, threads, processes, and what of them is usable."""
