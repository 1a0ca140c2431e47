"""The MRML widgets that the panel uses, over the real scene.

Imitates Slicer/Slicer, Libs/MRML/Widgets: `qMRMLWidget.cxx`, `qMRMLNodeComboBox.cxx` with what it needs of
`qMRMLSceneModel.cxx` (which nodes, in which order, when the list is renewed) and `qMRMLSortFilterProxyModel.cxx`
(which of them are shown), `qMRMLCheckableNodeComboBox.cxx`.
"""

from __future__ import annotations

from typing import Any, ClassVar

import vtk
from PySide6 import QtGui, QtWidgets
from PySide6.QtCore import Qt, Signal
from slicer.util import VTKObservationMixin

from .pythonqt import invokable, stored

_NODE_ID = Qt.ItemDataRole.UserRole + 1


class qMRMLWidget(QtWidgets.QWidget):
    """A widget that knows its scene."""

    mrmlSceneChanged = Signal(object)
    cpp_signals: ClassVar[dict[str, str]] = {"mrmlSceneChanged(vtkMRMLScene*)": "mrmlSceneChanged(PyObject)"}

    def __init__(self, parent: QtWidgets.QWidget | None = None) -> None:
        super().__init__(parent)
        self._scene: Any = None

    @invokable("vtkMRMLScene*")
    def setMRMLScene(self, scene: Any) -> None:
        if scene is not self._scene:
            self._scene = scene
            self.mrmlSceneChanged.emit(scene)


