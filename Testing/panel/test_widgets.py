"""The widgets of CTK and MRML behave as their sources say, over the real scene; so do .ui files."""

import ctk
import pytest
import qt
import slicer
import standin
from standin_helpers import Calls, add_volume, custom, item, load_ui, parameter_property


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
    slider.singleStep = 100
    assert slider.singleStep == 1
    slider.findChildren("QSlider", "Slider")[0].setValue(7)
    assert calls == [(48.0,), (79.0,), (60.0,), (7.0,)]


@pytest.mark.parametrize("name", ["setRange", "setMinimum", "setMaximum", "setSingleStep", "isSpinBoxVisible"])
def test_plain_functions_of_ctk_are_not_wrapped(name):
    with pytest.raises(AttributeError):
        getattr(ctk.ctkSliderWidget(), name)


def test_path_line_edit(tmp_path):
    field, calls = ctk.ctkPathLineEdit(), Calls()
    field.connect("currentPathChanged(QString)", calls)
    field.currentPath = str(tmp_path)
    field.currentPath = ""
    assert field.currentPath == ""
    assert calls == [(str(tmp_path),)], "CTK does not tell of an empty path"


def test_path_line_edit_remembers_its_last_paths():
    field = ctk.ctkPathLineEdit()
    field.settingKey = "Test/LastPaths"
    assert field.currentPath == ""
    for path in ("/a", "/b", "/c", "/a"):
        field.currentPath = path
        field.addCurrentPathToHistory()
    box = field.comboBox()
    assert [box.itemText(n) for n in range(box.count)] == ["/a", "/c", "/b"]
    assert field.currentPath == "/a"
    # The next one begins with the latest path, as in CTK.
    other = ctk.ctkPathLineEdit()
    other.settingKey = "Test/LastPaths"
    assert other.currentPath == "/a"


def test_classes_that_are_only_names_can_not_be_made():
    with pytest.raises(NotImplementedError):
        ctk.ctkRangeWidget()


# -- lists of nodes


def selector(none=True, scene=True):
    combo = slicer.qMRMLNodeComboBox()
    combo.nodeTypes = ["vtkMRMLScalarVolumeNode"]
    combo.noneEnabled = none
    combo.addEnabled = combo.removeEnabled = False
    if scene:
        combo.setMRMLScene(slicer.mrmlScene)
    return combo


def shown(combo):
    """The texts of its entries, the current one first."""
    box = combo.findChildren(qt.QComboBox)[0]
    return [box.currentText, *(box.itemText(row) for row in range(box.count))]


def test_node_combo_box_follows_the_scene():
    combo = selector(scene=False)
    assert (combo.enabled, shown(combo)) == (False, [""])
    combo.setMRMLScene(slicer.mrmlScene)
    assert combo.enabled is True
    volume = add_volume("A")
    slicer.mrmlScene.AddNewNodeByClass("vtkMRMLModelNode", "M")
    hidden = slicer.vtkMRMLScalarVolumeNode()
    hidden.SetHideFromEditors(True)
    slicer.mrmlScene.AddNode(hidden)
    label = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLLabelMapVolumeNode", "L")
    assert shown(combo) == ["None", "None", "A", "L"]
    combo.showChildNodeTypes = False
    assert shown(combo) == ["None", "None", "A"]
    combo.showChildNodeTypes = True
    assert shown(combo) == ["None", "None", "A", "L"]
    assert combo.currentNode() is None
    calls = Calls()
    combo.connect("currentNodeChanged(vtkMRMLNode*)", calls)
    combo.connect("currentNodeChanged(bool)", calls)
    combo.setCurrentNode(label)
    assert calls == [(label,), (True,)]
    assert combo.currentNode() is label
    slicer.mrmlScene.RemoveNode(label)
    assert combo.currentNode() is volume, "Qt moves to another entry"
    volume.SetName("B")
    assert shown(combo) == ["B", "None", "B"]
    slicer.mrmlScene.RemoveNode(volume)
    assert combo.currentNode() is None
    assert calls[-2:] == [(None,), (False,)]


def test_node_combo_box_without_none_takes_the_first():
    first, second = add_volume("A"), add_volume("B")
    combo = selector(none=False)
    assert combo.currentNode() is first
    slicer.mrmlScene.RemoveNode(first)
    assert combo.currentNode() is second
    slicer.mrmlScene.RemoveNode(second)
    assert combo.currentNode() is None
    # Of those that come later only when it is quite empty.
    volume = add_volume()
    assert combo.currentNode() is volume
    combo.noneEnabled = True
    assert combo.currentNode() is volume


