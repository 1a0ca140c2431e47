"""Qt objects are what PythonQt makes of them: properties, signals and enumerations, and nothing of PySide's own."""

import gc
import pathlib
import weakref

import ctk
import numpy as np
import pytest
import qt
import slicer
import standin
from standin_helpers import Calls, wait_for


def test_property_is_attribute_and_cannot_be_called():
    label = qt.QLabel("a")
    label.text = "b"
    assert label.text == "b"
    assert label.enabled is True
    with pytest.raises(TypeError, match="not callable"):
        label.text()
    button = qt.QPushButton("x")
    button.checkable = True
    button.setChecked(True)
    # A getter of another name is a method.
    assert (button.checked, button.isChecked(), qt.QTableWidgetItem("t").text()) == (True, True, "t")


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


def test_what_can_not_be_written_is_refused():
    button = qt.QPushButton()
    for name in ("click", "clicked", "setText"):
        with pytest.raises(AttributeError, match="can not be overwritten"):
            setattr(button, name, lambda: None)
    with pytest.raises(AttributeError, match="not writable"):
        qt.QComboBox().count = 3


@pytest.mark.parametrize("value", [None, "3", object(), [1], np.float64(3.0)])
def test_wrong_type_for_an_int_is_refused(value):
    spin = qt.QSpinBox()
    with pytest.raises(AttributeError, match="does not accept"):
        spin.value = value
    assert spin.value == 0


def test_values_are_converted_as_in_pythonqt():
    spin = qt.QSpinBox()
    spin.value = 3.9
    assert spin.value == 3
    spin.value = np.int64(5)
    assert spin.value == 5
    with pytest.raises(AttributeError, match="does not accept"):
        qt.QLabel().text = None
    with pytest.raises((TypeError, ValueError)):
        qt.QComboBox().addItem(pathlib.Path("x"))


def test_keyword_arguments_are_refused():
    for call in (lambda: qt.QLabel(text="x"), lambda: qt.QLabel("x").setText(text="y")):
        with pytest.raises((TypeError, ValueError), match="keyword"):
            call()


def test_pyside_flavor_does_not_leak():
    label = qt.QLabel()
    assert not hasattr(label, "staticMetaObject")
    for name in ("Signal", "Slot", "Property", "QNoSuchThing"):
        with pytest.raises(AttributeError):
            getattr(qt, name)


def test_enumerations_are_integers_of_the_class():
    assert qt.Qt.Checked == 2
    assert qt.QMessageBox.Ok | qt.QMessageBox.Cancel == int(qt.QMessageBox.Ok) + int(qt.QMessageBox.Cancel)
    with pytest.raises(AttributeError, match="scope of the class"):
        _ = qt.QSizePolicy.Policy.Expanding
    with pytest.raises(AttributeError):
        _ = qt.Qt.AlignmentFlag.AlignLeft
    box = qt.QMessageBox()
    box.setStandardButtons(qt.QMessageBox.Ok | qt.QMessageBox.Cancel)
    assert box.standardButtons == qt.QMessageBox.Ok | qt.QMessageBox.Cancel


def test_wrappers_compare_by_object_and_know_their_end():
    parent = qt.QWidget()
    label = qt.QLabel("x", parent)
    label.name = "l"
    assert label.objectName == "l"
    assert parent.children()[0] == label
    assert parent.findChildren(qt.QLabel, "l") == parent.findChildren("QLabel", "l") == (label,)
    assert parent.findChildren(qt.QPushButton, "l") == ()
    parent.deleteLater()
    standin.process_events()
    assert not label
    assert label == None  # noqa: E711
    with pytest.raises(ValueError):
        _ = label.text


def test_lists_come_as_tuples():
    combo = slicer.qMRMLNodeComboBox()
    combo.nodeTypes = ["vtkMRMLModelNode"]
    assert combo.nodeTypes == ("vtkMRMLModelNode",)
    with pytest.raises(AttributeError):
        combo.nodeTypes = "vtkMRMLModelNode"


def test_timer():
    timer, calls = qt.QTimer(), Calls()
    with pytest.raises(AttributeError):
        timer.singleShot = True  # no property in PythonQt
    timer.setSingleShot(True)
    timer.interval = 1
    timer.connect("timeout()", calls)
    timer.start()
    qt.QTimer.singleShot(0, calls)
    wait_for(lambda: len(calls) == 2)
    assert timer.isActive() is False


# -- signals and slots


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

    panel, box = Panel(), qt.QCheckBox()
    button.clicked.connect(panel.none)
    button.clicked.connect(panel.one)
    button.clicked.connect(lambda: seen.append("lambda"))
    button.connect("clicked()", box.toggle)
    button.click()
    assert (seen, box.checked) == (["none", False, "lambda"], True)
    assert not standin.slot_errors
    button.connect("clicked()", lambda checked: None)
    button.click()
    assert isinstance(standin.slot_errors[0].exception, TypeError)


@pytest.mark.parametrize("signal", ["click()", "clicked(int)", "clicked", "pressed(bool)", ""])
def test_signal_that_does_not_exist_is_refused(signal):
    with pytest.raises(AttributeError, match="does not exist"):
        qt.QPushButton().connect(signal, lambda: None)
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


def test_connections_end_with_the_widget():
    class Owner:
        pass

    owner, button = Owner(), qt.QPushButton()
    button.clicked.connect(lambda owner=owner: None)
    reference = weakref.ref(owner)
    del owner
    assert reference() is not None
    button.deleteLater()
    standin.process_events()
    gc.collect()
    assert reference() is None


def test_a_signal_that_is_called_is_emitted():
    table, calls = qt.QTableWidget(2, 2), Calls()
    table.connect("cellClicked(int,int)", calls)
    table.cellClicked(1, 0)
    assert calls == [(1, 0)]