class qMRMLNodeComboBox(QtWidgets.QWidget):
    """A combo box of the nodes of the scene: an optional "None", then the nodes in the order of the scene.

    What is current is left to a real QComboBox over a real model, as in the original, with these consequences:

    - When the scene is set, the first node becomes current, unless `noneEnabled` (then it is None).
    - A node that is added later becomes current only if the list was quite empty.
    - When the current node goes, another node of the list becomes current, if there is one.
    - A scene that is imported or closed empties the list and fills it anew: the current node is lost and
      `currentNodeChanged` is emitted, even if the node is still there.

    Entries that create or delete nodes are not imitated: `addEnabled` and `removeEnabled` must be off.
    """

    currentNodeChanged = Signal((object,), (bool,))
    cpp_signals: ClassVar[dict[str, str]] = {
        "currentNodeChanged(vtkMRMLNode*)": "currentNodeChanged(PyObject)",
        "currentNodeChanged(bool)": "currentNodeChanged(bool)",
    }
    _combo_box_class: type[QtWidgets.QComboBox] = QtWidgets.QComboBox

    def __init__(self, parent: QtWidgets.QWidget | None = None) -> None:
        super().__init__(parent)
        self._scene: Any = None
        self._switching = False
        self._observers = observers = VTKObservationMixin()
        self.destroyed.connect(lambda *_: observers.removeObservers())
        self._model = QtGui.QStandardItemModel(self)
        self.combobox = self._combo_box_class(self)
        self.combobox.setModel(self._model)
        policy = QtWidgets.QSizePolicy.Policy
        self.combobox.setSizePolicy(policy.Expanding, policy.Expanding)
        self.setSizePolicy(policy.Preferred, policy.Fixed)
        layout = QtWidgets.QHBoxLayout(self)
        layout.setContentsMargins(0, 0, 0, 0)
        layout.addWidget(self.combobox)
        self.combobox.currentTextChanged.connect(self._emit_current)
        self.setEnabled(False)

    def _none_changed(self) -> None:
        if self._scene is None:
            return
        if self.noneEnabled:
            self._model.insertRow(0, QtGui.QStandardItem("None"))
        else:
            self._model.removeRow(0)
            self._select_if_gone()

    nodeTypes = stored("QStringList", [], lambda self: self._sync())
    showChildNodeTypes = stored(bool, True, lambda self: self._sync())
    noneEnabled = stored(bool, False, _none_changed)
    addEnabled = stored(bool, True)
    removeEnabled = stored(bool, True)

    # the list

    def _accepts(self, node: Any) -> bool:
        """qMRMLSortFilterProxyModel::filterAcceptsNode."""
        if node.GetHideFromEditors():
            return False
        if self.showChildNodeTypes:
            return not self.nodeTypes or any(node.IsA(kind) for kind in self.nodeTypes)
        return node.GetClassName() in self.nodeTypes

    def _first_row(self) -> int:
        return 1 if self.noneEnabled and self._scene is not None else 0

    def _ids(self) -> list[str | None]:
        return [self._model.item(row).data(_NODE_ID) for row in range(self._model.rowCount())]

    def _sync(self, *_: Any) -> None:
        """Bring the list in line with the scene; rows that stay are not touched, so that the current one stays."""
        if self._scene is None or self._scene.IsClosing() or self._scene.IsImporting():
            return
        nodes = [self._scene.GetNthNode(index) for index in range(self._scene.GetNumberOfNodes())]
        wanted = {node.GetID(): node for node in nodes if node.GetID() and self._accepts(node)}
        for node in wanted.values():
            if not self._observers.hasObserver(node, vtk.vtkCommand.ModifiedEvent, self._node_modified):
                self._observers.addObserver(node, vtk.vtkCommand.ModifiedEvent, self._node_modified)
        for row, identifier in reversed(list(enumerate(self._ids()))):
            if identifier and identifier not in wanted:
                self._remove_rows(row, 1)
        for row, (identifier, node) in enumerate(wanted.items(), self._first_row()):
            item, name = self._model.item(row), node.GetName() or ""
            if item is None or item.data(_NODE_ID) != identifier:
                item = QtGui.QStandardItem(name)
                item.setData(identifier, _NODE_ID)
                self._decorate(item)
                self._model.insertRow(row, item)
            elif item.text() != name:
                item.setText(name)

    def _decorate(self, item: QtGui.QStandardItem) -> None:
        pass

    def _remove_rows(self, first: int, count: int) -> None:
        self._model.removeRows(first, count)
        # Called here and not by a signal, since the combo box has to be first.
        self._select_if_gone()

    def _select_if_gone(self) -> None:
        if self.currentNode() is None:
            self._select("")

    # the scene

    @invokable("vtkMRMLScene*")
    def setMRMLScene(self, scene: Any) -> None:
        if scene is self._scene:
            return
        if self.addEnabled or self.removeEnabled:
            raise NotImplementedError("The stand-in's node selectors make and delete no nodes; switch that off")
        self._observers.removeObservers()
        self._switching = True
        self._model.removeRows(0, self._model.rowCount())
        self._scene = scene
        if scene is not None:
            self._observers.addObserver(scene, scene.NodeAddedEvent, self._sync)
            self._observers.addObserver(scene, scene.NodeAboutToBeRemovedEvent, self._about_to_be_removed)
            self._observers.addObserver(scene, scene.EndCloseEvent, self._renew)
            self._observers.addObserver(scene, scene.EndImportEvent, self._renew)
            if self.noneEnabled:
                self._none_changed()
            self._sync()
        self._switching = False
        first = self._node_at(0)
        blocked = self.combobox.blockSignals(True)
        self.combobox.setCurrentIndex(-1)
        self.combobox.blockSignals(blocked)
        self._select(first.GetID() if first is not None else "")
        if self.combobox.currentIndex() < 0:
            self._emit_current()
        self.setEnabled(scene is not None)

    @vtk.calldata_type(vtk.VTK_OBJECT)
    def _about_to_be_removed(self, _scene: Any, _event: str, node: Any) -> None:
        if not self._scene.IsClosing() and node.GetID() in self._ids():
            self._remove_rows(self._ids().index(node.GetID()), 1)

    def _node_modified(self, *_: Any) -> None:
        self._sync()

    def _renew(self, *_: Any) -> None:
        self._observers.removeObservers(self._node_modified)
        first = self._first_row()
        if self._model.rowCount() > first:
            self._remove_rows(first, self._model.rowCount() - first)
        self._sync()

    # the current node

    def _node_at(self, row: int) -> Any:
        item = self._model.item(row) if row >= 0 else None
        identifier = item.data(_NODE_ID) if item is not None else None
        return self._scene.GetNodeByID(identifier) if identifier else None

    def _select(self, identifier: str) -> None:
        ids = self._ids()
        row = ids.index(identifier) if identifier in ids else 0 if self._first_row() else -1
        self.combobox.setCurrentIndex(row)

    def _emit_current(self, *_: Any) -> None:
        if self._switching:
            return
        index = self.combobox.currentIndex()
        node = self._node_at(index)
        if node is None and index != (0 if self.noneEnabled else -1):
            # Qt has gone on to a row that is no node.
            last = self._node_at(self._model.rowCount() - 1)
            if last is not None:
                self._select(last.GetID())
            return
        self.currentNodeChanged[object].emit(node)
        self.currentNodeChanged[bool].emit(node is not None)

    @invokable()
    def currentNode(self) -> Any:
        return self._node_at(self.combobox.currentIndex())

    @invokable("vtkMRMLNode*")
    def setCurrentNode(self, node: Any) -> None:
        self._select((node.GetID() or "") if node is not None else "")


