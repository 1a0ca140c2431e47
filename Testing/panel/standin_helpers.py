"""What the tests of the stand-in share."""

import textwrap
import time

import numpy as np
import slicer
import standin


def add_volume(name="CT", shape=(3, 4, 5)):
    return slicer.util.addVolumeFromArray(np.arange(np.prod(shape), dtype=float).reshape(shape), name=name)


def wait_for(condition, seconds=30.0):
    end = time.monotonic() + seconds
    while not condition():
        standin.process_events(0.01)
        assert time.monotonic() < end, "nothing came of it"


def load_ui(tmp_path, body, custom="", connections=""):
    """Load a .ui file with these widgets in a qMRMLWidget 'T': (the widget, its named children)."""
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


def parameter_property(name):
    return f'<property name="SlicerParameterName" stdset="0"><string>{name}</string></property>'


def custom(*names):
    return "".join(
        f"<customwidget><class>{n}</class><extends>QWidget</extends><header>x.h</header></customwidget>" for n in names
    )


class Calls(list):
    """Collects the arguments of a slot; takes any number of them."""

    def __call__(self, *args):
        self.append(args)
