"""The MRML widgets that the panel uses, over the real scene.

Imitates Slicer/Slicer, Libs/MRML/Widgets: `qMRMLWidget.cxx`, `qMRMLNodeComboBox.cxx` with what it needs of
`qMRMLSceneModel.cxx` (which nodes, in which order, when the list is renewed), `qMRMLSortFilterProxyModel.cxx` (which
of them are shown) and `qMRMLNodeFactory.cxx` (new nodes), `qMRMLCheckableNodeComboBox.cxx`.
"""

from __future__ import annotations

from typing import Any, ClassVar

import shiboken6
import slicer
import vtk
from PySide6 import QtCore, QtGui, QtWidgets
from PySide6.QtCore import Property, Qt, Signal

from .ctkwidgets import ctkComboBox
from .pythonqt import invokable
from .records import records

_NODE_ID = Qt.ItemDataRole.UserRole + 1
_EXTRA = Qt.ItemDataRole.UserRole + 2


class qMRMLWidget(QtWidgets.QWidget):
    """A widget that knows its scene (qMRMLWidget.cxx)."""

    mrmlSceneChanged = Signal(object)
    cpp_signals: ClassVar[dict[str, str]] = {"mrmlSceneChanged(vtkMRMLScene*)": "mrmlSceneChanged(PyObject)"}

    def __init__(self, parent: QtWidgets.QWidget | None = None) -> None:
        super().__init__(parent)
        self._scene: Any = None

    @invokable()
    def mrmlScene(self) -> Any:
        return self._scene

    @invokable("vtkMRMLScene*")
    def setMRMLScene(self, scene: Any) -> None:
        if scene is self._scene:
            return
        self._scene = scene
        self.mrmlSceneChanged.emit(scene)


class _Observer:
    """Observations of VTK objects that end with the widget."""

    def __init__(self, widget: QtCore.QObject) -> None:
        self._widget, self._tags = widget, []

    def add(self, vtk_object: Any, event: int, method: Any) -> None:
        widget = self._widget

        def call(caller: Any, _event: str, data: Any = None) -> None:
            if shiboken6.isValid(widget):
                method(data)

        call.CallDataType = vtk.VTK_OBJECT  # type: ignore[attr-defined]
        self._tags.append((vtk_object, vtk_object.AddObserver(event, call)))

    def clear(self) -> None:
        for vtk_object, tag in self._tags:
            vtk_object.RemoveObserver(tag)
        self._tags.clear()


