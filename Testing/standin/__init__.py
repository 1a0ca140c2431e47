"""A stand-in for Slicer's application layer, for driving a module panel in tests over a real MRML scene.

    import standin

    standin.install()
    module = standin.load_module("DRDMDeform/DRDMDeform.py")
    slicer.util.selectModule("DRDMDeform")
    widget = slicer.util.getModuleWidget("DRDMDeform")
    widget.ui.applyButton.click()
    assert not standin.slot_errors

See README.md beside this file.
"""

from .driving import (
    finish_startup,
    load_module,
    load_scene,
    process_events,
    reset,
    save_scene,
    screenshot,
    set_testing,
    show,
    unload_module,
    view_picture,
    wait_until,
)
from .install import install, installed, state
from .records import Message, SlotError, records

slot_errors = records.slot_errors
messages = records.messages
file_answers = records.file_answers
button_answers = records.button_answers
text_answers = records.text_answers
opened_urls = records.opened_urls
unexpected_errors = records.unexpected_errors

__all__ = [
    "Message",
    "SlotError",
    "button_answers",
    "file_answers",
    "finish_startup",
    "install",
    "installed",
    "load_module",
    "load_scene",
    "messages",
    "opened_urls",
    "process_events",
    "records",
    "reset",
    "save_scene",
    "screenshot",
    "set_testing",
    "show",
    "slot_errors",
    "state",
    "text_answers",
    "unexpected_errors",
    "unload_module",
    "view_picture",
    "wait_until",
]
