"""The CTK widgets that the panel uses, built on PySide6.

Imitates commontk/CTK, Libs/Widgets: `ctkCollapsibleButton.cpp`, `ctkSliderWidget.cpp` (with `ctkDoubleSlider` and
`ctkDoubleSpinBox` inside), `ctkPathLineEdit.cpp`, `ctkComboBox.cpp`, `ctkMessageBox.cpp`. CTK is wrapped without its
plain C++ functions, so Python sees only properties, slots, signals and Q_INVOKABLE functions: `slider.maximum = 3`
exists, `slider.setRange(0, 3)` does not.
"""

from __future__ import annotations

import enum
import math
import re
from pathlib import Path
from typing import Any, ClassVar

from PySide6 import QtCore, QtGui, QtWidgets
from PySide6.QtCore import Property, Qt, Signal

from .pythonqt import invokable
from .records import Message, records

_ATTRIBUTE = Qt.WidgetAttribute
_EXPLICIT = "visibilityToParent"


class ctkCollapsibleButton(QtWidgets.QAbstractButton):
    """A section: a header that folds its contents away (ctkCollapsibleButton.cpp).

    `checked` is always the opposite of `collapsed`. A folded section hides its children; one that the program hides
    or shows meanwhile is remembered and appears accordingly when the section is opened.
    """

    contentsCollapsed = Signal(bool)

    def __init__(self, *args: Any) -> None:
        texts = [a for a in args if isinstance(a, str)]
        parents = [a for a in args if isinstance(a, QtWidgets.QWidget)]
        super().__init__(parents[0] if parents else None)
        self._collapsed, self._forcing, self._shown_once = False, False, False
        self._flat, self._collapsed_height = False, 14
        self._frame_shape = QtWidgets.QFrame.Shape.NoFrame
        self._maximum_height = self.maximumHeight()
        self.setCheckable(True)
        self.setChecked(True)
        if texts:
            self.setText(texts[0])
        policy = QtWidgets.QSizePolicy.Policy
        self.setSizePolicy(policy.Minimum, policy.Preferred)
        self.setContentsMargins(0, self._header().height(), 0, 0)
        self.setBackgroundRole(QtGui.QPalette.ColorRole.Window)
        self.toggled.connect(lambda checked: self._collapse(not checked))

    # properties

    def _get_collapsed(self) -> bool:
        return self._collapsed

    def _set_collapsed(self, collapsed: bool) -> None:
        if self.isCheckable():
            self.setChecked(not collapsed)
        else:
            self._collapse(collapsed)

    def _get_flat(self) -> bool:
        return self._flat

    def _set_flat(self, flat: bool) -> None:
        self._flat = flat
        self.update()

    def _get_height(self) -> int:
        return self._collapsed_height

    def _set_height(self, height: int) -> None:
        self._collapsed_height = height
        self.updateGeometry()

    def _get_frame_shape(self) -> int:
        return int(self._frame_shape)

    def _set_frame_shape(self, shape: int) -> None:
        self._frame_shape = QtWidgets.QFrame.Shape(shape)
        self.update()

    collapsed = Property(bool, _get_collapsed, _set_collapsed)
    flat = Property(bool, _get_flat, _set_flat)
    collapsedHeight = Property(int, _get_height, _set_height)
    contentsFrameShape = Property(int, _get_frame_shape, _set_frame_shape)

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
            return header + QtCore.QSize(0, 0)
        inner = self.layout().totalSizeHint() if self.layout() else QtCore.QSize()
        return inner.expandedTo(header)

    def minimumSizeHint(self) -> QtCore.QSize:
        header = self._header()
        if self._collapsed or self.layout() is None:
            return header
        return self.layout().totalMinimumSize().expandedTo(header)

    def hitButton(self, position: QtCore.QPoint) -> bool:
        return position.y() < self._header().height()

    def event(self, event: QtCore.QEvent) -> bool:
        if event.type() in (QtCore.QEvent.Type.StyleChange, QtCore.QEvent.Type.FontChange):
            self.setContentsMargins(0, self._header().height(), 0, 0)
            if self._collapsed:
                self.setMaximumHeight(self.sizeHint().height())
        return super().event(event)

    def paintEvent(self, event: QtGui.QPaintEvent) -> None:
        painter = QtGui.QPainter(self)
        height = self._header().height()
        option = QtWidgets.QStyleOptionButton()
        option.initFrom(self)
        option.rect = QtCore.QRect(0, 0, self.width(), height)
        if self._flat:
            option.features |= QtWidgets.QStyleOptionButton.ButtonFeature.Flat
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
    """A slider and a number field with one value (ctkSliderWidget.cpp)."""

    valueChanged = Signal(float)
    valueIsChanging = Signal(float)
    decimalsChanged = Signal(int)
    cpp_signals: ClassVar[dict[str, str]] = {
        "valueChanged(double)": "valueChanged(double)",
        "valueIsChanging(double)": "valueIsChanging(double)",
        "decimalsChanged(int)": "decimalsChanged(int)",
    }

    def __init__(self, parent: QtWidgets.QWidget | None = None) -> None:
        super().__init__(parent)
        self._tracking, self._dragging, self._syncing, self._value = True, False, False, 0.0
        self._before = 0.0
        self._page, self._tick = 10.0, 0.0
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
        self._update_slider()
        self.spinbox.valueChanged.connect(self._from_spinbox)
        self.slider.valueChanged.connect(self._from_slider)
        self.slider.sliderPressed.connect(self._start)
        self.slider.sliderReleased.connect(self._stop)

    # one value, two views of it

    def _ticks(self) -> int:
        return max(1, round((self.spinbox.maximum() - self.spinbox.minimum()) / self.spinbox.singleStep()))

    def _update_slider(self) -> None:
        self._syncing = True
        self.slider.setRange(0, min(self._ticks(), 10**6))
        self.slider.setPageStep(max(1, round(self._page / self.spinbox.singleStep())))
        span = self.spinbox.maximum() - self.spinbox.minimum()
        share = (self._value - self.spinbox.minimum()) / span if span > 0 else 0.0
        self.slider.setValue(round(share * self.slider.maximum()))
        self._syncing = False

    def _accept(self, value: float) -> None:
        if value == self._value:
            return
        self._value = value
        if not self._tracking:
            self.valueIsChanging.emit(value)
        if not self._dragging:
            self.valueChanged.emit(value)

    def _from_spinbox(self, value: float) -> None:
        if self._syncing:
            return
        old, self._value = self._value, value
        self._update_slider()
        self._value = old
        self._accept(value)

    def _from_slider(self, position: int) -> None:
        if self._syncing:
            return
        value = min(self.spinbox.minimum() + position * self.spinbox.singleStep(), self.spinbox.maximum())
        self._syncing = True
        self.spinbox.setValue(value)
        self._syncing = False
        self._accept(value)

    def _start(self) -> None:
        if not self._tracking:
            self._before, self._dragging = self._value, True

    def _stop(self) -> None:
        if not self._tracking:
            self._dragging = False
            if not math.isclose(self._value, self._before):
                self.valueChanged.emit(self._value)

    def _get_value(self) -> float:
        return self._before if self._dragging else self._value

    def _set_value(self, value: float) -> None:
        dragging, self._dragging = self._dragging, False
        self.spinbox.setValue(value)
        self._dragging = dragging

    def _set_limits(self, low: float, high: float) -> None:
        self._syncing = True
        self.spinbox.setRange(low, high)
        self._syncing = False
        old = self._value
        self._value = self.spinbox.value()
        self._update_slider()
        self._value, new = old, self._value
        self._accept(new)

    def _get_minimum(self) -> float:
        return self.spinbox.minimum()

    def _set_minimum(self, low: float) -> None:
        self._set_limits(low, max(low, self.spinbox.maximum()))

    def _get_maximum(self) -> float:
        return self.spinbox.maximum()

    def _set_maximum(self, high: float) -> None:
        self._set_limits(min(high, self.spinbox.minimum()), high)

    def _get_step(self) -> float:
        return self.spinbox.singleStep()

    def _set_step(self, step: float) -> None:
        if step <= 0 or step > self.spinbox.maximum() - self.spinbox.minimum():
            records.qt_warnings.append(f"ctkSliderWidget::setSingleStep() {step} is out of bounds.")
            return
        self.spinbox.setSingleStep(step)
        self._update_slider()

    def _get_page(self) -> float:
        return self._page

    def _set_page(self, step: float) -> None:
        self._page = step
        self._update_slider()

    def _get_decimals(self) -> int:
        return self.spinbox.decimals()

    def _set_decimals(self, decimals: int) -> None:
        self._syncing = True
        self.spinbox.setDecimals(decimals)
        self._syncing = False
        self._update_slider()
        self.decimalsChanged.emit(decimals)

    def _get_prefix(self) -> str:
        return self.spinbox.prefix()

    def _set_prefix(self, prefix: str) -> None:
        self.spinbox.setPrefix(prefix)

    def _get_suffix(self) -> str:
        return self.spinbox.suffix()

    def _set_suffix(self, suffix: str) -> None:
        self.spinbox.setSuffix(suffix)

    def _get_tick(self) -> float:
        return self._tick

    def _set_tick(self, interval: float) -> None:
        self._tick = interval
        self.slider.setTickInterval(round(interval / self.spinbox.singleStep()))

    def _get_tick_position(self) -> int:
        return int(self.slider.tickPosition().value)

    def _set_tick_position(self, position: int) -> None:
        self.slider.setTickPosition(QtWidgets.QSlider.TickPosition(position))

    def _get_tracking(self) -> bool:
        return self._tracking

    def _set_tracking(self, tracking: bool) -> None:
        self._tracking = tracking

    def _get_spinbox_visible(self) -> bool:
        return self.spinbox.isVisibleTo(self)

    def _set_spinbox_visible(self, visible: bool) -> None:
        self.spinbox.setVisible(visible)

    def _get_inverted(self) -> bool:
        return self.slider.invertedAppearance()

    def _set_inverted(self, inverted: bool) -> None:
        self.slider.setInvertedAppearance(inverted)

    value = Property(float, _get_value, _set_value)
    minimum = Property(float, _get_minimum, _set_minimum)
    maximum = Property(float, _get_maximum, _set_maximum)
    singleStep = Property(float, _get_step, _set_step)
    pageStep = Property(float, _get_page, _set_page)
    decimals = Property(int, _get_decimals, _set_decimals)
    prefix = Property(str, _get_prefix, _set_prefix)
    suffix = Property(str, _get_suffix, _set_suffix)
    tickInterval = Property(float, _get_tick, _set_tick)
    tickPosition = Property(int, _get_tick_position, _set_tick_position)
    tracking = Property(bool, _get_tracking, _set_tracking)
    spinBoxVisible = Property(bool, _get_spinbox_visible, _set_spinbox_visible)
    invertedAppearance = Property(bool, _get_inverted, _set_inverted)

    @invokable()
    def reset(self) -> None:
        self._set_value(0.0)

    @invokable("double")
    def setValue(self, value: float) -> None:
        self._set_value(value)

    @invokable("bool")
    def setSpinBoxVisible(self, visible: bool) -> None:
        self._set_spinbox_visible(visible)

    @invokable("int")
    def setDecimals(self, decimals: int) -> None:
        self._set_decimals(decimals)


