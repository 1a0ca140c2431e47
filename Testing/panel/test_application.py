"""The application, its modules, its messages and its scene."""

import os
import sys

import pytest
import qt
import slicer
import standin
from standin_helpers import add_volume

MODULE = """
import slicer
from slicer.ScriptedLoadableModule import *
from slicer.util import VTKObservationMixin
from slicer.i18n import tr as _
log = []
class {name}(ScriptedLoadableModule):
    def __init__(self, parent):
        ScriptedLoadableModule.__init__(self, parent)
        self.parent.{title} = _("Tiny")
        self.parent.categories = ["Test"]
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
"""


def write_module(tmp_path, name, extra="pass", title="title"):
    path = tmp_path / f"{name}.py"
    path.write_text(MODULE.format(name=name, extra=extra, title=title), encoding="utf-8")
    return path


def test_life_of_a_module(tmp_path):
    module = standin.load_module(write_module(tmp_path, "TinyLife"))
    assert (module.title, module.name, module.categories) == ("Tiny", "TinyLife", ("Test",))
    assert slicer.modules.tinylife == module
    assert slicer.util.modulePath("TinyLife") == str(tmp_path / "TinyLife.py")
    log = sys.modules["TinyLife"].log
    standin.finish_startup()
    assert log == ["started"]
    slicer.util.selectModule("TinyLife")
    widget = slicer.util.getModuleWidget("TinyLife")
    assert widget is slicer.modules.TinyLifeWidget
    assert log == ["started", "setup", "enter"]
    assert widget.button.visible
    assert slicer.util.getModuleLogic("TinyLife") is widget.logic
    slicer.util.selectModule("Volumes")
    assert log[-1] == "exit"
    assert not widget.button.visible
    node = widget.logic.getParameterNode()
    slicer.mrmlScene.Clear(False)
    assert widget.logic.getParameterNode() is node
    assert node.GetAttribute("ModuleName") == "TinyLife"
    assert not standin.slot_errors


def test_module_is_reloaded_with_its_new_source(tmp_path):
    path = write_module(tmp_path, "TinyReload")
    standin.load_module(path)
    slicer.util.selectModule("TinyReload")
    old = slicer.util.getModuleWidget("TinyReload")
    log = sys.modules["TinyReload"].log
    path.write_text(path.read_text(encoding="utf-8").replace('"Go"', '"Run"'), encoding="utf-8")
    old.onReload()
    new = slicer.util.getModuleWidget("TinyReload")
    assert log[-1] == "cleanup"
    assert new is not old
    assert new.button.text == "Run"
    assert not old.button.visible
    assert not standin.slot_errors


def test_mistakes_in_a_module_are_found(tmp_path):
    standin.load_module(write_module(tmp_path, "TinyError", extra="self.button.txt = 'x'"))
    slicer.util.selectModule("TinyError")
    assert "does not exist on QPushButton" in str(standin.slot_errors[0].exception)
    with pytest.raises(AttributeError, match="titel"):
        standin.load_module(write_module(tmp_path, "TinyTitle", title="titel"))


def test_error_is_shown_once_and_told_apart_from_the_unexpected(tmp_path):
    standin.set_testing_mode(False)
    standin.load_module(write_module(tmp_path, "TinyShown"))
    slicer.util.selectModule("TinyShown")
    slicer.util.getModuleWidget("TinyShown").button.click()
    assert [(message.level, message.text) for message in standin.messages] == [("error", "It failed.\n\nno volume")]
    assert "ValueError" in standin.messages[0].details
    assert [error.shown for error in standin.slot_errors] == [True]
    assert standin.unexpected_errors() == []


def test_messages_are_recorded_and_answered():
    assert slicer.util.confirmYesNoDisplay("sure?") is False, "not shown in testing mode"
    assert standin.messages == []
    standin.set_testing_mode(False)
    slicer.util.warningDisplay("hm")
    slicer.util.infoDisplay("well")
    assert slicer.util.confirmYesNoDisplay("sure?") is True
    standin.button_answers.append(qt.QMessageBox.No)
    assert slicer.util.confirmYesNoDisplay("sure?") is False
    levels = [(message.level, message.text) for message in standin.messages]
    assert levels == [("warning", "hm"), ("info", "well"), ("question", "sure?"), ("question", "sure?")]


