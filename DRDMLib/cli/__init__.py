"""The ``drdm`` command.

Exit status: 0 success, 1 internal error, 2 invalid usage or input (one line on standard error), 130 stopped by Ctrl-C
or by a signal.
"""

from __future__ import annotations

import signal
import sys
import threading
import traceback
import warnings
from collections.abc import Sequence
from typing import Any

from ..errors import Cancelled, DRDMError, FallbackWarning
from ..io.files import shown
from ..runtime.probe import require_torch
from ..runtime.reporter import Reporter
from ..runtime.waiting import wait_passively
from .parser import build_parser
from .progress import JsonReporter, make_reporter
from .standard_input import interrupt_once, watch_standard_input


def _show_fallbacks(reporter: Reporter) -> None:
    """Show fallbacks as messages for the user instead of Python warnings."""
    default = warnings.showwarning
    shown: set[str] = set()

    def show(message: Any, category: type[Warning], *args: Any, **kwargs: Any) -> None:
        if issubclass(category, FallbackWarning):
            # A dataset's files may be read more than once.
            if str(message) not in shown:
                shown.add(str(message))
                reporter.warning(str(message))
        else:
            default(message, category, *args, **kwargs)

    warnings.simplefilter("always", FallbackWarning)
    warnings.showwarning = show


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command and return its exit status.

    Args:
        arguments: by default those of this process, which then has no other task.
    """
    options = build_parser().parse_args(arguments)
    options.command_line = sys.argv[1:] if arguments is None else list(arguments)
    if arguments is None:
        wait_passively()
    if getattr(options, "command", "") == "serve":
        # It watches signals and its standard input in its own way.
        from .serve import serve

        return serve(options)
    reporter = make_reporter(getattr(options, "progress", "none"))
    before: dict[int, Any] = {}
    try:
        if threading.current_thread() is threading.main_thread():
            # Clean up after a termination as after Ctrl-C. Only the first one interrupts: schedulers send several, and
            # impatient users press Ctrl-C again, which would end the cleanup.
            for number in (signal.SIGTERM, signal.SIGINT):
                # A shell starts programs in the background with Ctrl-C ignored.
                if number is signal.SIGTERM or signal.getsignal(number) is not signal.SIG_IGN:
                    before[number] = signal.signal(number, interrupt_once)
            if watch_standard_input() and isinstance(reporter, JsonReporter):
                # The end of standard input stops the run when nobody reads the output any more.
                reporter.needs_reader = False
        status = run_command(options, reporter)
    except KeyboardInterrupt:
        status = 130
    finally:
        # A process without another task goes on ignoring signals until it ends, so that its exit status is its own.
        for kind, handler in before.items() if arguments is not None else ():
            signal.signal(kind, handler)
    if isinstance(reporter, JsonReporter):
        reporter.ended(status)
    return status


def run_command(options: Any, reporter: Reporter) -> int:
    """Run the chosen command, report how it failed, and return its exit status."""

    def fail(status: int, text: str) -> int:
        reporter.close()
        if isinstance(reporter, JsonReporter):
            reporter.failed(text)
        print(f"drdm: {text}", file=sys.stderr)
        return status

    def internal_error() -> int:
        reporter.close()
        traceback.print_exc()
        return fail(1, "This is an error in DRDM; please report it with the lines above.")

    try:
        with warnings.catch_warnings():
            _show_fallbacks(reporter)
            require_torch()
            options.func(options, reporter)
    except DRDMError as error:
        return fail(2, str(error))
    except (KeyboardInterrupt, Cancelled):
        return fail(130, "Stopped; finished results are kept, and no file is incomplete.")
    except MemoryError:
        return fail(2, "There is not enough memory for this image; close other programs or use a smaller image.")
    except BrokenPipeError:
        return 1
    except OSError as error:
        if error.filename is None:
            return internal_error()
        return fail(2, f"'{shown(str(error.filename))}' cannot be used ({error.strerror}); check the path.")
    except Exception:
        return internal_error()
    reporter.close()
    return 0