class qMRMLNodeComboBox(QtWidgets.QWidget):
    """A combo box of the nodes of the scene (qMRMLNodeComboBox.cxx).

    The list holds an optional "None", the nodes in the order of the scene and the actions (create, rename, ...).
    What is current is left to a real QComboBox over a real model, as in the original, with these consequences:

    - When the scene is set, the first node becomes current, unless `noneEnabled` (then it is None).
    - A node that is added later becomes current only if the list was quite empty: no None, no actions.
    - When the current node goes, another node of the list becomes current, if there is one.
    - A scene that is imported or closed empties the list and fills it anew: the current node is lost and
      `currentNodeChanged` is emitted, even if the node is still there.
    """

    currentNodeChanged = Signal((object,), (bool,))
    currentNodeIDChanged = Signal(str)
    nodeActivated = Signal(object)
    nodeAdded = Signal(object)
    nodeAddedByUser = Signal(object)
    nodeAddedByUserAction = Signal(object)
    nodeAboutToBeRemoved = Signal(object)
    currentNodeRenamed = Signal(str)
    nodeAboutToBeEdited = Signal(object)
    cpp_signals: ClassVar[dict[str, str]] = {
        "currentNodeChanged(vtkMRMLNode*)": "currentNodeChanged(PyObject)",
        "currentNodeIDChanged(QString)": "currentNodeIDChanged(QString)",
        "nodeActivated(vtkMRMLNode*)": "nodeActivated(PyObject)",
        "currentNodeChanged(bool)": "currentNodeChanged(bool)",
        "nodeAdded(vtkMRMLNode*)": "nodeAdded(PyObject)",
        "nodeAddedByUser(vtkMRMLNode*)": "nodeAddedByUser(PyObject)",
        "nodeAddedByUserAction(vtkMRMLNode*)": "nodeAddedByUserAction(PyObject)",
        "nodeAboutToBeRemoved(vtkMRMLNode*)": "nodeAboutToBeRemoved(PyObject)",
        "currentNodeRenamed(QString)": "currentNodeRenamed(QString)",
        "nodeAboutToBeEdited(vtkMRMLNode*)": "nodeAboutToBeEdited(PyObject)",
    }

    def __init__(self, parent: QtWidgets.QWidget | None = None) -> None:
        super().__init__(parent)
        self._scene: Any = None
        self._types: list[str] = []
        self._hidden_types: list[str] = []
        self._attributes: dict[str, tuple[str, str | None]] = {}
        self._factory_attributes: dict[str, str] = {}
        self._base_names: dict[str, str] = {}
        self._type_labels: dict[str, str] = {}
        self._show_children, self._show_hidden = True, False
        self._none, self._none_text = False, "None"
        self._add = self._remove = True
        self._edit = self._rename = False
        self._select_new, self._interaction_tag = True, "Singleton"
        self._actions: list[QtGui.QAction] = []
        self._requested = ""
        self._switching = False
        self._scene_observer, self._node_observer = _Observer(self), _Observer(self)
        self._observed: set[str] = set()
        self.combobox = self._make_combobox()
        self._model = QtGui.QStandardItemModel(self)
        self.combobox.setModel(self._model)
        layout = QtWidgets.QHBoxLayout(self)
        layout.setContentsMargins(0, 0, 0, 0)
        layout.addWidget(self.combobox)
        self.combobox.setSizePolicy(QtWidgets.QSizePolicy.Policy.Expanding, QtWidgets.QSizePolicy.Policy.Expanding)
        self.setSizePolicy(QtWidgets.QSizePolicy.Policy.Preferred, QtWidgets.QSizePolicy.Policy.Fixed)
        self.combobox.currentTextChanged.connect(self._emit_current)
        self.combobox.activated.connect(self._activated)
        self._update_hint()
        self.setEnabled(False)

    def _make_combobox(self) -> QtWidgets.QComboBox:
        return ctkComboBox(self)

    # the list

    def _accepts(self, node: Any) -> bool:
        """qMRMLSortFilterProxyModel::filterAcceptsNode."""
        if not self._show_hidden and node.GetHideFromEditors():
            return False
        if not self._types:
            return True
        for node_type in self._types:
            if not node.IsA(node_type) or (not self._show_children and node.GetClassName() != node_type):
                continue
            if self._show_children and any(node.IsA(hidden) for hidden in self._hidden_types):
                return False
            if node_type in self._attributes:
                name, value = self._attributes[node_type]
                given = node.GetAttribute(name)
                return given is not None and (value is None or value == given)
            return True
        return False

    def _rows(self) -> list[str]:
        return [self._model.item(row).data(_NODE_ID) for row in range(self._model.rowCount())]

    def _wanted_nodes(self) -> list[Any]:
        if self._scene is None:
            return []
        nodes = [self._scene.GetNthNode(i) for i in range(self._scene.GetNumberOfNodes())]
        return [node for node in nodes if node.GetID() and self._accepts(node)]

    def _first_node_row(self) -> int:
        return 1 if self._none and self._scene is not None else 0

    def _sync(self, *_: Any) -> None:
        """Bring the list in line with the scene; rows that stay are not touched, so that the current one stays."""
        wanted = self._wanted_nodes()
        if self._scene is not None:
            self._observe_nodes()
        ids = [node.GetID() for node in wanted]
        for row in reversed(range(self._model.rowCount())):
            identifier = self._model.item(row).data(_NODE_ID)
            if identifier and identifier not in ids:
                self._remove_rows(row, 1)
        for offset, node in enumerate(wanted):
            row, item = self._first_node_row() + offset, self._model.item(self._first_node_row() + offset)
            if item is not None and item.data(_NODE_ID) == node.GetID():
                if item.text() != (node.GetName() or ""):
                    item.setText(node.GetName() or "")
            else:
                self._insert(row, node)

    def _remove_rows(self, first: int, count: int) -> None:
        for row in range(first, first + count):
            node = self._node_at(row)
            if node is not None:
                self.nodeAboutToBeRemoved.emit(node)
        self._model.removeRows(first, count)
        self._refresh_if_hidden()  # called here and not by a signal, since the combo box has to be first

    def _insert(self, row: int, node: Any) -> None:
        item = QtGui.QStandardItem(node.GetName() or "")
        item.setData(node.GetID(), _NODE_ID)
        item.setEditable(False)
        self._decorate(item)
        self._model.insertRow(row, item)
        self.nodeAdded.emit(node)

    def _decorate(self, item: QtGui.QStandardItem) -> None:
        pass

    def _refresh_if_hidden(self) -> None:
        if self.currentNode() is None:
            self._select("")

    def _update_none(self) -> None:
        if self._scene is None:
            return
        first = self._model.item(0)
        present = first is not None and first.data(_EXTRA) == "NONE"
        if self._none and not present:
            item = QtGui.QStandardItem(self._none_text)
            item.setData("NONE", _EXTRA)
            self._model.insertRow(0, item)
        elif self._none and first.text() != self._none_text:
            first.setText(self._none_text)
        elif not self._none and present:
            self._model.removeRow(0)
            self._refresh_if_hidden()

    def _update_actions(self) -> None:
        current = self.combobox.currentIndex()
        blocked = self.combobox.blockSignals(True)
        for row in reversed(range(self._model.rowCount())):
            if self._model.item(row).data(_EXTRA) not in (None, "NONE"):
                self._model.removeRow(row)
        if self._scene is not None:
            for text, data in self._action_texts():
                item = QtGui.QStandardItem(text)
                item.setData(data, _EXTRA)
                if data == "SEPARATOR":
                    item.setData("separator", Qt.ItemDataRole.AccessibleDescriptionRole)
                    item.setFlags(Qt.ItemFlag.NoItemFlags)
                self._model.appendRow(item)
        self.combobox.setCurrentIndex(current)
        self.combobox.blockSignals(blocked)

    def _action_texts(self) -> list[tuple[str, str]]:
        label = self._label(self._types[0] if len(self._types) == 1 else "")
        texts: list[tuple[str, str]] = []
        if self._rename:
            texts.append((f"Rename current {label}", "RENAME"))
        if self._edit:
            texts.append((f"Edit current {label}", "EDIT"))
        if self._add:
            for node_type in self._types:
                texts.append((f"Create new {self._label(node_type)}", f"CREATE/{node_type}"))
                if self._rename:
                    texts.append((f"Create new {self._label(node_type)} as...", f"CREATE_AS/{node_type}"))
        if self._remove:
            texts.append((f"Delete current {label}", "DELETE"))
        texts += [(action.text(), f"USER/{index}") for index, action in enumerate(self._actions)]
        return [("", "SEPARATOR"), *texts] if texts else []

    def _label(self, node_type: str) -> str:
        if node_type in self._type_labels:
            return self._type_labels[node_type]
        found = self._scene.GetTypeDisplayNameByClassName(node_type) if self._scene is not None and node_type else ""
        return found or "node"

    def _update_hint(self) -> None:
        if isinstance(self.combobox, ctkComboBox):
            self.combobox._set_default(f"Select a {self._label(self._types[0] if self._types else '')}")

    # the scene

    def _observe_nodes(self) -> None:
        for index in range(self._scene.GetNumberOfNodes()):
            node = self._scene.GetNthNode(index)
            if not node.GetID() or node.GetID() in self._observed:
                continue
            # Only nodes that are in the list are watched, and those that an attribute could bring into it.
            if self._accepts(node) or any(node.IsA(kind) for kind in self._attributes):
                self._observed.add(node.GetID())
                self._node_observer.add(node, vtk.vtkCommand.ModifiedEvent, self._node_modified)

    def _node_modified(self, _data: Any) -> None:
        if self._scene is not None and not (self._scene.IsClosing() or self._scene.IsImporting()):
            self._sync()

    def _scene_changed(self, _data: Any = None) -> None:
        if self._scene is not None and not (self._scene.IsClosing() or self._scene.IsImporting()):
            self._sync()

    def _node_about_to_be_removed(self, node: Any = None) -> None:
        if node is None or self._scene is None or self._scene.IsClosing():
            return
        rows = self._rows()
        if node.GetID() in rows:
            self._remove_rows(rows.index(node.GetID()), 1)

    def _scene_renewed(self, _data: Any = None) -> None:
        self._node_observer.clear()
        self._observed.clear()
        if self._count():
            self._remove_rows(self._first_node_row(), self._count())
        self._sync()

    # the current node

    def _current_id(self) -> str:
        item = self._model.item(self.combobox.currentIndex()) if self.combobox.currentIndex() >= 0 else None
        return (item.data(_NODE_ID) or "") if item is not None else ""

    def _node_at(self, row: int) -> Any:
        item = self._model.item(row) if row >= 0 else None
        identifier = item.data(_NODE_ID) if item is not None else None
        return self._scene.GetNodeByID(identifier) if identifier and self._scene is not None else None

    def _select(self, identifier: str) -> None:
        rows = self._rows()
        if identifier and identifier in rows:
            self.combobox.setCurrentIndex(rows.index(identifier))
        else:
            self.combobox.setCurrentIndex(0 if self._none and self._scene is not None else -1)

    def _emit_current(self, *_: Any) -> None:
        if self._switching:
            return
        index = self.combobox.currentIndex()
        node = self._node_at(index)
        if node is None and ((not self._none and index != -1) or (self._none and index != 0)):
            last = self._node_at(self._first_node_row() + self._count() - 1) if self._count() else None
            if last is not None:
                self._select(last.GetID())
            return
        self.currentNodeChanged[object].emit(node)
        self.currentNodeChanged[bool].emit(node is not None)
        self.currentNodeIDChanged.emit(node.GetID() if node is not None else "")

    def _activated(self, index: int) -> None:
        item = self._model.item(index)
        data = item.data(_EXTRA) if item is not None else None
        if data not in (None, "NONE"):
            self._run_action(data)
            return
        node = self._node_at(index)
        if node is not None or (self._none and index == 0):
            self.nodeActivated.emit(node)

    def _run_action(self, data: str) -> None:
        """What a click on one of the actions below the nodes does (activateExtraItem)."""
        if data.startswith("CREATE"):
            kind, node_type = data.split("/")
            name = None
            if kind == "CREATE_AS":
                name = records.text_answers.pop(0) if records.text_answers else None
                if not name:
                    return
            node = self.addNode(node_type)
            if node is not None:
                if name:
                    node.SetName(name)
                self._select(node.GetID())
                self.nodeAddedByUserAction.emit(node)
        elif data == "DELETE":
            self.removeCurrentNode()
        elif data == "EDIT":
            self.editCurrentNode()
        elif data == "RENAME":
            self.renameCurrentNode()
        elif data.startswith("USER/"):
            self._actions[int(data.split("/")[1])].trigger()

    def _count(self) -> int:
        return sum(1 for identifier in self._rows() if identifier)

    # properties

    def _get_id(self) -> str:
        node = self.currentNode()
        return node.GetID() if node is not None else ""

    def _set_id(self, identifier: str) -> None:
        if self._scene is None:
            self._requested = identifier
        self._select(identifier)

    def _get_types(self) -> list[str]:
        return list(self._types)

    def _set_types(self, types: list[str]) -> None:
        self._types = [name for name in types if name]
        self._attributes = {name: pair for name, pair in self._attributes.items() if name in self._types}
        self._sync()
        self._update_hint()
        self._update_actions()

    def _get_hidden_types(self) -> list[str]:
        return list(self._hidden_types)

    def _set_hidden_types(self, types: list[str]) -> None:
        self._hidden_types = list(types)
        self._sync()

    def _get_show_children(self) -> bool:
        return self._show_children

    def _set_show_children(self, show: bool) -> None:
        self._show_children = show
        self._sync()

    def _get_show_hidden(self) -> bool:
        return self._show_hidden

    def _set_show_hidden(self, show: bool) -> None:
        self._show_hidden = show
        self._sync()

    def _get_base_name(self) -> str:
        return self._base_names.get(self._types[0], "") if self._types else ""

    def _set_base_name(self, name: str) -> None:
        if not self._types:
            records.qt_warnings.append("qMRMLNodeComboBox::setBaseName failed: no node types have been set yet")
        for node_type in self._types:
            self._base_names[node_type] = name

    def _get_none(self) -> bool:
        return self._none

    def _set_none(self, enabled: bool) -> None:
        if self._none != enabled:
            self._none = enabled
            self._update_none()

    def _get_none_text(self) -> str:
        return self._none_text

    def _set_none_text(self, text: str) -> None:
        self._none_text = text
        self._update_none()

    def _get_add(self) -> bool:
        return self._add

    def _set_add(self, enabled: bool) -> None:
        self._add = enabled
        self._update_actions()

    def _get_remove(self) -> bool:
        return self._remove

    def _set_remove(self, enabled: bool) -> None:
        self._remove = enabled
        self._update_actions()

    def _get_edit(self) -> bool:
        return self._edit

    def _set_edit(self, enabled: bool) -> None:
        self._edit = enabled
        self._update_actions()

    def _get_rename(self) -> bool:
        return self._rename

    def _set_rename(self, enabled: bool) -> None:
        self._rename = enabled
        self._update_actions()

    def _get_select_new(self) -> bool:
        return self._select_new

    def _set_select_new(self, select: bool) -> None:
        self._select_new = select

    def _get_tag(self) -> str:
        return self._interaction_tag

    def _set_tag(self, tag: str) -> None:
        self._interaction_tag = tag

    def _get_adjust(self) -> int:
        return int(self.combobox.sizeAdjustPolicy().value)

    def _set_adjust(self, policy: int) -> None:
        self.combobox.setSizeAdjustPolicy(QtWidgets.QComboBox.SizeAdjustPolicy(policy))

    enum_properties: ClassVar[dict[str, Any]] = {"sizeAdjustPolicy": QtWidgets.QComboBox.SizeAdjustPolicy}
    currentNodeID = Property(str, _get_id, _set_id)
    nodeTypes = Property("QStringList", _get_types, _set_types)
    hideChildNodeTypes = Property("QStringList", _get_hidden_types, _set_hidden_types)
    showChildNodeTypes = Property(bool, _get_show_children, _set_show_children)
    showHidden = Property(bool, _get_show_hidden, _set_show_hidden)
    baseName = Property(str, _get_base_name, _set_base_name)
    noneEnabled = Property(bool, _get_none, _set_none)
    noneDisplay = Property(str, _get_none_text, _set_none_text)
    addEnabled = Property(bool, _get_add, _set_add)
    removeEnabled = Property(bool, _get_remove, _set_remove)
    editEnabled = Property(bool, _get_edit, _set_edit)
    renameEnabled = Property(bool, _get_rename, _set_rename)
    selectNodeUponCreation = Property(bool, _get_select_new, _set_select_new)
    interactionNodeSingletonTag = Property(str, _get_tag, _set_tag)
    sizeAdjustPolicy = Property(int, _get_adjust, _set_adjust)

    # slots and invokable functions

    @invokable()
    def mrmlScene(self) -> Any:
        return self._scene

    @invokable("vtkMRMLScene*")
    def setMRMLScene(self, scene: Any) -> None:
        if scene is self._scene:
            return
        old, had_nodes = self._current_id(), self._count() > 0
        self._scene_observer.clear()
        self._node_observer.clear()
        self._observed.clear()
        self._switching = True
        self._model.removeRows(0, self._model.rowCount())
        self._scene = scene
        if scene is not None:
            events = slicer.vtkMRMLScene
            self._scene_observer.add(scene, events.NodeAddedEvent, self._scene_changed)
            self._scene_observer.add(scene, events.NodeAboutToBeRemovedEvent, self._node_about_to_be_removed)
            self._scene_observer.add(scene, events.EndCloseEvent, self._scene_renewed)
            self._scene_observer.add(scene, events.EndImportEvent, self._scene_renewed)
            self._update_none()
            self._sync()
        self._switching = False
        self._update_actions()
        first = self._node_at(0)
        wanted = old if had_nodes else (self._requested or (first.GetID() if first is not None else ""))
        blocked = self.combobox.blockSignals(True)
        self.combobox.setCurrentIndex(-1)
        self.combobox.blockSignals(blocked)
        self._select(wanted)
        if self.combobox.currentIndex() < 0:
            self._emit_current()
        self._requested = ""
        self._update_hint()
        self.setEnabled(scene is not None)

    @invokable()
    def currentNode(self) -> Any:
        return self._node_at(self.combobox.currentIndex())

    @invokable("vtkMRMLNode*")
    def setCurrentNode(self, node: Any) -> None:
        identifier = (node.GetID() or "") if node is not None else ""
        if self._scene is None:
            self._requested = identifier
        self._select(identifier)

    @invokable("QString")
    def setCurrentNodeID(self, identifier: str) -> None:
        self._set_id(identifier)

    @invokable("int")
    def setCurrentNodeIndex(self, index: int) -> None:
        if index >= self._count():
            index = -1
        self.combobox.setCurrentIndex(index + 1 if self._none else index)

    @invokable()
    def nodeCount(self) -> int:
        return self._count() if self._scene is not None else 0

    @invokable("int")
    def nodeFromIndex(self, index: int) -> Any:
        return self._node_at(index + 1 if self._none else index)

    @invokable("QString", "QString", "QVariant", optional=1)
    def addAttribute(self, node_type: str, name: str, value: Any = None) -> None:
        self._factory_attributes[name] = "" if value is None else str(value)
        if node_type in self._types:
            self._attributes[node_type] = (name, None if value is None else str(value))
            self._sync()

    @invokable("QString", "QString")
    def removeAttribute(self, node_type: str, name: str) -> None:
        self._factory_attributes.pop(name, None)
        if self._attributes.get(node_type, ("", None))[0] == name:
            del self._attributes[node_type]
            self._sync()

    @invokable("QString", "QString")
    def setNodeTypeLabel(self, label: str, node_type: str) -> None:
        self._type_labels[node_type] = label
        if not label:
            del self._type_labels[node_type]
        self._update_hint()
        self._update_actions()

    @invokable("QString")
    def nodeTypeLabel(self, node_type: str) -> str:
        return self._label(node_type)

    @invokable("QAction*")
    def addMenuAction(self, action: QtGui.QAction) -> None:
        if action.text() not in [known.text() for known in self._actions]:
            self._actions.append(action)
            self._update_actions()

    @invokable("QString", optional=1)
    def addNode(self, node_type: str = "") -> Any:
        node_type = node_type or (self._types[0] if self._types else "")
        if self._scene is None or node_type not in self._types:
            records.qt_warnings.append(f"qMRMLNodeComboBox::addNode() attempted with node type {node_type}")
            return None
        node = self._scene.CreateNodeByClass(node_type)
        if node is None:
            return None
        node.UnRegister(None)
        base = self._base_names.get(node_type) or ("" if node.GetName() else node.GetDefaultNodeNamePrefix())
        if base:
            node.SetName(self._scene.GetUniqueNameByString(base))
        for name, value in self._factory_attributes.items():
            node.SetAttribute(name, value)
        self._scene.AddNode(node)
        if self._select_new:
            self._select(node.GetID())
        self.nodeAddedByUser.emit(node)
        return node

    @invokable()
    def removeCurrentNode(self) -> None:
        self._scene.RemoveNode(self.currentNode())

    @invokable()
    def editCurrentNode(self) -> None:
        node = self.currentNode()
        self.nodeAboutToBeEdited.emit(node)
        interaction = self._scene.GetSingletonNode(self._interaction_tag, "vtkMRMLInteractionNode")
        if interaction is not None:
            interaction.EditNode(node)

    @invokable()
    def renameCurrentNode(self) -> None:
        node, name = self.currentNode(), records.text_answers.pop(0) if records.text_answers else None
        if node is not None and name:
            node.SetName(name)
            self.currentNodeRenamed.emit(name)