def test_node_combo_box_loses_its_node_when_a_scene_is_added_or_closed(tmp_path):
    volume = add_volume("A")
    path = str(tmp_path / "scene.mrb")
    assert slicer.util.saveScene(path)
    combo = selector()
    combo.setCurrentNode(volume)
    slicer.util.loadScene(path)
    assert shown(combo) == ["None", "None", "A", "A"]
    assert combo.currentNode() is None
    combo.setCurrentNode(volume)
    slicer.mrmlScene.Clear(False)
    assert combo.currentNode() is None
    assert shown(combo) == ["None", "None"]
    add_volume("C")
    assert shown(combo) == ["None", "None", "C"]
    assert not standin.slot_errors


def test_node_combo_box_refuses():
    combo = selector()
    with pytest.raises((TypeError, ValueError)):
        combo.setCurrentNode("vtkMRMLScalarVolumeNode1")
    with pytest.raises((TypeError, ValueError)):
        combo.setMRMLScene(None, 1)
    for name in ("setNodeTypes", "setNoneEnabled", "nodes", "noneText"):
        with pytest.raises(AttributeError):
            getattr(combo, name)
    with pytest.raises(AttributeError, match="does not exist"):
        combo.connect("currentNodeChanged()", lambda: None)
    with pytest.raises(NotImplementedError):
        slicer.qMRMLNodeComboBox().setMRMLScene(slicer.mrmlScene)


def test_checkable_node_combo_box():
    first, second = (slicer.mrmlScene.AddNewNodeByClass("vtkMRMLModelNode", name) for name in "ab")
    combo, calls = slicer.qMRMLCheckableNodeComboBox(), Calls()
    combo.nodeTypes = ["vtkMRMLModelNode"]
    combo.setMRMLScene(slicer.mrmlScene)
    combo.checkedNodesChanged.connect(calls)
    ours = {first.GetID(), second.GetID()}
    assert combo.checkedNodes() == ()
    combo.setCheckState(first, qt.Qt.Checked)
    combo.setCheckState(second, 2)
    combo.setCheckState(second, qt.Qt.Checked)
    assert {node.GetID() for node in combo.checkedNodes()} == ours
    assert len(calls) == 2
    combo.setCheckState(second, qt.Qt.Unchecked)
    assert combo.uncheckedNodes()[-1] is second
    slicer.mrmlScene.RemoveNode(first)
    assert combo.checkedNodes() == ()


# -- .ui files


def test_ui_file_makes_our_classes_and_connections(tmp_path):
    connection = (
        "<connection><sender>T</sender><signal>mrmlSceneChanged(vtkMRMLScene*)</signal>"
        "<receiver>node</receiver><slot>setMRMLScene(vtkMRMLScene*)</slot></connection>"
    )
    filters = '<property name="filters"><set>ctkPathLineEdit::Dirs|ctkPathLineEdit::Readable</set></property>'
    body = (
        item("qMRMLCheckableNodeComboBox", "node", '<property name="noneEnabled"><bool>true</bool></property>')
        + item("QPushButton", "go", '<property name="text"><string>Go</string></property>')
        + item("QCheckBox", "box", parameter_property("preview"))
        + item("ctkPathLineEdit", "folder", filters)
    )
    widget, ui = load_ui(tmp_path, body, custom("qMRMLCheckableNodeComboBox", "ctkPathLineEdit"), connection)
    assert type(widget) is slicer.qMRMLWidget
    assert (type(ui.node), type(ui.go)) == (slicer.qMRMLCheckableNodeComboBox, qt.QPushButton)
    assert ui.node.noneEnabled is True
    assert ui.box.property("SlicerParameterName") == "preview"
    assert ui.folder.filters == int(ctk.ctkPathLineEdit.Dirs | ctk.ctkPathLineEdit.Readable)
    assert ui.node.enabled is False
    widget.setMRMLScene(slicer.mrmlScene)
    assert ui.node.enabled is True


@pytest.mark.parametrize(
    ("body", "connection", "message"),
    [
        (item("ctkNothing", "x"), None, "does not know"),
        (item("ctkSliderWidget", "x", '<property name="max"><double>3</double></property>'), None, "no property 'max'"),
        (item("QPushButton", "x"), ("x", "click()", "T", "setMRMLScene(vtkMRMLScene*)"), "does not exist"),
        (item("QPushButton", "x"), ("x", "clicked()", "T", "fly()"), "no slot"),
        (item("QPushButton", "x"), ("x", "clicked()", "U", "fly()"), "not in it"),
    ],
)
def test_wrong_ui_file_is_refused(tmp_path, body, connection, message):
    tags = zip(("sender", "signal", "receiver", "slot"), connection or (), strict=False)
    text = "<connection>" + "".join(f"<{tag}>{value}</{tag}>" for tag, value in tags) + "</connection>"
    with pytest.raises((RuntimeError, AttributeError), match=message):
        load_ui(tmp_path, body, custom("ctkSliderWidget", "ctkNothing"), text if connection else "")
