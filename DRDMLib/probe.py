"""``python -m DRDMLib.probe``: run :mod:`DRDMLib.runtime.probe`."""

from .runtime.probe import main

if __name__ == "__main__":
    main()
