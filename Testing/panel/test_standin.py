# ruff: noqa: E402
"""The stand-in refuses what Slicer does not have and behaves as its sources say, over the real MRML scene.

With SLICER_SOURCE_DIR set to a checkout of Slicer the same tests run against its own parameterNodeWrapper and
ScriptedLoadableModule: they must pass both ways.
"""

from __future__ import annotations

import enum
import gc
import pathlib
import sys
import textwrap
import time
from typing import Annotated

import numpy as np
import pytest

pytest.importorskip("PySide6")
pytest.importorskip("slicer")
import standin

standin.install()
import ctk
import qt
import slicer
import vtk
from slicer.parameterNodeWrapper import (
    Choice,
    Default,
    Maximum,
    Minimum,
    WithinRange,
    parameterNodeWrapper,
)


@pytest.fixture(autouse=True)
def fresh():
    standin.reset()
    yield
    for name in [n for n in slicer.app.moduleManager().modulesNames() if n.startswith("Tiny")]:
        standin.unload_module(name)
    standin.reset()


def add_volume(name="CT", shape=(3, 4, 5)):
    return slicer.util.addVolumeFromArray(np.arange(np.prod(shape), dtype=float).reshape(shape), name=name)


def load_ui(tmp_path, body, custom="", connections=""):
    text = f"""<?xml version="1.0" encoding="UTF-8"?>
    <ui version="4.0"><class>T</class><widget class="qMRMLWidget" name="T"><layout class="QVBoxLayout" name="v">
    {body}</layout></widget><customwidgets>
    <customwidget><class>qMRMLWidget</class><extends>QWidget</extends><header>x.h</header>
    <container>1</container></customwidget>{custom}</customwidgets><connections>{connections}</connections></ui>"""
    path = tmp_path / "ä test.ui"
    path.write_text(textwrap.dedent(text), encoding="utf-8")
    widget = slicer.util.loadUI(str(path))
    return widget, slicer.util.childWidgetVariables(widget)


def item(cls, name, properties=""):
    return f'<item><widget class="{cls}" name="{name}">{properties}</widget></item>'


def custom(*names, base="QWidget"):
    return "".join(
        f"<customwidget><class>{n}</class><extends>{base}</extends><header>x.h</header></customwidget>" for n in names
    )


class Calls(list):
    """Collects the arguments of a slot; takes any number of them."""

    def __call__(self, *args):
        self.append(args)


# -- attributes, as PythonQt has them --------------------------------------------------------------------------


def test_property_is_attribute_and_cannot_be_called():
    label = qt.QLabel("a")
    label.text = "b"
    assert label.text == "b"
    assert label.enabled is True
    with pytest.raises(TypeError, match="not callable"):
        label.text()
    spin = qt.QSpinBox()
    spin.value = 7
    assert spin.value == 7
    with pytest.raises(TypeError):
        spin.value()


def test_getter_that_is_no_property_is_a_method():
    button = qt.QPushButton("x")
    button.checkable = True
    button.setChecked(True)
    assert button.checked is True
    assert button.isChecked() is True
    item = qt.QTableWidgetItem("t")
    assert item.text() == "t"


def test_name_is_object_name():
    label = qt.QLabel()
    label.name = "here"
    assert label.objectName == "here"


@pytest.mark.parametrize(
    ("cls", "name"),
    [(qt.QLabel, "txt"), (qt.QPushButton, "isEnable"), (ctk.ctkCollapsibleButton, "colapsed"), (qt.QTimer, "foo")],
)
def test_unknown_attribute_is_refused_both_ways(cls, name):
    made = cls()
    with pytest.raises(AttributeError, match="does not exist"):
        setattr(made, name, 1)
    with pytest.raises(AttributeError, match="no attribute"):
        getattr(made, name)


def test_method_and_signal_can_not_be_overwritten():
    button = qt.QPushButton()
    for name in ("click", "clicked", "setText"):
        with pytest.raises(AttributeError, match="can not be overwritten"):
            setattr(button, name, lambda: None)


def test_read_only_property_is_refused():
    combo = qt.QComboBox()
    with pytest.raises(AttributeError, match="not writable"):
        combo.count = 3


@pytest.mark.parametrize("value", [None, "3", object(), [1], np.float64(3.0)])
def test_wrong_type_for_an_int_is_refused(value):
    spin = qt.QSpinBox()
    with pytest.raises(AttributeError, match="does not accept"):
        spin.value = value
    assert spin.value == 0


def test_float_for_an_int_is_cut_off_and_numpy_int_taken():
    spin = qt.QSpinBox()
    spin.value = 3.9
    assert spin.value == 3
    spin.value = np.int64(5)
    assert spin.value == 5


def test_none_is_no_text():
    label = qt.QLabel("a")
    with pytest.raises(AttributeError, match="does not accept"):
        label.text = None
    with pytest.raises((TypeError, ValueError)):
        qt.QComboBox().addItem(pathlib.Path("x"))


def test_keyword_arguments_are_refused():
    with pytest.raises((TypeError, ValueError), match="keyword"):
        qt.QLabel(text="x")
    with pytest.raises((TypeError, ValueError), match="keyword"):
        qt.QLabel("x").setText(text="y")


def test_pyside_flavour_does_not_leak():
    label = qt.QLabel()
    for name in ("staticMetaObject", "colapsed", "_native_class_"):
        assert not hasattr(label, name)
    for name in ("Signal", "Slot", "Property"):
        with pytest.raises(AttributeError):
            getattr(qt, name)
    with pytest.raises(AttributeError):
        _ = qt.QNoSuchThing


def test_enumerations_are_integers_of_the_class():
    assert qt.Qt.Checked == 2
    assert qt.QMessageBox.Ok | qt.QMessageBox.Cancel == int(qt.QMessageBox.Ok) + int(qt.QMessageBox.Cancel)
    with pytest.raises(AttributeError, match="scope of the class"):
        _ = qt.QSizePolicy.Policy.Expanding
    with pytest.raises(AttributeError):
        _ = qt.Qt.AlignmentFlag.AlignLeft
    item = qt.QTableWidgetItem()
    item.setFlags(item.flags() & ~qt.Qt.ItemIsEditable)
    assert not item.flags() & qt.Qt.ItemIsEditable


