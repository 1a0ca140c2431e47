"""The parameter node is written as Slicer writes it, and refuses what Slicer's refuses.

With SLICER_SOURCE_DIR set to a checkout of Slicer the same tests run against its own parameterNodeWrapper: they must
pass both ways.
"""

import enum
import pathlib
from typing import Annotated

import pytest
import slicer
import standin
import vtk
from slicer.parameterNodeWrapper import Default, WithinRange, parameterNodeWrapper
from standin_helpers import Calls, add_volume, custom, item, load_ui, parameter_property


class Mode(enum.Enum):
    COPIES = "copies"
    THEMSELVES = "themselves"

    def label(self):
        return self.value.upper()


@parameterNodeWrapper
class Parameters:
    inputVolume: slicer.vtkMRMLScalarVolumeNode
    segmentation: slicer.vtkMRMLSegmentationNode | None
    level: Annotated[int, WithinRange(0, 79), Default(48)]
    pose: Annotated[float, WithinRange(0.0, 2.0), Default(0.5)]
    count: Annotated[int, WithinRange(1, 100), Default(3)]
    preview: Annotated[bool, Default(True)]
    title: Annotated[str, Default("x")]
    folder: pathlib.Path
    mode: Annotated[Mode, Default(Mode.THEMSELVES)]


def parameter_node():
    return slicer.mrmlScene.AddNewNodeByClass("vtkMRMLScriptedModuleNode", "P")


def test_defaults_are_written_into_the_node():
    node = parameter_node()
    wrapped = Parameters(node)
    written = [node.GetParameter(name) for name in ("level", "pose", "preview", "title", "folder", "mode")]
    assert written == ["48", "0.5", "True", "x", ".", "THEMSELVES"]
    assert node.HasParameter("inputVolume")
    assert node.HasParameter("segmentation.1")
    assert (wrapped.inputVolume, wrapped.segmentation, wrapped.folder) == (None, None, pathlib.Path())
    assert wrapped.parameterNode is node


def test_values_live_in_the_node_and_survive_the_file(tmp_path):
    node = parameter_node()
    wrapped, volume = Parameters(node), add_volume()
    segmentation = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLSegmentationNode", "S")
    wrapped.inputVolume, wrapped.segmentation = volume, segmentation
    wrapped.level, wrapped.mode, wrapped.folder, wrapped.preview = 12, Mode.COPIES, tmp_path / "ä b", False
    assert node.GetNodeReferenceID("inputVolume") == volume.GetID()
    assert slicer.util.saveScene(str(tmp_path / "s.mrb"))
    slicer.mrmlScene.Clear(False)
    slicer.util.loadScene(str(tmp_path / "s.mrb"))
    again = Parameters(slicer.util.getNode("P"))
    assert again.inputVolume.GetName() == "CT"
    assert again.segmentation.GetName() == "S"
    assert (again.level, again.mode, again.folder, again.preview) == (12, Mode.COPIES, tmp_path / "ä b", False)


@pytest.mark.parametrize(
    ("name", "value", "error"),
    [
        ("level", 80, ValueError),
        ("level", "3", TypeError),
        ("level", None, ValueError),
        ("level", 2.5, TypeError),
        ("pose", 2.1, ValueError),
        ("preview", 1, TypeError),
        ("title", 3, TypeError),
        ("folder", "x", TypeError),
        ("mode", "copies", TypeError),
        ("inputVolume", "vtkMRMLScalarVolumeNode1", TypeError),
        ("segmentation", 3, TypeError),
    ],
)
def test_wrong_values_are_refused_and_change_nothing(name, value, error):
    wrapped = Parameters(parameter_node())
    before = getattr(wrapped, name)
    with pytest.raises(error):
        setattr(wrapped, name, value)
    assert getattr(wrapped, name) == before


def test_node_of_the_wrong_class_is_refused():
    wrapped = Parameters(parameter_node())
    model = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLModelNode")
    for name in ("inputVolume", "segmentation"):
        with pytest.raises(TypeError):
            setattr(wrapped, name, model)


