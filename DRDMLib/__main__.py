"""``python -m DRDMLib``: the same as the ``drdm`` command."""

import sys

from .cli import main

if __name__ == "__main__":
    sys.exit(main())