def test_trailing_underscore_is_the_same_method():
    button_answers = standin.button_answers
    button_answers.append(qt.QMessageBox.Cancel)
    box = qt.QMessageBox()
    box.text = "Sure?"
    box.setStandardButtons(qt.QMessageBox.Ok | qt.QMessageBox.Cancel)
    assert box.exec_() == qt.QMessageBox.Cancel
    assert standin.messages[-1].text == "Sure?"


def test_modal_dialog_is_refused():
    with pytest.raises(RuntimeError, match="wait for ever"):
        qt.QDialog().exec_()


def test_wrappers_compare_by_object_and_know_their_end():
    parent = qt.QWidget()
    label = qt.QLabel("x", parent)
    label.name = "l"
    assert parent.children()[0] == label
    assert parent.findChild(qt.QLabel, "l") == label
    assert parent.findChild("QLabel", "l") == label
    assert parent.findChild(qt.QPushButton, "l") is None
    assert parent.l == label
    assert label.parent() == parent
    parent.delete()
    assert not label
    assert label == None  # noqa: E711
    with pytest.raises(ValueError):
        _ = label.text


def test_python_class_of_qt_may_have_attributes_of_its_own():
    class Holder(qt.QObject):
        pass

    holder = Holder()
    holder.anything = 3
    assert holder.anything == 3


def test_dynamic_properties():
    label = qt.QLabel()
    assert label.setProperty("mine", "x") is False  # as in Qt: false for a dynamic one
    assert label.property("mine") == "x"
    label.mine = "y"
    assert label.property("mine") == "y"


def test_timer_has_no_single_shot_property():
    timer = qt.QTimer()
    with pytest.raises(AttributeError):
        timer.singleShot = True
    timer.setSingleShot(True)
    timer.interval = 1
    calls = Calls()
    timer.connect("timeout()", calls)
    timer.start()
    standin.wait_until(lambda: calls)
    assert timer.isActive() is False


def test_lists_come_as_tuples():
    field = ctk.ctkPathLineEdit()
    field.nameFilters = ["Images (*.nrrd)"]
    assert field.nameFilters == ("Images (*.nrrd)",)
    with pytest.raises(AttributeError):
        field.nameFilters = "Images (*.nrrd)"


# -- signals -----------------------------------------------------------------------------------------------------


def test_both_ways_to_connect_and_disconnect():
    button, calls = qt.QPushButton(), Calls()
    assert button.connect("clicked(bool)", calls) is True
    button.clicked.connect(calls)
    button.connect("clicked()", calls)
    button.click()
    assert calls == [(False,), (False,), ()]
    assert button.disconnect("clicked(bool)", calls) is True
    assert button.clicked.disconnect(calls) is True
    assert button.clicked.disconnect(calls) is False
    calls.clear()
    button.click()
    assert calls == [()]


def test_slot_gets_as_many_arguments_as_it_takes():
    button, seen = qt.QPushButton(), []

    class Panel:
        def none(self):
            seen.append("none")

        def one(self, checked):
            seen.append(checked)

    panel = Panel()
    button.clicked.connect(panel.none)
    button.clicked.connect(panel.one)
    button.clicked.connect(lambda: seen.append("lambda"))
    button.click()
    assert seen == ["none", False, "lambda"]
    assert not standin.slot_errors


def test_too_few_arguments_fail_in_the_slot():
    button = qt.QPushButton()
    button.connect("clicked()", lambda checked: None)
    button.click()
    assert isinstance(standin.slot_errors[0].exception, TypeError)


@pytest.mark.parametrize("signal", ["click()", "clicked(int)", "clicked", "pressed(bool)", ""])
def test_signal_that_does_not_exist_is_refused(signal):
    with pytest.raises(AttributeError, match="does not exist"):
        qt.QPushButton().connect(signal, lambda: None)


def test_not_callable_is_refused():
    with pytest.raises(TypeError):
        qt.QPushButton().connect("clicked()", None)


def test_exception_in_a_slot_is_recorded_and_the_rest_goes_on():
    button, calls = qt.QPushButton(), Calls()

    def fail():
        raise RuntimeError("broken")

    button.clicked.connect(fail)
    button.clicked.connect(calls)
    button.click()
    assert calls == [(False,)]
    assert [str(error.exception) for error in standin.slot_errors] == ["broken"]
    assert standin.unexpected_errors()


def test_exception_in_an_observer_is_recorded():
    def fail(caller, event):
        raise RuntimeError("in observer")

    tag = slicer.mrmlScene.AddObserver(slicer.vtkMRMLScene.NodeAddedEvent, fail)
    slicer.mrmlScene.AddNewNodeByClass("vtkMRMLTextNode")
    slicer.mrmlScene.RemoveObserver(tag)
    assert [str(error.exception) for error in standin.slot_errors] == ["in observer"]


def test_single_shot_and_process():
    calls = Calls()
    qt.QTimer.singleShot(0, calls)
    process = qt.QProcess()
    process.connect("finished(int,QProcess::ExitStatus)", calls)
    process.start(sys.executable, ["-c", "print('grüße')"])
    standin.wait_until(lambda: len(calls) == 2)
    assert calls == [(), (0, qt.QProcess.NormalExit)]
    assert process.state() == qt.QProcess.NotRunning
    assert process.readAllStandardOutput().data().strip()


def test_finished_by_attribute_has_only_the_exit_code_as_with_qt5():
    process, calls = qt.QProcess(), Calls()
    process.finished.connect(calls)
    process.start(sys.executable, ["-c", ""])
    standin.wait_until(lambda: calls)
    assert calls == [(0,)]


def test_method_of_a_widget_as_a_slot():
    button, box = qt.QPushButton(), qt.QCheckBox()
    button.connect("clicked()", box.toggle)
    button.click()
    assert box.checked is True


def test_connections_end_with_the_widget():
    class Owner:
        pass

    owner = Owner()
    button = qt.QPushButton()
    button.clicked.connect(lambda owner=owner: None)
    import weakref

    reference = weakref.ref(owner)
    del owner
    assert reference() is not None
    button.delete()
    standin.process_events()
    gc.collect()
    assert reference() is None