def test_changes_of_the_node_and_the_scene_are_seen():
    node, volume = parameter_node(), add_volume()
    wrapped = Parameters(node)
    node.SetParameter("level", "5")
    assert wrapped.level == 5
    wrapped.inputVolume = volume
    slicer.mrmlScene.RemoveNode(volume)
    node.Modified()
    assert wrapped.inputVolume is None


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
    item(cls, name, parameter_property(parameter))
    for cls, name, parameter in [
        ("qMRMLNodeComboBox", "input", "inputVolume"),
        ("qMRMLNodeComboBox", "seg", "segmentation"),
        ("ctkSliderWidget", "slider", "level"),
        ("QDoubleSpinBox", "double", "pose"),
        ("QSpinBox", "spin", "count"),
        ("QCheckBox", "box", "preview"),
        ("QLineEdit", "line", "title"),
        ("ctkPathLineEdit", "path", "folder"),
        ("QComboBox", "modes", "mode"),
    ]
)
CUSTOM = custom("qMRMLNodeComboBox", "ctkSliderWidget", "ctkPathLineEdit")


def test_connect_gui_both_ways(tmp_path):
    widget, ui = load_ui(tmp_path, BODY, CUSTOM)
    for combo in (ui.input, ui.seg):
        combo.noneEnabled = True
        combo.addEnabled = combo.removeEnabled = False
        combo.setMRMLScene(slicer.mrmlScene)
    volume = add_volume()
    wrapped = Parameters(parameter_node())
    tag = wrapped.connectGui(widget)
    assert ui.input.nodeTypes == ("vtkMRMLScalarVolumeNode",)
    assert ui.seg.nodeTypes == ("vtkMRMLSegmentationNode",)
    assert (ui.slider.value, ui.slider.maximum, ui.spin.value, ui.spin.maximum) == (48, 79, 3, 100)
    assert (ui.double.value, ui.box.checked, ui.line.text) == (0.5, True, "x")
    assert ui.modes.currentText == "THEMSELVES"
    ui.input.setCurrentNode(volume)
    ui.slider.value = 7
    ui.double.value = 1.5
    ui.spin.value = 9
    ui.box.checked = False
    ui.line.text = "new"
    ui.path.currentPath = str(tmp_path)
    ui.modes.currentIndex = 0
    assert wrapped.inputVolume is volume
    assert (wrapped.level, wrapped.pose, wrapped.count, wrapped.preview) == (7, 1.5, 9, False)
    assert (wrapped.title, wrapped.folder, wrapped.mode) == ("new", tmp_path, Mode.COPIES)
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
        ("QSpinBox", "pose"),
        ("QLabel", "level"),
        ("QRadioButton", "preview"),
        ("QToolButton", "preview"),
        ("QLineEdit", "folder"),
        ("qMRMLCheckableNodeComboBox", "inputVolume"),
        ("QPlainTextEdit", "title"),
    ],
)
def test_widget_that_does_not_fit_the_type_is_refused(tmp_path, cls, parameter):
    widget, _ = load_ui(tmp_path, item(cls, "w", parameter_property(parameter)), custom("qMRMLCheckableNodeComboBox"))
    with pytest.raises(RuntimeError, match="Unable to create GUI connector"):
        Parameters(parameter_node()).connectGui(widget)


def test_slider_needs_bounds(tmp_path):
    @parameterNodeWrapper
    class Unbound:
        level: int

    widget, _ = load_ui(tmp_path, item("ctkSliderWidget", "w", parameter_property("level")), custom("ctkSliderWidget"))
    with pytest.raises(RuntimeError, match="unbounded"):
        Unbound(parameter_node()).connectGui(widget)


def test_unknown_parameter_in_the_ui_is_refused(tmp_path):
    widget, _ = load_ui(tmp_path, item("QCheckBox", "w", parameter_property("nope")))
    with pytest.raises(ValueError, match="Cannot find a param"):
        Parameters(parameter_node()).connectGui(widget)
