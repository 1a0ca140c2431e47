"""``python -m DRDMLib``: the same as the ``drdm`` command."""

import sys

if __name__ == "__main__":
    from .runtime.search_path import look_elsewhere_first

    look_elsewhere_first()

    from .cli import main

    sys.exit(main())