class ctkPathLineEdit(QtWidgets.QWidget):
    """A field for a path with a button that opens a dialog and a history (ctkPathLineEdit.cpp).

    As in CTK `currentPathChanged` is not emitted for a path that does not fit the name filters, so never for "".
    """

    class Filter(enum.IntFlag):
        Dirs = 0x001
        Files = 0x002
        Drives = 0x004
        NoSymLinks = 0x008
        AllEntries = 0x007
        TypeMask = 0x00F
        Readable = 0x010
        Writable = 0x020
        Executable = 0x040
        PermissionMask = 0x070
        Modified = 0x080
        Hidden = 0x100
        System = 0x200
        AllDirs = 0x400
        CaseSensitive = 0x800
        NoDotAndDotDot = 0x1000
        NoDot = 0x2000
        NoDotDot = 0x4000

    class SizeAdjustPolicy(enum.IntEnum):
        AdjustToContents = 0
        AdjustToContentsOnFirstShow = 1
        AdjustToMinimumContentsLength = 2

    _HISTORY: ClassVar[int] = 5
    enum_properties: ClassVar[dict[str, type[enum.Enum]]] = {"filters": Filter, "sizeAdjustPolicy": SizeAdjustPolicy}

    currentPathChanged = Signal(str)
    validInputChanged = Signal(bool)

    def __init__(self, parent: QtWidgets.QWidget | None = None) -> None:
        super().__init__(parent)
        flags = ctkPathLineEdit.Filter
        self._label, self._key, self._name_filters, self._valid = "", "", [], False
        self._filters = int(flags.AllEntries | flags.NoDotAndDotDot | flags.Readable | flags.Executable)
        self._size_policy, self._minimum_length = 2, 0
        self.combobox = QtWidgets.QComboBox(self)
        self.combobox.setEditable(True)
        self.combobox.setInsertPolicy(QtWidgets.QComboBox.InsertPolicy.NoInsert)
        self.combobox.setSizePolicy(QtWidgets.QSizePolicy.Policy.Expanding, QtWidgets.QSizePolicy.Policy.Fixed)
        self.combobox.setMinimumContentsLength(8)
        self.combobox.setSizeAdjustPolicy(QtWidgets.QComboBox.SizeAdjustPolicy.AdjustToMinimumContentsLengthWithIcon)
        self.browse_button = QtWidgets.QToolButton(self)
        self.browse_button.setText("...")
        layout = QtWidgets.QHBoxLayout(self)
        layout.setContentsMargins(0, 0, 0, 0)
        layout.setSpacing(0)
        layout.addWidget(self.combobox)
        layout.addWidget(self.browse_button)
        policy = QtWidgets.QSizePolicy.Policy
        self.setSizePolicy(policy.Expanding, policy.Fixed)
        self.combobox.lineEdit().textChanged.connect(self._changed)
        self.browse_button.clicked.connect(self.browse)

    def _acceptable(self, path: str) -> bool:
        extensions = [
            extension
            for name_filter in self._name_filters
            for wildcard in name_filter.split("(")[-1].rstrip(")").split()
            for extension in re.findall(r"\*\.(\w+)", wildcard)[:1]
        ]
        # CTK sees only the first part of an extension (of "*.nii.gz" it sees "nii"); the last letter is optional.
        pattern = "|".join(rf".*\.{extension}?" for extension in extensions) or ".+"
        return re.fullmatch(pattern, path) is not None

    def _changed(self, path: str) -> None:
        was, self._valid = self._valid, self._acceptable(path)
        if self._valid:
            self.currentPathChanged.emit(path)
        if self._valid != was:
            self.validInputChanged.emit(self._valid)

    def _get_path(self) -> str:
        return self.combobox.lineEdit().text()

    def _set_path(self, path: str) -> None:
        self.combobox.lineEdit().setText(path)

    def _get_label(self) -> str:
        return self._label

    def _set_label(self, label: str) -> None:
        self._label = label

    def _get_filters(self) -> int:
        return self._filters

    def _set_filters(self, filters: int) -> None:
        self._filters = int(filters)

    def _get_names(self) -> list[str]:
        return list(self._name_filters)

    def _set_names(self, names: list[str]) -> None:
        self._name_filters = list(names)

    def _get_key(self) -> str:
        return self._key

    def _set_key(self, key: str) -> None:
        self._key = key
        self.retrieveHistory()

    def _get_browse(self) -> bool:
        return self.browse_button.isVisibleTo(self)

    def _set_browse(self, visible: bool) -> None:
        self.browse_button.setVisible(visible)

    def _get_history(self) -> bool:
        return True

    def _set_history(self, visible: bool) -> None:
        self.combobox.setEditable(True)

    def _get_policy(self) -> int:
        return self._size_policy

    def _set_policy(self, policy: int) -> None:
        self._size_policy = int(policy)

    def _get_length(self) -> int:
        return self._minimum_length

    def _set_length(self, length: int) -> None:
        self._minimum_length = length

    currentPath = Property(str, _get_path, _set_path)
    label = Property(str, _get_label, _set_label)
    filters = Property(int, _get_filters, _set_filters)
    nameFilters = Property("QStringList", _get_names, _set_names)
    settingKey = Property(str, _get_key, _set_key)
    showBrowseButton = Property(bool, _get_browse, _set_browse)
    showHistoryButton = Property(bool, _get_history, _set_history)
    sizeAdjustPolicy = Property(int, _get_policy, _set_policy)
    minimumContentsLength = Property(int, _get_length, _set_length)

    def _settings_key(self) -> str:
        return "ctkPathLineEdit/" + (self._key or self.objectName())

    def _stored(self) -> list[str]:
        stored = QtCore.QSettings().value(self._settings_key())
        return [stored] if isinstance(stored, str) else list(stored or [])

    @invokable("QString")
    def setCurrentPath(self, path: str) -> None:
        self._set_path(path)

    @invokable()
    def browse(self) -> None:
        flags = ctkPathLineEdit.Filter
        kind = "directory"
        if self._filters & flags.Files:
            kind = "save" if self._filters & flags.Writable else "open"
        path = ask_for_path(kind, self._label, self._get_path(), ";;".join(self._name_filters))
        if path:
            self._set_path(path)

    @invokable()
    def retrieveHistory(self) -> None:
        path = self._get_path()
        was = self.blockSignals(True)
        self.combobox.clear()
        self.combobox.addItems(self._stored()[: self._HISTORY])
        if path:
            self._set_path(path)
            self.blockSignals(was)
        else:
            self.blockSignals(was)
            self.combobox.setCurrentIndex(0)

    @invokable()
    def addCurrentPathToHistory(self) -> None:
        path = self._get_path()
        if not path:
            return
        history = [path] + [entry for entry in self._stored() if entry != path]
        QtCore.QSettings().setValue(self._settings_key(), history)
        index = self.combobox.findText(path)
        if index >= 0:
            self.combobox.removeItem(index)
        while self.combobox.count() >= self._HISTORY:
            self.combobox.removeItem(self.combobox.count() - 1)
        self.combobox.insertItem(0, path)
        self.combobox.setCurrentIndex(0)

    @invokable()
    def comboBox(self) -> QtWidgets.QComboBox:
        return self.combobox


