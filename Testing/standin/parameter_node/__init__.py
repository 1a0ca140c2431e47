"""`slicer.parameterNodeWrapper`: typed access to a parameter node and its link to the panel.

Imitates Base/Python/slicer/parameterNodeWrapper of Slicer: `wrapper.py`, `serializers.py`, `validators.py`,
`guiConnectors.py`, `default.py`. Left out, and refused where met: parameter packs, tuples, dicts, `Any`, colours,
custom serializers and connectors, automatic creation of a panel.
"""

from .connectors import Decimals, GuiConnector, SingleStep, createGuiConnector
from .validators import (
    Choice,
    Default,
    Exclude,
    IsInstance,
    Maximum,
    Minimum,
    NotNone,
    RangeBounds,
    Validator,
    WithinRange,
)
from .wrapper import (
    SlicerParameterNamePropertyName,
    findChildWidgetForParameter,
    isParameterNodeWrapper,
    parameterNodeWrapper,
)

__all__ = [
    "Choice",
    "Decimals",
    "Default",
    "Exclude",
    "GuiConnector",
    "IsInstance",
    "Maximum",
    "Minimum",
    "NotNone",
    "RangeBounds",
    "SingleStep",
    "SlicerParameterNamePropertyName",
    "Validator",
    "WithinRange",
    "createGuiConnector",
    "findChildWidgetForParameter",
    "isParameterNodeWrapper",
    "parameterNodeWrapper",
]
