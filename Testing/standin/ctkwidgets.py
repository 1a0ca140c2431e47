"""The CTK widgets that the panel uses, built on PySide6.

Imitates commontk/CTK, Libs/Widgets: `ctkCollapsibleButton.cpp`, `ctkSliderWidget.cpp` (with `ctkDoubleSlider` and
`ctkDoubleSpinBox` inside), `ctkPathLineEdit.cpp`. CTK is wrapped without its plain C++ functions, so Python sees only
properties, slots, signals and Q_INVOKABLE functions: `slider.maximum = 3` exists, `slider.setRange(0, 3)` does not.
"""

from __future__ import annotations

import enum
from typing import Any, ClassVar

from PySide6 import QtCore, QtGui, QtWidgets
from PySide6.QtCore import Property, Qt, Signal

from .pythonqt import invokable, stored

_ATTRIBUTE = Qt.WidgetAttribute
_EXPLICIT = "visibilityToParent"


class ctkCollapsibleButton(QtWidgets.QAbstractButton):
    """A section: a header that folds its contents away (ctkCollapsibleButton.cpp).

    `checked` is always the opposite of `collapsed`. A folded section hides its children; one that the program hides
    or shows meanwhile is remembered and appears accordingly when the section is opened.
    """

    contentsCollapsed = Signal(bool)

    def __init__(self, parent: QtWidgets.QWidget | None = None) -> None:
        super().__init__(parent)
        self._collapsed, self._forcing, self._shown_once = False, False, False
        self._maximum_height = self.maximumHeight()
        self.setCheckable(True)
        self.setChecked(True)
        policy = QtWidgets.QSizePolicy.Policy
        self.setSizePolicy(policy.Minimum, policy.Preferred)
        self.setContentsMargins(0, self._header().height(), 0, 0)
        self.setBackgroundRole(QtGui.QPalette.ColorRole.Window)
        self.toggled.connect(lambda checked: self._collapse(not checked))

    collapsed = Property(bool, lambda self: self._collapsed, lambda self, collapsed: self.setChecked(not collapsed))

    # folding

    def _collapse(self, collapsed: bool) -> None:
        if collapsed == self._collapsed:
            return
        self._collapsed = collapsed
        if collapsed:
            self._maximum_height = self.maximumHeight()
            self.setMaximumHeight(self.sizeHint().height())
        else:
            self.setMaximumHeight(self._maximum_height)
        self._update_children()
        self.updateGeometry()
        self.contentsCollapsed.emit(collapsed)

    def _update_children(self) -> None:
        for child in self.children():
            if isinstance(child, QtWidgets.QWidget):
                self._watch(child)
                self._update_child(child)

    def _watch(self, child: QtWidgets.QWidget) -> None:
        if child.property("_watched"):
            return
        child.setProperty("_watched", True)
        if child.testAttribute(_ATTRIBUTE.WA_WState_ExplicitShowHide) and child.isHidden():
            child.setProperty(_EXPLICIT, False)
        child.installEventFilter(self)

    def _update_child(self, child: QtWidgets.QWidget) -> None:
        if not self.testAttribute(_ATTRIBUTE.WA_WState_Created):
            return
        explicitly_hidden = child.property(_EXPLICIT) is False
        self._forcing = True
        child.setVisible(not self._collapsed and not explicitly_hidden)
        if not explicitly_hidden:
            child.setAttribute(_ATTRIBUTE.WA_WState_ExplicitShowHide, False)
        self._forcing = False

    @invokable("bool")
    def setVisible(self, visible: bool) -> None:
        self._forcing = True
        super().setVisible(visible)
        self._forcing = False
        if not self._shown_once and self.testAttribute(_ATTRIBUTE.WA_WState_Created):
            self._shown_once = True
            self._update_children()

    def childEvent(self, event: QtCore.QChildEvent) -> None:
        # ChildPolished, not ChildAdded: only now is the child whole. Until then it can not be seen anyway.
        if event.type() == QtCore.QEvent.Type.ChildPolished and isinstance(event.child(), QtWidgets.QWidget):
            self._watch(event.child())
            if self._collapsed:
                self._update_child(event.child())
        super().childEvent(event)

    def eventFilter(self, child: QtCore.QObject, event: QtCore.QEvent) -> bool:
        if not self._forcing:
            if event.type() == QtCore.QEvent.Type.ShowToParent:
                child.setProperty(_EXPLICIT, True)
                self._update_child(child)
            elif event.type() == QtCore.QEvent.Type.HideToParent:
                child.setProperty(_EXPLICIT, False)
        return False

    # looks

    def _header(self) -> QtCore.QSize:
        option = QtWidgets.QStyleOptionButton()
        option.initFrom(self)
        metric = QtWidgets.QStyle.PixelMetric
        indicator = self.style().pixelMetric(metric.PM_IndicatorWidth, option, self)
        text = self.fontMetrics().size(Qt.TextFlag.TextShowMnemonic, self.text() or "XXXX")
        size = QtCore.QSize(indicator + 6 + text.width(), max(indicator, text.height()))
        return self.style().sizeFromContents(QtWidgets.QStyle.ContentsType.CT_PushButton, option, size, self)

    def sizeHint(self) -> QtCore.QSize:
        header = self._header()
        if self._collapsed:
            return header
        inner = self.layout().totalSizeHint() if self.layout() else QtCore.QSize()
        return inner.expandedTo(header)

    def minimumSizeHint(self) -> QtCore.QSize:
        header = self._header()
        if self._collapsed or self.layout() is None:
            return header
        return self.layout().totalMinimumSize().expandedTo(header)

    def paintEvent(self, event: QtGui.QPaintEvent) -> None:
        painter = QtGui.QPainter(self)
        height = self._header().height()
        option = QtWidgets.QStyleOptionButton()
        option.initFrom(self)
        option.rect = QtCore.QRect(0, 0, self.width(), height)
        option.state |= QtWidgets.QStyle.StateFlag.State_Raised
        option.state &= ~QtWidgets.QStyle.StateFlag.State_MouseOver
        self.style().drawControl(QtWidgets.QStyle.ControlElement.CE_PushButtonBevel, option, painter, self)
        side = self.style().pixelMetric(QtWidgets.QStyle.PixelMetric.PM_IndicatorWidth, option, self)
        arrow = QtWidgets.QStyleOption()
        arrow.initFrom(self)
        arrow.rect = QtCore.QRect((height - side) // 2, (height - side) // 2, side, side)
        element = QtWidgets.QStyle.PrimitiveElement
        self.style().drawPrimitive(
            element.PE_IndicatorArrowRight if self._collapsed else element.PE_IndicatorArrowDown, arrow, painter, self
        )
        self.style().drawItemText(
            painter,
            QtCore.QRect(arrow.rect.right() + 6, 0, self.width(), height),
            int(Qt.AlignmentFlag.AlignLeft | Qt.AlignmentFlag.AlignVCenter) | int(Qt.TextFlag.TextHideMnemonic),
            option.palette,
            self.isEnabled(),
            self.text(),
            QtGui.QPalette.ColorRole.ButtonText,
        )


class ctkSliderWidget(QtWidgets.QWidget):
    """A slider and a number field with one value (ctkSliderWidget.cpp, always with tracking)."""

    valueChanged = Signal(float)
    cpp_signals: ClassVar[dict[str, str]] = {"valueChanged(double)": "valueChanged(double)"}

    def __init__(self, parent: QtWidgets.QWidget | None = None) -> None:
        super().__init__(parent)
        self._syncing, self._value = False, 0.0
        self.slider = QtWidgets.QSlider(Qt.Orientation.Horizontal, self)
        self.slider.setObjectName("Slider")
        self.spinbox = QtWidgets.QDoubleSpinBox(self)
        self.spinbox.setObjectName("SpinBox")
        layout = QtWidgets.QHBoxLayout(self)
        layout.setContentsMargins(0, 0, 0, 0)
        layout.addWidget(self.slider, 1)
        layout.addWidget(self.spinbox)
        policy = QtWidgets.QSizePolicy.Policy
        self.setSizePolicy(policy.Expanding, policy.Fixed)
        self._update()
        self.spinbox.valueChanged.connect(self._update)
        self.slider.valueChanged.connect(self._from_slider)

    def _update(self, *_: Any) -> None:
        """Bring the slider in line with the number field, which rounds and clamps, and tell of a new value."""
        if self._syncing:
            return
        field, step = self.spinbox, self.spinbox.singleStep()
        self._syncing = True
        self.slider.setRange(0, min(max(1, round((field.maximum() - field.minimum()) / step)), 10**6))
        self.slider.setPageStep(max(1, round(self.pageStep / step)))
        self.slider.setValue(round((field.value() - field.minimum()) / step))
        self._syncing = False
        if field.value() != self._value:
            self._value = field.value()
            self.valueChanged.emit(self._value)

    def _from_slider(self, position: int) -> None:
        if not self._syncing:
            self.spinbox.setValue(self.spinbox.minimum() + position * self.spinbox.singleStep())

    def _set_limits(self, low: float, high: float) -> None:
        self._syncing = True
        self.spinbox.setRange(low, high)
        self._syncing = False
        self._update()

    def _set_step(self, step: float) -> None:
        # CTK says that a step is out of bounds and keeps the old one.
        if 0 < step <= self.spinbox.maximum() - self.spinbox.minimum():
            self.spinbox.setSingleStep(step)
            self._update()

    def _set_minimum(self, low: float) -> None:
        self._set_limits(low, max(low, self.spinbox.maximum()))

    def _set_maximum(self, high: float) -> None:
        self._set_limits(min(high, self.spinbox.minimum()), high)

    value = Property(float, lambda self: self._value, lambda self, value: self.spinbox.setValue(value))
    minimum = Property(float, lambda self: self.spinbox.minimum(), _set_minimum)
    maximum = Property(float, lambda self: self.spinbox.maximum(), _set_maximum)
    singleStep = Property(float, lambda self: self.spinbox.singleStep(), _set_step)
    pageStep = stored(float, 10.0, _update)
    decimals = Property(int, lambda self: self.spinbox.decimals(), lambda self, n: self.spinbox.setDecimals(n))


class ctkPathLineEdit(QtWidgets.QWidget):
    """A field for a path (ctkPathLineEdit.cpp); here its button opens no dialog.

    As in CTK `currentPathChanged` is not emitted for an empty path. The last paths are kept in the settings; the
    latest of them is shown when the widget is made. `start_folder` is where the dialog of an empty field would open.
    """

    start_folder = ""

    class Filter(enum.IntFlag):
        Dirs = 0x001
        Files = 0x002
        Drives = 0x004
        Readable = 0x010
        Writable = 0x020
        Executable = 0x040
        NoDotAndDotDot = 0x1000

    enum_properties: ClassVar[dict[str, type[enum.Enum]]] = {"filters": Filter}

    currentPathChanged = Signal(str)

    def __init__(self, parent: QtWidgets.QWidget | None = None) -> None:
        super().__init__(parent)
        self.combobox = QtWidgets.QComboBox(self)
        self.combobox.setEditable(True)
        self.combobox.setInsertPolicy(QtWidgets.QComboBox.InsertPolicy.NoInsert)
        policy = QtWidgets.QSizePolicy.Policy
        self.combobox.setSizePolicy(policy.Expanding, policy.Fixed)
        self.combobox.setMinimumContentsLength(8)
        self.combobox.setSizeAdjustPolicy(QtWidgets.QComboBox.SizeAdjustPolicy.AdjustToMinimumContentsLengthWithIcon)
        button = QtWidgets.QToolButton(self)
        button.setText("...")
        layout = QtWidgets.QHBoxLayout(self)
        layout.setContentsMargins(0, 0, 0, 0)
        layout.setSpacing(0)
        layout.addWidget(self.combobox)
        layout.addWidget(button)
        self.setSizePolicy(policy.Expanding, policy.Fixed)
        self.combobox.lineEdit().textChanged.connect(self._text_changed)

    currentPath = Property(
        str, lambda self: self.combobox.currentText(), lambda self, path: self.combobox.setEditText(path)
    )
    _DEFAULT = Filter.Dirs | Filter.Files | Filter.Drives | Filter.Readable | Filter.Executable | Filter.NoDotAndDotDot
    filters = stored(int, int(_DEFAULT))

    def _text_changed(self, path: str) -> None:
        ctkPathLineEdit.start_folder = path
        if path:
            self.currentPathChanged.emit(path)

    def _history(self) -> list[str]:
        found = QtCore.QSettings().value(self.settingKey)
        return [found] if isinstance(found, str) else list(found or [])

    @invokable()
    def comboBox(self) -> QtWidgets.QComboBox:
        return self.combobox

    @invokable()
    def retrieveHistory(self) -> None:
        path = self.combobox.currentText()
        self.combobox.clear()
        self.combobox.addItems(self._history()[: self._LONGEST_HISTORY])
        if path:
            self.combobox.setEditText(path)
        else:
            self.combobox.setCurrentIndex(0)

    @invokable()
    def addCurrentPathToHistory(self) -> None:
        path = self.combobox.currentText()
        if path:
            history = [path, *(other for other in self._history() if other != path)]
            QtCore.QSettings().setValue(self.settingKey, history)
            index = self.combobox.findText(path)
            if index >= 0:
                self.combobox.removeItem(index)
            self.combobox.insertItem(0, path)
            self.combobox.setMaxCount(self._LONGEST_HISTORY)
            self.combobox.setCurrentIndex(0)

    _LONGEST_HISTORY = 5
    settingKey = stored(str, "", retrieveHistory)


# PythonQt shows the values in the scope of the class.
for _member in ctkPathLineEdit.Filter:
    setattr(ctkPathLineEdit, _member.name, _member)
