"""A loss curve as Slicer's own plot: tables, their series, and a chart."""

from __future__ import annotations

from typing import Any

import vtk

from .volumes import newNode

_PART = "DRDM.lossCurve"
_COLORS = {"loss": (0.12, 0.47, 0.71), "validation": (0.90, 0.45, 0.05)}


class LossCurve:
    """The loss of a training as it runs, and the loss on images held back if there is one.

    A curve of the same title that is in the scene already (from an earlier start, or a loaded scene) is emptied and
    used again, so that a plot view that shows it goes on showing it. The two curves have a table each, as their steps
    differ.

    Attributes:
        chartNode: what a plot view shows.
        tableNodes, seriesNodes: ``"loss"`` and ``"validation"``.

    Args:
        scene: where the nodes are.
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
        """Adds a point to the curve, and one to that of the validation if there is a value."""
        self._add("loss", step, loss)
        if validation is not None:
            if self.chartNode.GetNumberOfPlotSeriesNodes() == 1:
                self.chartNode.AddAndObservePlotSeriesNodeID(self.seriesNodes["validation"].GetID())
            self._add("validation", step, validation)

    def remove(self) -> None:
        """Removes all nodes of the curve."""
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
        """The node that is this part of the curve, found in the scene or made."""
        mark = f"{self._title}/{part}"
        for n in range(self.scene.GetNumberOfNodesByClass(className)):
            node = self.scene.GetNthNodeByClass(n, className)
            if node.GetAttribute(_PART) == mark:
                return node
        node = newNode(self.scene, className, f"{self._title} {part}")
        node.SetAttribute(_PART, mark)
        return node


def _emptyTable(curve: str) -> Any:
    table = vtk.vtkTable()
    for name in ("step", curve):
        column = vtk.vtkDoubleArray()
        column.SetName(name)
        table.AddColumn(column)
    return table
