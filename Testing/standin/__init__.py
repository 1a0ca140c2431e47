"""A stand-in for Slicer's application layer, for driving a module panel in tests over a real MRML scene.

See README.md beside this file.
"""

from .driving import finish_startup, load_module, process_events, screenshot, set_testing_mode
from .install import install
from .records import records

slot_errors = records.slot_errors
messages = records.messages
file_answers = records.file_answers
button_answers = records.button_answers
opened_urls = records.opened_urls
unexpected_errors = records.unexpected_errors

__all__ = [
    "button_answers",
    "file_answers",
    "finish_startup",
    "install",
    "load_module",
    "messages",
    "opened_urls",
    "process_events",
    "records",
    "screenshot",
    "set_testing_mode",
    "slot_errors",
    "unexpected_errors",
]
