"""The computer that DRDM runs on: devices, threads, processes, and what works on it."""