# -- CTK ---------------------------------------------------------------------------------------------------------


def test_collapsible_button_hides_its_contents():
    section = ctk.ctkCollapsibleButton()
    section.text = "Setup"
    layout = qt.QVBoxLayout(section)
    shown, hidden = qt.QLabel("a"), qt.QLabel("b")
    layout.addWidget(shown)
    layout.addWidget(hidden)
    hidden.visible = False
    section.show()
    standin.process_events()
    calls = Calls()
    section.connect("contentsCollapsed(bool)", calls)
    assert (section.checked, section.collapsed, shown.visible, hidden.visible) == (True, False, True, False)
    full = section.sizeHint.height()
    section.collapsed = True
    assert calls == [(True,)]
    assert (section.checked, shown.visible) == (False, False)
    assert section.sizeHint.height() < full
    hidden.visible = True
    shown.visible = False
    assert not hidden.visible
    section.checked = True
    assert (section.collapsed, hidden.visible, shown.visible) == (False, True, False)


def test_slider_widget_rounds_clamps_and_tells():
    slider, calls = ctk.ctkSliderWidget(), Calls()
    slider.decimals = 0
    slider.maximum = 79
    slider.singleStep = 1
    slider.connect("valueChanged(double)", calls)
    slider.value = 48.4
    slider.value = 48.4
    assert slider.value == 48
    slider.value = 500
    assert slider.value == 79
    slider.maximum = 60
    assert calls == [(48.0,), (79.0,), (60.0,)]
    slider.setValue(3)
    assert slider.value == 3
    slider.suffix = " mm"
    assert slider.suffix == " mm"


@pytest.mark.parametrize("name", ["setRange", "setMinimum", "setMaximum", "setSingleStep", "isSpinBoxVisible"])
def test_plain_functions_of_ctk_are_not_wrapped(name):
    with pytest.raises(AttributeError):
        getattr(ctk.ctkSliderWidget(), name)


def test_slider_widget_without_tracking_waits_for_the_release():
    slider, calls = ctk.ctkSliderWidget(), Calls()
    slider.tracking = False
    slider.valueChanged.connect(calls)
    inner = slider.findChild("QSlider", "Slider")
    inner.setSliderDown(True)
    inner.setValue(10)
    assert calls == []
    assert slider.value == 0
    inner.setSliderDown(False)
    assert calls == [(10.0,)]


def test_path_line_edit(tmp_path):
    field, calls = ctk.ctkPathLineEdit(), Calls()
    field.settingKey = "drdm/test"
    field.connect("currentPathChanged(QString)", calls)
    field.currentPath = str(tmp_path)
    assert calls == [(str(tmp_path),)]
    field.currentPath = ""
    assert calls == [(str(tmp_path),)], "CTK does not tell of an empty path"
    field.nameFilters = ["*.nii.gz"]
    field.currentPath = "a.nii.gz"
    assert len(calls) == 1, "CTK takes only the first part of a double extension"
    field.filters = ctk.ctkPathLineEdit.Dirs
    standin.file_answers.append(str(tmp_path))
    field.nameFilters = []
    field.browse()
    assert field.currentPath == str(tmp_path)
    assert standin.records.file_dialogs[-1]["kind"] == "directory"
    field.addCurrentPathToHistory()
    other = ctk.ctkPathLineEdit()
    other.settingKey = "drdm/test"
    assert other.comboBox().itemText(0) == str(tmp_path)


def test_file_dialog_without_an_answer_fails():
    with pytest.raises(RuntimeError, match="prepared no answer"):
        qt.QFileDialog.getOpenFileName(None, "Pick", "", "*.nrrd")
    standin.file_answers.append("")
    assert qt.QFileDialog.getExistingDirectory(None, "Pick", "") == ""


def test_names_only_classes_can_not_be_made():
    with pytest.raises(NotImplementedError):
        ctk.ctkRangeWidget()


# -- qMRML -------------------------------------------------------------------------------------------------------


def selector(none=True, types=("vtkMRMLScalarVolumeNode",), actions=True):
    combo = slicer.qMRMLNodeComboBox()
    combo.nodeTypes = list(types)
    combo.noneEnabled = none
    combo.addEnabled = combo.removeEnabled = actions
    return combo


def test_node_combo_box_is_off_without_a_scene():
    combo = selector()
    assert combo.enabled is False
    assert combo.nodeCount() == 0
    combo.setMRMLScene(slicer.mrmlScene)
    assert combo.enabled is True


def test_node_combo_box_follows_the_scene():
    combo = selector()
    combo.setMRMLScene(slicer.mrmlScene)
    volume = add_volume("A")
    slicer.mrmlScene.AddNewNodeByClass("vtkMRMLModelNode", "M")
    hidden = slicer.vtkMRMLScalarVolumeNode()
    hidden.SetHideFromEditors(True)
    slicer.mrmlScene.AddNode(hidden)
    label = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLLabelMapVolumeNode", "L")
    assert combo.nodeCount() == 2
    combo.showChildNodeTypes = False
    assert combo.nodeCount() == 1
    combo.showChildNodeTypes = True
    assert combo.nodeFromIndex(1) is label
    assert combo.currentNode() is None
    calls = Calls()
    combo.connect("currentNodeChanged(vtkMRMLNode*)", calls)
    combo.connect("currentNodeChanged(bool)", calls)
    combo.connect("currentNodeIDChanged(QString)", calls)
    combo.setCurrentNode(volume)
    assert calls == [(volume,), (True,), (volume.GetID(),)]
    assert combo.currentNodeID == volume.GetID()
    combo.currentNodeID = label.GetID()
    assert combo.currentNode() is label
    calls.clear()
    slicer.mrmlScene.RemoveNode(label)
    assert combo.currentNode() is volume, "Qt moves to another entry"
    slicer.mrmlScene.RemoveNode(volume)
    assert combo.currentNode() is None
    assert calls[-3:] == [(None,), (False,), ("",)]