class _CheckBoxList(QtWidgets.QComboBox):
    """ctkCheckableComboBox.cpp: shows which entries are checked."""

    def paintEvent(self, event: QtGui.QPaintEvent) -> None:
        painter = QtWidgets.QStylePainter(self)
        option = QtWidgets.QStyleOptionComboBox()
        self.initStyleOption(option)
        model = self.model()
        items = (
            [model.item(row) for row in range(model.rowCount())] if isinstance(model, QtGui.QStandardItemModel) else []
        )
        checked = [item.text() for item in items if item.checkState() == Qt.CheckState.Checked]
        option.currentText = "None" if not checked else "All" if len(checked) == len(items) else ", ".join(checked)
        painter.drawComplexControl(QtWidgets.QStyle.ComplexControl.CC_ComboBox, option)
        painter.drawControl(QtWidgets.QStyle.ControlElement.CE_ComboBoxLabel, option)


class qMRMLCheckableNodeComboBox(qMRMLNodeComboBox):
    """A list of nodes with check boxes (qMRMLCheckableNodeComboBox.cxx). New nodes are unchecked."""

    checkedNodesChanged = Signal()
    cpp_signals: ClassVar[dict[str, str]] = {"checkedNodesChanged()": "checkedNodesChanged()"}

    def __init__(self, parent: QtWidgets.QWidget | None = None) -> None:
        self._was_checked: list[str] = []
        super().__init__(parent)
        self._add = self._remove = self._edit = self._rename = False
        self._model.itemChanged.connect(self._checks_changed)
        self._model.rowsRemoved.connect(self._forget_removed)

    def _make_combobox(self) -> QtWidgets.QComboBox:
        return _CheckBoxList(self)

    def _decorate(self, item: QtGui.QStandardItem) -> None:
        item.setCheckable(True)
        item.setCheckState(Qt.CheckState.Unchecked)

    def _checked_ids(self) -> list[str]:
        items = [self._model.item(row) for row in range(self._model.rowCount())]
        return [i.data(_NODE_ID) for i in items if i.data(_NODE_ID) and i.checkState() == Qt.CheckState.Checked]

    def _checks_changed(self, *_: Any) -> None:
        now = self._checked_ids()
        if now != self._was_checked:
            self._was_checked = now
            self.checkedNodesChanged.emit()

    def _forget_removed(self, *_: Any) -> None:
        # The real list compares only when a row changes: removing a checked node emits nothing by itself.
        self._was_checked = [identifier for identifier in self._was_checked if identifier in self._rows()]

    def _item(self, node: Any) -> QtGui.QStandardItem | None:
        rows = self._rows()
        identifier = node.GetID() if node is not None else None
        return self._model.item(rows.index(identifier)) if identifier in rows and identifier else None

    @invokable()
    def checkedNodes(self) -> list[Any]:
        nodes = [self._scene.GetNodeByID(identifier) for identifier in self._checked_ids()]
        return [node for node in nodes if node is not None]

    @invokable()
    def uncheckedNodes(self) -> list[Any]:
        checked = self._checked_ids()
        nodes = [self._scene.GetNodeByID(i) for i in self._rows() if i and i not in checked]
        return [node for node in nodes if node is not None]

    @invokable()
    def allChecked(self) -> bool:
        return len(self._checked_ids()) == self._model.rowCount()

    @invokable()
    def noneChecked(self) -> bool:
        return not self._checked_ids()

    @invokable("vtkMRMLNode*")
    def checkState(self, node: Any) -> Qt.CheckState:
        item = self._item(node)
        return item.checkState() if item is not None else Qt.CheckState.Unchecked

    @invokable("vtkMRMLNode*", "enum")
    def setCheckState(self, node: Any, state: Any) -> None:
        item = self._item(node)
        if item is not None:
            item.setCheckState(Qt.CheckState(state))

    @invokable("vtkMRMLNode*", "bool")
    def setUserCheckable(self, node: Any, checkable: bool) -> None:
        item = self._item(node)
        if item is not None:
            flag = Qt.ItemFlag.ItemIsUserCheckable
            item.setFlags(item.flags() | flag if checkable else item.flags() & ~flag)

    @invokable("vtkMRMLNode*")
    def check(self, node: Any) -> None:
        self.setCheckState(node, Qt.CheckState.Checked)

    @invokable("vtkMRMLNode*")
    def uncheck(self, node: Any) -> None:
        self.setCheckState(node, Qt.CheckState.Unchecked)