def test_dialogs_never_wait():
    box = qt.QMessageBox()
    box.text = "Sure?"
    box.setStandardButtons(qt.QMessageBox.Ok | qt.QMessageBox.Cancel)
    standin.button_answers.append(qt.QMessageBox.Cancel)
    assert box.exec_() == qt.QMessageBox.Cancel  # a trailing underscore is the same method
    assert standin.messages[-1].text == "Sure?"
    with pytest.raises(RuntimeError, match="wait for ever"):
        qt.QDialog().exec_()
    with pytest.raises(RuntimeError, match="prepared no answer"):
        qt.QFileDialog.getOpenFileName(None, "Pick", "", "*.nrrd")
    standin.file_answers.append("")
    assert qt.QFileDialog.getOpenFileName(None, "Pick", "") == ""
    qt.QDesktopServices.openUrl(qt.QUrl("https://example.org/a"))
    assert standin.opened_urls == ["https://example.org/a"]


def test_application_refuses_what_it_does_not_have():
    before = slicer.app
    standin.install()
    assert slicer.app is before
    assert slicer.app.applicationLogic().IsA("vtkSlicerApplicationLogic")
    for name in ("attach", "main_window", "mainWindow"):
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


@pytest.mark.parametrize("name", ["volumes", "segmentations", "sequences", "plots"])
def test_logics_of_the_modules_are_real(name):
    logic = getattr(slicer.modules, name).logic()
    assert logic.IsA("vtkMRMLAbstractLogic")
    assert logic.GetMRMLScene() is slicer.mrmlScene


def test_subject_hierarchy_takes_nodes_in_and_out():
    hierarchy = slicer.mrmlScene.GetSubjectHierarchyNode()
    entry = hierarchy.GetItemByDataNode(add_volume())
    assert entry
    transform = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLGridTransformNode", "T")
    assert hierarchy.GetItemByDataNode(transform)
    hierarchy.SetItemParent(hierarchy.GetItemByDataNode(transform), entry)
    count = hierarchy.GetNumberOfItems()
    slicer.mrmlScene.RemoveNode(transform)
    assert hierarchy.GetNumberOfItems() == count - 1


def test_slices_show_what_is_selected():
    volume = add_volume()
    slicer.util.setSliceViewerLayers(background=volume, fit=True)
    logics = slicer.app.layoutManager().mrmlSliceLogics()
    assert logics.GetNumberOfItems() == 3
    red = logics.GetItemAsObject(0)
    assert red.GetSliceCompositeNode().GetBackgroundVolumeID() == volume.GetID()
    assert red.GetSliceNode().GetOrientation() == "Axial"
    assert red.GetSliceNode().GetFieldOfView()[0] < 50


def test_scene_keeps_its_singletons_when_it_is_closed():
    for _ in range(2):
        slicer.mrmlScene.Clear(False)
        for name in ("vtkMRMLSelectionNode", "vtkMRMLInteractionNode", "vtkMRMLCrosshairNode", "vtkMRMLLayoutNode"):
            assert slicer.mrmlScene.GetNumberOfNodesByClass(name) == 1
        assert slicer.mrmlScene.GetSubjectHierarchyNode() is not None
        assert slicer.mrmlScene.GetNumberOfNodesByClass("vtkMRMLSliceCompositeNode") == 3


def test_only_whole_scenes_are_saved_and_opened(tmp_path):
    for action in (slicer.util.saveScene, slicer.util.loadScene):
        with pytest.raises(NotImplementedError):
            action(str(tmp_path / "scene.mrml"))


@pytest.mark.skipif("SLICER_SOURCE_DIR" in os.environ, reason="Slicer's own would install")
def test_nothing_is_installed():
    from packaging.requirements import Requirement
    from slicer import packaging

    missing = Requirement("surely-not-installed-package>=1")
    with pytest.raises(RuntimeError, match="installs nothing"):
        packaging.pip_ensure([Requirement("numpy"), missing], skip_in_testing=False)
    assert slicer.app.testingEnabled()
    packaging.pip_ensure([missing])


def test_screenshot_is_as_wide_as_asked_and_shows_something(tmp_path):
    standin.load_module(write_module(tmp_path, "TinyPicture"))
    slicer.util.selectModule("TinyPicture")
    panel = slicer.util.getModuleWidget("TinyPicture").parent
    image = qt.QImage(str(standin.screenshot(panel, tmp_path / "panel.png", width=400)))
    assert image.width() == 800
    colors = {image.pixel(x, y) for x in range(0, 800, 3) for y in range(0, image.height(), 3)}
    assert len(colors) > 10