def test_node_combo_box_without_none_takes_the_first_when_the_scene_is_set():
    first, second = add_volume("A"), add_volume("B")
    combo = selector(none=False)
    combo.setMRMLScene(slicer.mrmlScene)
    assert combo.currentNode() is first
    slicer.mrmlScene.RemoveNode(first)
    assert combo.currentNode() is second
    slicer.mrmlScene.RemoveNode(second)
    assert combo.currentNode() is None


def test_node_combo_box_takes_a_later_node_only_if_quite_empty():
    with_actions, bare = selector(none=False), selector(none=False, actions=False)
    for combo in (with_actions, bare):
        combo.setMRMLScene(slicer.mrmlScene)
    volume = add_volume()
    assert with_actions.currentNode() is None
    assert bare.currentNode() is volume


def test_node_combo_box_renames():
    volume = add_volume("A")
    combo = selector()
    combo.setMRMLScene(slicer.mrmlScene)
    combo.setCurrentNode(volume)
    volume.SetName("B")
    inner = combo.findChild(ctk.ctkComboBox)
    assert inner.currentText == "B"


def test_node_combo_box_loses_its_node_when_a_scene_is_added(tmp_path):
    volume = add_volume("A")
    path = standin.save_scene(tmp_path / "scene.mrb")
    combo = selector()
    combo.setMRMLScene(slicer.mrmlScene)
    combo.setCurrentNode(volume)
    standin.load_scene(path, clear=False)
    assert combo.nodeCount() == 2
    assert combo.currentNode() is None


def test_node_combo_box_after_the_scene_was_closed():
    combo = selector()
    combo.setMRMLScene(slicer.mrmlScene)
    combo.setCurrentNode(add_volume())
    slicer.mrmlScene.Clear(False)
    assert combo.currentNode() is None
    assert combo.nodeCount() == 0
    volume = add_volume()
    assert combo.nodeFromIndex(0) is volume
    assert not standin.slot_errors


def test_node_combo_box_attributes():
    combo = selector()
    combo.addAttribute("vtkMRMLScalarVolumeNode", "foo", "a")
    combo.setMRMLScene(slicer.mrmlScene)
    volume = add_volume()
    assert combo.nodeCount() == 0
    volume.SetAttribute("foo", "a")
    volume.Modified()
    assert combo.nodeCount() == 1
    combo.removeAttribute("vtkMRMLScalarVolumeNode", "foo")
    add_volume("B")
    assert combo.nodeCount() == 2


def test_node_combo_box_makes_nodes():
    combo, calls = selector(types=["vtkMRMLScalarVolumeNode", "vtkMRMLLabelMapVolumeNode"]), Calls()
    combo.baseName = "SomeBaseName"
    combo.setMRMLScene(slicer.mrmlScene)
    combo.connect("nodeAddedByUser(vtkMRMLNode*)", calls)
    node = combo.addNode()
    assert calls == [(node,)]
    assert combo.currentNode() is node
    assert combo.addNode("vtkMRMLLabelMapVolumeNode").GetName() == "SomeBaseName_1"
    assert combo.addNode("vtkMRMLModelNode") is None
    assert combo.nodeCount() == 2


def test_node_combo_box_refuses():
    combo = selector()
    with pytest.raises((TypeError, ValueError)):
        combo.setCurrentNode("vtkMRMLScalarVolumeNode1")
    with pytest.raises((TypeError, ValueError)):
        combo.setMRMLScene(None, 1)
    for name in ("setNodeTypes", "setNoneEnabled", "nodes", "noneText"):
        with pytest.raises(AttributeError):
            getattr(combo, name)
    with pytest.raises(AttributeError):
        combo.nodeTypes = "vtkMRMLScalarVolumeNode"
    with pytest.raises(AttributeError, match="does not exist"):
        combo.connect("currentNodeChanged()", lambda: None)


def test_checkable_node_combo_box():
    first, second = (slicer.mrmlScene.AddNewNodeByClass("vtkMRMLModelNode", name) for name in "ab")
    combo, calls = slicer.qMRMLCheckableNodeComboBox(), Calls()
    combo.nodeTypes = ["vtkMRMLModelNode"]
    combo.setMRMLScene(slicer.mrmlScene)
    combo.checkedNodesChanged.connect(calls)
    ours = {first.GetID(), second.GetID()}
    assert combo.checkedNodes() == ()
    assert combo.noneChecked() is True
    combo.check(first)
    combo.setCheckState(second, qt.Qt.Checked)
    combo.setCheckState(second, qt.Qt.Checked)
    assert {node.GetID() for node in combo.checkedNodes()} == ours
    assert combo.checkState(second) == qt.Qt.Checked
    assert len(calls) == 2
    combo.uncheck(second)
    assert combo.uncheckedNodes()[-1] is second
    slicer.mrmlScene.RemoveNode(first)
    assert combo.checkedNodes() == ()


# -- .ui files ---------------------------------------------------------------------------------------------------


def test_ui_file_makes_our_classes_and_connections(tmp_path):
    connection = (
        "<connection><sender>T</sender><signal>mrmlSceneChanged(vtkMRMLScene*)</signal>"
        "<receiver>node</receiver><slot>setMRMLScene(vtkMRMLScene*)</slot></connection>"
    )
    body = (
        item("qMRMLNodeComboBox", "node", '<property name="noneEnabled"><bool>true</bool></property>')
        + item("QPushButton", "go", '<property name="text"><string>Go</string></property>')
        + item(
            "QCheckBox",
            "box",
            '<property name="SlicerParameterName" stdset="0"><string>preview</string></property>',
        )
        + item(
            "ctkPathLineEdit",
            "folder",
            '<property name="filters"><set>ctkPathLineEdit::Dirs|ctkPathLineEdit::Readable</set></property>',
        )
    )
    widget, ui = load_ui(tmp_path, body, custom("qMRMLNodeComboBox", "ctkPathLineEdit"), connection)
    assert type(widget) is slicer.qMRMLWidget
    assert (type(ui.node), type(ui.go), type(ui.box)) == (slicer.qMRMLNodeComboBox, qt.QPushButton, qt.QCheckBox)
    assert ui.box.property("SlicerParameterName") == "preview"
    assert ui.folder.filters == int(ctk.ctkPathLineEdit.Dirs | ctk.ctkPathLineEdit.Readable)
    assert ui.node.mrmlScene() is None
    widget.setMRMLScene(slicer.mrmlScene)
    assert ui.node.mrmlScene() is slicer.mrmlScene
    assert slicer.util.findChild(widget, "go") == ui.go


