"""`slicer.parameterNodeWrapper`: typed access to a parameter node and its link to the panel.

Imitates Base/Python/slicer/parameterNodeWrapper of Slicer: `wrapper.py`, `serializers.py`, `validators.py`,
`guiConnectors.py`, `default.py`. Types, annotations and widgets that the panel does not use are refused.
"""

from .serializers import Default, WithinRange
from .wrapper import parameterNodeWrapper

__all__ = ["Default", "WithinRange", "parameterNodeWrapper"]
