"""``python -m DRDMLib.probe``: run :mod:`DRDMLib.runtime.probe`."""

if __name__ == "__main__":
    from .runtime.search_path import look_elsewhere_first

    look_elsewhere_first()

    from .runtime.probe import main

    main()