@pytest.mark.parametrize(
    ("body", "connections", "message"),
    [
        (item("ctkNothing", "x"), "", "does not know"),
        (item("ctkSliderWidget", "x", '<property name="max"><double>3</double></property>'), "", "no property 'max'"),
        (
            item("QPushButton", "x"),
            "<connection><sender>x</sender><signal>click()</signal><receiver>T</receiver>"
            "<slot>setMRMLScene(vtkMRMLScene*)</slot></connection>",
            "does not exist",
        ),
        (
            item("QPushButton", "x"),
            "<connection><sender>x</sender><signal>clicked()</signal><receiver>T</receiver>"
            "<slot>fly()</slot></connection>",
            "no slot",
        ),
    ],
)
def test_wrong_ui_file_is_refused(tmp_path, body, connections, message):
    with pytest.raises((RuntimeError, AttributeError), match=message):
        load_ui(tmp_path, body, custom("ctkSliderWidget", "ctkNothing"), connections)


def test_missing_ui_file(tmp_path):
    with pytest.raises(RuntimeError, match="not found"):
        slicer.util.loadUI(str(tmp_path / "none.ui"))


# -- parameter node ----------------------------------------------------------------------------------------------


class Mode(enum.Enum):
    COPIES = "copies"
    THEMSELVES = "themselves"

    def label(self):
        return self.value.upper()


@parameterNodeWrapper
class Parameters:
    inputVolume: slicer.vtkMRMLScalarVolumeNode
    segmentation: slicer.vtkMRMLSegmentationNode | None
    level: Annotated[float, WithinRange(0, 79)] = 48.0
    count: Annotated[int, Minimum(1), Maximum(100), Default(3)]
    preview: bool = True
    title: str = "x"
    folder: pathlib.Path
    mode: Mode = Mode.THEMSELVES
    plane: Annotated[str, Choice(["axial", "coronal"])] = "coronal"
    names: list[str]


def parameter_node():
    return slicer.mrmlScene.AddNewNodeByClass("vtkMRMLScriptedModuleNode", "P")


def test_defaults_are_written_into_the_node():
    node = parameter_node()
    wrapped = Parameters(node)
    assert node.GetParameter("level") == "48.0"
    assert node.GetParameter("count") == "3"
    assert node.GetParameter("preview") == "True"
    assert node.GetParameter("mode") == "THEMSELVES"
    assert node.GetParameter("names.len") == "0"
    assert node.HasParameter("inputVolume")
    assert node.HasParameter("segmentation.1")
    assert (wrapped.inputVolume, wrapped.segmentation, wrapped.folder) == (None, None, pathlib.Path())
    assert wrapped.isCached("level")
    assert wrapped.parameterNode is node


def test_values_live_in_the_node_and_survive_the_file(tmp_path):
    node = parameter_node()
    wrapped, volume = Parameters(node), add_volume()
    segmentation = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLSegmentationNode", "S")
    wrapped.inputVolume, wrapped.segmentation = volume, segmentation
    wrapped.level, wrapped.mode, wrapped.folder = 12, Mode.COPIES, tmp_path / "ä b"
    wrapped.names = ["a", "b"]
    wrapped.names.append("c")
    assert node.GetNodeReferenceID("inputVolume") == volume.GetID()
    path = standin.save_scene(tmp_path / "s.mrb")
    standin.load_scene(path)
    again = Parameters(slicer.util.getNode("P"))
    assert again.inputVolume.GetName() == "CT"
    assert again.segmentation.GetName() == "S"
    assert (again.level, again.mode, again.folder) == (12.0, Mode.COPIES, tmp_path / "ä b")
    assert list(again.names) == ["a", "b", "c"]


@pytest.mark.parametrize(
    ("name", "value", "error"),
    [
        ("level", 80, ValueError),
        ("level", "3", TypeError),
        ("level", None, ValueError),
        ("count", 0, ValueError),
        ("count", 101, ValueError),
        ("count", 2.5, TypeError),
        ("preview", 1, TypeError),
        ("title", 3, TypeError),
        ("folder", "x", TypeError),
        ("mode", "copies", TypeError),
        ("plane", "oblique", ValueError),
        ("names", [1], TypeError),
        ("inputVolume", "vtkMRMLScalarVolumeNode1", TypeError),
        ("segmentation", 3, TypeError),
    ],
)
def test_wrong_values_are_refused_and_change_nothing(name, value, error):
    wrapped = Parameters(parameter_node())
    before = wrapped.getValue(name)
    with pytest.raises(error):
        setattr(wrapped, name, value)
    assert wrapped.getValue(name) == before


def test_node_of_the_wrong_class_is_refused():
    wrapped = Parameters(parameter_node())
    model = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLModelNode")
    for name in ("inputVolume", "segmentation"):
        with pytest.raises(TypeError):
            setattr(wrapped, name, model)


def test_deleted_node_becomes_none():
    wrapped, volume = Parameters(parameter_node()), add_volume()
    wrapped.inputVolume = volume
    slicer.mrmlScene.RemoveNode(volume)
    wrapped.Modified()
    assert wrapped.inputVolume is None


def test_change_of_the_node_itself_is_seen():
    node = parameter_node()
    wrapped = Parameters(node)
    node.SetParameter("level", "5")
    assert wrapped.level == 5.0


def test_observers_and_batches_of_changes():
    wrapped, calls = Parameters(parameter_node()), Calls()
    tag = wrapped.AddObserver(vtk.vtkCommand.ModifiedEvent, lambda caller, event: calls())
    with slicer.util.NodeModify(wrapped):
        wrapped.level = 1
        wrapped.preview = False
    assert len(calls) == 1
    wrapped.RemoveObserver(tag)
    wrapped.level = 2
    assert len(calls) == 1
    with pytest.raises(AttributeError):
        wrapped.HasObserver("x")