# The values are seen in the scope of the class.
for _kind in (ctkPathLineEdit.Filter, ctkPathLineEdit.SizeAdjustPolicy):
    for _name, _member in _kind.__members__.items():
        setattr(ctkPathLineEdit, _name, _member)


class ctkComboBox(QtWidgets.QComboBox):
    """A combo box that can show a hint while nothing is selected (ctkComboBox.cpp)."""

    def __init__(self, parent: QtWidgets.QWidget | None = None) -> None:
        super().__init__(parent)
        self._default, self._forced = "", False

    def _get_default(self) -> str:
        return self._default

    def _set_default(self, text: str) -> None:
        self._default = text
        self.update()

    def _get_forced(self) -> bool:
        return self._forced

    def _set_forced(self, forced: bool) -> None:
        self._forced = forced
        self.update()

    def _get_data(self) -> str:
        return str(self.currentData() or "")

    def _set_data(self, data: str) -> None:
        self.setCurrentIndex(self.findData(data))

    defaultText = Property(str, _get_default, _set_default)
    forceDefault = Property(bool, _get_forced, _set_forced)
    currentUserDataAsString = Property(str, _get_data, _set_data)

    def paintEvent(self, event: QtGui.QPaintEvent) -> None:
        painter = QtWidgets.QStylePainter(self)
        option = QtWidgets.QStyleOptionComboBox()
        self.initStyleOption(option)
        if self._forced or self.currentIndex() < 0:
            option.currentText = self._default
        painter.drawComplexControl(QtWidgets.QStyle.ComplexControl.CC_ComboBox, option)
        painter.drawControl(QtWidgets.QStyle.ControlElement.CE_ComboBoxLabel, option)


