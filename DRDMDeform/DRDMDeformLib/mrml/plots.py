"""A loss curve as a Slicer plot: tables, plot series, and a chart."""

from __future__ import annotations

from typing import Any

import vtk

from .volumes import newNode

# Attribute of the nodes of a curve: title and part.
_PART = "DRDM.lossCurve"
_COLORS = {"loss": (0.12, 0.47, 0.71), "validation": (0.90, 0.45, 0.05)}


class LossCurve:
    """The training loss, and the loss on validation images if there is one.

    If the scene already has a curve with the same title (from an earlier run or a loaded scene), its nodes are cleared
    and used again, so that it stays visible in a plot view. Each loss has its own table, since their steps differ.

    Attributes:
        chartNode: the chart for a plot view.
        tableNodes, seriesNodes: nodes by ``"loss"`` and ``"validation"``.

    Args:
        scene: where the nodes are added.
        title: of the chart.
    """

    def __init__(self, scene: Any, title: str) -> None:
        self.scene = scene
        self._title = title
        self.chartNode = self._node("vtkMRMLPlotChartNode", "chart")
        self.tableNodes: dict[str, Any] = {}
        self.seriesNodes: dict[str, Any] = {}
        for curve, color in _COLORS.items():
            table = self.tableNodes[curve] = self._node("vtkMRMLTableNode", f"{curve} table")
            table.SetAndObserveTable(_emptyTable(curve))
            series = self.seriesNodes[curve] = self._node("vtkMRMLPlotSeriesNode", curve)
            series.SetPlotType(series.PlotTypeScatter)
            series.SetAndObserveTableNodeID(table.GetID())
            series.SetXColumnName("step")
            series.SetYColumnName(curve)
            series.SetColor(*color)
            series.SetLineStyle(series.LineStyleSolid)
            series.SetMarkerStyle(series.MarkerStyleNone if curve == "loss" else series.MarkerStyleCircle)
        self.chartNode.RemoveAllPlotSeriesNodeIDs()
        self.chartNode.AddAndObservePlotSeriesNodeID(self.seriesNodes["loss"].GetID())
        self.chartNode.SetTitle(title)
        self.chartNode.SetXAxisTitle("step")
        self.chartNode.SetYAxisTitle("loss")

    def append(self, step: int, loss: float, validation: float | None = None) -> None:
        """Add a point to the loss curve, and to the validation curve if there is a value."""
        self._add("loss", step, loss)
        if validation is not None:
            if self.chartNode.GetNumberOfPlotSeriesNodes() == 1:
                self.chartNode.AddAndObservePlotSeriesNodeID(self.seriesNodes["validation"].GetID())
            self._add("validation", step, validation)

    def remove(self) -> None:
        """Remove all nodes of the curve."""
        for node in (self.chartNode, *self.seriesNodes.values(), *self.tableNodes.values()):
            if node.GetScene() is self.scene:
                self.scene.RemoveNode(node)

    def _add(self, curve: str, step: int, value: float) -> None:
        table = self.tableNodes[curve].GetTable()
        table.GetColumn(0).InsertNextValue(float(step))
        table.GetColumn(1).InsertNextValue(float(value))
        table.Modified()
        self.tableNodes[curve].Modified()

    def _node(self, className: str, part: str) -> Any:
        """Find a node of the curve in the scene, or create it."""
        tag = f"{self._title}/{part}"
        for n in range(self.scene.GetNumberOfNodesByClass(className)):
            node = self.scene.GetNthNodeByClass(n, className)
            if node.GetAttribute(_PART) == tag:
                return node
        node = newNode(self.scene, className, f"{self._title} {part}")
        node.SetAttribute(_PART, tag)
        return node


def _emptyTable(curve: str) -> Any:
    table = vtk.vtkTable()
    for name in ("step", curve):
        column = vtk.vtkDoubleArray()
        column.SetName(name)
        table.AddColumn(column)
    return table