class _CheckBoxList(QtWidgets.QComboBox):
    """A combo box that shows which of its entries are checked (ctkCheckableComboBox.cpp)."""

    def paintEvent(self, event: QtGui.QPaintEvent) -> None:
        painter = QtWidgets.QStylePainter(self)
        option = QtWidgets.QStyleOptionComboBox()
        self.initStyleOption(option)
        items = [self.model().item(row) for row in range(self.model().rowCount())]
        checked = [item.text() for item in items if item.checkState() == Qt.CheckState.Checked]
        option.currentText = "None" if not checked else "All" if len(checked) == len(items) else ", ".join(checked)
        painter.drawComplexControl(QtWidgets.QStyle.ComplexControl.CC_ComboBox, option)
        painter.drawControl(QtWidgets.QStyle.ControlElement.CE_ComboBoxLabel, option)


class qMRMLCheckableNodeComboBox(qMRMLNodeComboBox):
    """A list of nodes with check boxes. New nodes are unchecked."""

    checkedNodesChanged = Signal()
    cpp_signals: ClassVar[dict[str, str]] = {"checkedNodesChanged()": "checkedNodesChanged()"}
    addEnabled = stored(bool, False)
    removeEnabled = stored(bool, False)
    _combo_box_class = _CheckBoxList

    def __init__(self, parent: QtWidgets.QWidget | None = None) -> None:
        self._was_checked: list[str] = []
        super().__init__(parent)
        self._model.itemChanged.connect(self._checks_changed)
        self._model.rowsRemoved.connect(self._forget_removed)

    def _decorate(self, item: QtGui.QStandardItem) -> None:
        item.setCheckable(True)
        item.setCheckState(Qt.CheckState.Unchecked)

    def _with_state(self, checked: bool) -> list[str]:
        items = [self._model.item(row) for row in range(self._model.rowCount())]
        wanted = Qt.CheckState.Checked if checked else Qt.CheckState.Unchecked
        return [item.data(_NODE_ID) for item in items if item.data(_NODE_ID) and item.checkState() == wanted]

    def _checks_changed(self, *_: Any) -> None:
        now = self._with_state(True)
        if now != self._was_checked:
            self._was_checked = now
            self.checkedNodesChanged.emit()

    def _forget_removed(self, *_: Any) -> None:
        # The real list compares only when a row changes: removing a checked node emits nothing by itself.
        self._was_checked = [identifier for identifier in self._was_checked if identifier in self._ids()]

    def _nodes(self, checked: bool) -> list[Any]:
        nodes = [self._scene.GetNodeByID(identifier) for identifier in self._with_state(checked)]
        return [node for node in nodes if node is not None]

    @invokable()
    def checkedNodes(self) -> list[Any]:
        return self._nodes(True)

    @invokable()
    def uncheckedNodes(self) -> list[Any]:
        return self._nodes(False)

    @invokable("vtkMRMLNode*", "enum")
    def setCheckState(self, node: Any, state: Any) -> None:
        ids = self._ids()
        if node is not None and node.GetID() in ids:
            self._model.item(ids.index(node.GetID())).setCheckState(Qt.CheckState(state))