def test_reserved_names_and_unknown_types_are_refused():
    with pytest.raises(ValueError, match="reserved"):

        @parameterNodeWrapper
        class _Reserved:
            level: int

            def setValue(self):
                pass

    with pytest.raises(Exception, match="Unable to create serializer"):

        @parameterNodeWrapper
        class _Unknown:
            thing: complex


BODY = "".join(
    item(cls, name, f'<property name="SlicerParameterName" stdset="0"><string>{parameter}</string></property>')
    for cls, name, parameter in [
        ("qMRMLNodeComboBox", "input", "inputVolume"),
        ("qMRMLNodeComboBox", "seg", "segmentation"),
        ("ctkSliderWidget", "slider", "level"),
        ("QSpinBox", "spin", "count"),
        ("QCheckBox", "box", "preview"),
        ("QLineEdit", "line", "title"),
        ("ctkPathLineEdit", "path", "folder"),
        ("QComboBox", "modes", "mode"),
        ("QComboBox", "planes", "plane"),
    ]
)
CUSTOM = custom("qMRMLNodeComboBox", "ctkSliderWidget", "ctkPathLineEdit")


def test_connect_gui_both_ways(tmp_path):
    _, ui = load_ui(tmp_path, BODY, CUSTOM)
    for combo in (ui.input, ui.seg):
        combo.noneEnabled = True
        combo.setMRMLScene(slicer.mrmlScene)
    volume = add_volume()
    wrapped = Parameters(parameter_node())
    tag = wrapped.connectGui(ui)
    assert ui.input.nodeTypes == ("vtkMRMLScalarVolumeNode",)
    assert ui.seg.nodeTypes == ("vtkMRMLSegmentationNode",)
    assert (ui.slider.value, ui.slider.maximum, ui.spin.value, ui.spin.maximum) == (48, 79, 3, 100)
    assert (ui.box.checked, ui.line.text, ui.modes.currentText, ui.planes.currentText) == (
        True,
        "x",
        "THEMSELVES",
        "coronal",
    )
    ui.input.setCurrentNode(volume)
    ui.slider.value = 7
    ui.spin.value = 9
    ui.box.checked = False
    ui.line.text = "new"
    ui.path.currentPath = str(tmp_path)
    ui.modes.currentIndex = 0
    ui.planes.setCurrentText("axial")
    assert wrapped.inputVolume is volume
    assert (wrapped.level, wrapped.count, wrapped.preview, wrapped.title) == (7, 9, False, "new")
    assert (wrapped.folder, wrapped.mode, wrapped.plane) == (tmp_path, Mode.COPIES, "axial")
    wrapped.level = 33
    wrapped.inputVolume = None
    wrapped.mode = Mode.THEMSELVES
    assert ui.slider.value == 33
    assert ui.input.currentNode() is None
    assert ui.modes.currentIndex == 1
    wrapped.disconnectGui(tag)
    ui.slider.value = 1
    wrapped.count = 50
    assert (wrapped.level, ui.spin.value) == (33, 9)
    assert not standin.slot_errors


@pytest.mark.parametrize(
    ("cls", "parameter"),
    [
        ("QSpinBox", "level"),
        ("QLabel", "count"),
        ("QRadioButton", "preview"),
        ("QToolButton", "preview"),
        ("QLineEdit", "folder"),
        ("QLineEdit", "names"),
        ("qMRMLCheckableNodeComboBox", "inputVolume"),
        ("QPlainTextEdit", "title"),
    ],
)
def test_widget_that_does_not_fit_the_type_is_refused(tmp_path, cls, parameter):
    body = item(cls, "w", f'<property name="SlicerParameterName" stdset="0"><string>{parameter}</string></property>')
    _, ui = load_ui(tmp_path, body, custom("qMRMLCheckableNodeComboBox"))
    with pytest.raises(RuntimeError, match="Unable to create GUI connector"):
        Parameters(parameter_node()).connectGui(ui)


def test_slider_needs_bounds_and_combo_box_choices(tmp_path):
    @parameterNodeWrapper
    class Unbound:
        level: float
        plane: str

    for cls, parameter in (("ctkSliderWidget", "level"), ("QComboBox", "plane")):
        body = item(
            cls, "w", f'<property name="SlicerParameterName" stdset="0"><string>{parameter}</string></property>'
        )
        _, ui = load_ui(tmp_path, body, custom("ctkSliderWidget"))
        with pytest.raises(RuntimeError):
            Unbound(parameter_node()).connectGui(ui)


def test_unknown_parameter_in_the_ui_is_refused(tmp_path):
    body = item("QCheckBox", "w", '<property name="SlicerParameterName" stdset="0"><string>nope</string></property>')
    _, ui = load_ui(tmp_path, body)
    with pytest.raises(ValueError, match="Cannot find a param"):
        Parameters(parameter_node()).connectGui(ui)


# -- application and modules -------------------------------------------------------------------------------------

MODULE = """
import slicer
from slicer.ScriptedLoadableModule import *
from slicer.util import VTKObservationMixin
from slicer.i18n import tr as _
log = []
class {name}(ScriptedLoadableModule):
    def __init__(self, parent):
        ScriptedLoadableModule.__init__(self, parent)
        self.parent.title = _("Tiny")
        self.parent.categories = ["Test"]
        self.parent.helpText = "help"
        slicer.app.connect("startupCompleted()", lambda: log.append("started"))
class {name}Widget(ScriptedLoadableModuleWidget, VTKObservationMixin):
    def __init__(self, parent=None):
        ScriptedLoadableModuleWidget.__init__(self, parent)
        VTKObservationMixin.__init__(self)
    def setup(self):
        ScriptedLoadableModuleWidget.setup(self)
        import qt
        self.button = qt.QPushButton("Go")
        self.button.connect("clicked(bool)", self.onGo)
        self.layout.addWidget(self.button)
        self.logic = {name}Logic()
        log.append("setup")
        {extra}
    def onGo(self):
        with slicer.util.tryWithErrorDisplay(_("It failed."), waitCursor=True):
            raise ValueError("no volume")
    def enter(self): log.append("enter")
    def exit(self): log.append("exit")
    def cleanup(self): log.append("cleanup"); self.removeObservers()
class {name}Logic(ScriptedLoadableModuleLogic):
    pass
class {name}Test(ScriptedLoadableModuleTest):
    def test_it(self):
        log.append("tested"); self.delayDisplay("done")
"""