_LEVELS = {
    QtWidgets.QMessageBox.Icon.Information: "info",
    QtWidgets.QMessageBox.Icon.Warning: "warning",
    QtWidgets.QMessageBox.Icon.Critical: "error",
    QtWidgets.QMessageBox.Icon.Question: "question",
}


def answer_message(level: str, text: str, title: str, details: str, buttons: Any) -> Any:
    """Record a message box and press a button: the next of `records.button_answers`, else the affirmative one."""
    kinds = QtWidgets.QMessageBox.StandardButton
    if records.button_answers:
        answer = getattr(records.button_answers[0], "native", records.button_answers[0])
        del records.button_answers[0]
    else:
        answer = next((b for b in (kinds.Ok, kinds.Yes, kinds.Close, kinds.Cancel) if b in buttons), kinds.Ok)
    records.messages.append(Message(level, text, title.strip(), details, answer))
    return answer


class ctkMessageBox(QtWidgets.QMessageBox):
    """A message box; it is recorded and answered, never shown (ctkMessageBox.cpp, used by slicer.util.messageBox)."""

    def __init__(self, parent: QtWidgets.QWidget | None = None) -> None:
        super().__init__(parent)
        self._key = ""

    def _get_key(self) -> str:
        return self._key

    def _set_key(self, key: str) -> None:
        self._key = key

    dontShowAgainSettingsKey = Property(str, _get_key, _set_key)

    def exec(self) -> int:
        level = _LEVELS.get(self.icon(), "info")
        answer = answer_message(level, self.text(), self.windowTitle(), self.detailedText(), self.standardButtons())
        return answer


class ctkDoubleSpinBox(QtWidgets.QDoubleSpinBox):
    """Only a name for the connectors of parameterNodeWrapper; not for panels."""


def ask_for_path(kind: str, title: str, start: str, name_filter: str) -> Any:
    """A file dialog: recorded, answered by the next of `records.file_answers`.

    Raises:
        RuntimeError: no answer was prepared.
    """
    records.file_dialogs.append({"kind": kind, "title": title, "start": start, "filter": name_filter})
    if not records.file_answers:
        raise RuntimeError(
            f"A dialog ({kind}) was opened and the test prepared no answer (standin.records.file_answers)"
        )
    answer = records.file_answers.pop(0)
    if isinstance(answer, Path):
        return str(answer)
    return answer