def write_module(tmp_path, name="TinyModule", extra="pass"):
    path = tmp_path / f"{name}.py"
    path.write_text(MODULE.format(name=name, extra=extra), encoding="utf-8")
    return path


def test_life_of_a_module(tmp_path):
    module = standin.load_module(write_module(tmp_path))
    assert (module.title, module.name, module.categories) == ("Tiny", "TinyModule", ("Test",))
    assert slicer.modules.tinymodule == module
    assert slicer.util.modulePath("TinyModule") == str(tmp_path / "TinyModule.py")
    log = sys.modules["TinyModule"].log
    standin.finish_startup()
    assert log == ["started"]
    slicer.util.selectModule("TinyModule")
    widget = slicer.util.getModuleWidget("TinyModule")
    assert widget is slicer.modules.TinyModuleWidget
    assert log == ["started", "setup", "enter"]
    assert widget.parent.isEntered
    assert widget.button.visible
    assert slicer.util.getModuleLogic("TinyModule") is widget.logic
    slicer.util.selectModule("Volumes")
    assert log[-1] == "exit"
    assert not widget.button.visible
    slicer.selfTests["TinyModule"]()
    assert log[-1] == "tested"
    standin.unload_module("TinyModule")
    assert log[-1] == "cleanup"
    with pytest.raises(RuntimeError):
        slicer.util.getModule("TinyModule")
    assert not standin.slot_errors


def test_module_is_reloaded_with_its_new_source(tmp_path):
    path = write_module(tmp_path)
    standin.load_module(path)
    slicer.util.selectModule("TinyModule")
    old = slicer.util.getModuleWidget("TinyModule")
    log = sys.modules["TinyModule"].log
    path.write_text(path.read_text(encoding="utf-8").replace('"Go"', '"Run"'), encoding="utf-8")
    slicer.util.reloadScriptedModule("TinyModule")
    new = slicer.util.getModuleWidget("TinyModule")
    assert log[-1] == "cleanup"
    assert new is not old
    assert new.button.text == "Run"
    assert not old.button.visible
    assert not standin.slot_errors


def test_error_in_setup_is_recorded(tmp_path):
    standin.load_module(write_module(tmp_path, extra="self.button.txt = 'x'"))
    slicer.util.selectModule("TinyModule")
    assert "does not exist on QPushButton" in str(standin.slot_errors[0].exception)


def test_module_description_refuses_unknown_names(tmp_path):
    path = write_module(tmp_path)
    path.write_text(path.read_text(encoding="utf-8").replace("parent.title", "parent.titel"), encoding="utf-8")
    with pytest.raises(AttributeError, match="titel"):
        standin.load_module(path)


def test_error_is_shown_once_and_told_apart_from_the_unexpected(tmp_path):
    standin.load_module(write_module(tmp_path))
    slicer.util.selectModule("TinyModule")
    slicer.util.getModuleWidget("TinyModule").button.click()
    assert [(message.level, message.text) for message in standin.messages] == [("error", "It failed.\n\nno volume")]
    assert [error.shown for error in standin.slot_errors] == [True]
    assert standin.unexpected_errors() == []


def test_messages_are_recorded_and_answered():
    slicer.util.errorDisplay("bad", detailedText="why")
    slicer.util.warningDisplay("hm")
    slicer.util.infoDisplay("well")
    assert slicer.util.confirmYesNoDisplay("sure?") is True
    standin.button_answers.append(qt.QMessageBox.No)
    assert slicer.util.confirmYesNoDisplay("sure?") is False
    levels = [(message.level, message.text) for message in standin.messages]
    assert levels == [
        ("error", "bad"),
        ("warning", "hm"),
        ("info", "well"),
        ("question", "sure?"),
        ("question", "sure?"),
    ]
    assert standin.messages[0].details == "why"


def test_testing_mode_answers_by_itself_as_slicer_does():
    standin.set_testing(True)
    assert slicer.app.testingEnabled() is True
    slicer.util.errorDisplay("bad")
    assert [message.level for message in standin.messages] == ["error"]
    slicer.util.delayDisplay("short", 50)


def test_status_bar_and_links():
    slicer.util.showStatusMessage("working", 100)
    assert standin.messages[-1].level == "status"
    qt.QDesktopServices.openUrl(qt.QUrl("https://example.org/a"))
    assert standin.opened_urls == ["https://example.org/a"]


def test_application_refuses_what_it_does_not_have():
    assert slicer.app.mrmlScene() is slicer.mrmlScene
    assert slicer.app.applicationLogic().IsA("vtkSlicerApplicationLogic")
    assert slicer.app.majorVersion == 5
    for name in ("attach", "parts", "testing", "mainWindow"):
        with pytest.raises(AttributeError):
            getattr(slicer.app, name)
    with pytest.raises(AttributeError):
        slicer.app.temporaryPath = "/"
    with pytest.raises(AttributeError):
        slicer.modules.nosuchmodule  # noqa: B018
    assert not hasattr(slicer, "getNode"), "slicer.util's functions are not in slicer itself"


def test_settings_are_private():
    settings = qt.QSettings()
    assert slicer.app.slicerHome in settings.fileName().replace("\\", "/")
    settings.setValue("a/b", "c")
    assert slicer.util.settingsValue("a/b", "") == "c"
    assert slicer.util.settingsValue("no/such", 3) == 3


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("transforms", "vtkSlicerTransformLogic"),
        ("volumes", "vtkSlicerVolumesLogic"),
        ("segmentations", "vtkSlicerSegmentationsModuleLogic"),
        ("sequences", "vtkSlicerSequencesLogic"),
        ("subjecthierarchy", "vtkSlicerSubjectHierarchyModuleLogic"),
        ("plots", "vtkSlicerPlotsLogic"),
        ("colors", "vtkSlicerColorLogic"),
        ("markups", "vtkSlicerMarkupsLogic"),
        ("models", "vtkSlicerModelsLogic"),
    ],
)
def test_logics_of_the_modules_are_real(name, kind):
    logic = getattr(slicer.modules, name).logic()
    assert logic.IsA(kind)
    assert logic.GetMRMLScene() is slicer.mrmlScene


def test_subject_hierarchy_takes_nodes_in_and_out():
    hierarchy = slicer.mrmlScene.GetSubjectHierarchyNode()
    volume = add_volume()
    entry = hierarchy.GetItemByDataNode(volume)
    assert entry
    transform = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLGridTransformNode", "T")
    assert hierarchy.GetItemByDataNode(transform)
    hierarchy.SetItemParent(hierarchy.GetItemByDataNode(transform), entry)
    count = hierarchy.GetNumberOfItems()
    slicer.mrmlScene.RemoveNode(transform)
    assert hierarchy.GetNumberOfItems() == count - 1


def test_sequence_browser_plays_through_the_real_logic():
    sequence = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLSequenceNode", "S")
    for value in (1, 2):
        volume = add_volume(f"V{value}")
        slicer.util.arrayFromVolume(volume)[:] = value
        sequence.SetDataNodeAtValue(volume, str(value))
        slicer.mrmlScene.RemoveNode(volume)
    browser = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLSequenceBrowserNode", "B")
    browser.AddSynchronizedSequenceNode(sequence)
    slicer.modules.sequences.logic().UpdateProxyNodesFromSequences(browser)
    proxy = browser.GetProxyNode(sequence)
    assert slicer.util.arrayFromVolume(proxy).max() == 1
    browser.SetSelectedItemNumber(1)
    assert slicer.util.arrayFromVolume(browser.GetProxyNode(sequence)).max() == 2
    assert slicer.modules.sequences.showSequenceBrowser(browser) is True


def test_plot_is_shown_in_the_layout():
    chart = slicer.util.plot(np.array([[0, 1.0], [1, 0.5]]), xColumnIndex=0, columnNames=["step", "loss"], title="Loss")
    view = slicer.app.layoutManager().activeMRMLPlotViewNode()
    assert view.GetPlotChartNodeID() == chart.GetID()


def test_slices_show_what_is_selected():
    volume = add_volume()
    slicer.util.setSliceViewerLayers(background=volume, fit=True)
    manager = slicer.app.layoutManager()
    assert manager.sliceViewNames() == ("Red", "Yellow", "Green")
    red = manager.sliceWidget("Red")
    assert red.mrmlSliceCompositeNode().GetBackgroundVolumeID() == volume.GetID()
    assert red.mrmlSliceNode().GetOrientation() == "Axial"


def test_views_draw_the_scene_and_outlive_it(tmp_path):
    pytest.importorskip("trame_slicer")
    for index in range(2):
        volume = add_volume(shape=(10, 12, 14))
        slicer.util.setSliceViewerLayers(background=volume, fit=True)
        slicer.app.layoutManager().threeDWidget(0).threeDView().resetFocalPoint()
        for name in ("Red", "3D"):
            path = standin.view_picture(name, tmp_path / f"{name}{index}.png", 200, 150)
            image = qt.QImage(str(path))
            assert (image.width(), image.height()) == (200, 150)
            assert len({image.pixel(x, y) for x in range(0, 200, 7) for y in range(0, 150, 7)}) > 3
        slicer.mrmlScene.Clear(False)
    with pytest.raises(ValueError, match="no view"):
        standin.view_picture("Blue", tmp_path / "x.png")
    assert not standin.slot_errors


def test_files_are_read_and_written_by_slicer_util(tmp_path):
    volume = add_volume("CT")
    path = tmp_path / "ä scan.nrrd"
    assert slicer.util.saveNode(volume, str(path), {})
    again = slicer.util.loadVolume(str(path), {"name": "again"})
    assert np.array_equal(slicer.util.arrayFromVolume(again), slicer.util.arrayFromVolume(volume))
    with pytest.raises(RuntimeError, match="Failed to load"):
        slicer.util.loadVolume(str(tmp_path / "none.nrrd"), {})
    folder = tmp_path / "full"
    folder.mkdir()
    (folder / "mine.txt").write_text("x")
    with pytest.raises(OSError, match="not empty"):
        standin.save_scene(folder)
    assert (folder / "mine.txt").exists()


def test_scene_keeps_its_singletons_when_it_is_closed():
    for _ in range(2):
        slicer.mrmlScene.Clear(False)
        for name in ("vtkMRMLSelectionNode", "vtkMRMLInteractionNode", "vtkMRMLCrosshairNode", "vtkMRMLLayoutNode"):
            assert slicer.mrmlScene.GetNumberOfNodesByClass(name) == 1
        assert slicer.mrmlScene.GetSubjectHierarchyNode() is not None
        assert slicer.mrmlScene.GetNumberOfNodesByClass("vtkMRMLSliceCompositeNode") == 3


def test_startup_environment_is_a_dictionary():
    import os

    assert slicer.util.startupEnvironment().get("PATH") == os.environ.get("PATH")


def test_nothing_is_installed():
    from slicer import packaging

    packaging.pip_ensure(["numpy"], requester="Test")
    standin.button_answers.append(qt.QMessageBox.Cancel)
    with pytest.raises(RuntimeError, match="declined"):
        packaging.pip_ensure(["surely-not-installed-package>=1"], requester="Test")


def test_screenshot_is_as_wide_as_asked_and_shows_something(tmp_path):
    standin.load_module(write_module(tmp_path))
    slicer.util.selectModule("TinyModule")
    panel = slicer.util.getModuleWidget("TinyModule").parent
    path = standin.screenshot(panel, tmp_path / "panel.png", width=400, scale=2)
    image = qt.QImage(str(path))
    assert image.width() == 800
    colours = {image.pixel(x, y) for x in range(0, 800, 3) for y in range(0, image.height(), 3)}
    assert len(colours) > 10


def test_waiting_has_an_end():
    start = time.monotonic()
    with pytest.raises(TimeoutError):
        standin.wait_until(lambda: False, timeout=0.05)
    assert time.monotonic() >= start


def test_install_twice_is_one_application():
    before = slicer.app
    standin.install()
    assert slicer.app is before
