"""User errors of a scene, each with a one-sentence message, and the translation of messages."""

from __future__ import annotations

from typing import Any

try:
    from slicer.i18n import tr
except ImportError:
    # slicer-core without the application has no translations.
    def tr(text: str) -> str:
        """Return the text unchanged."""
        return text


_ = tr


class SceneError(ValueError):
    """A mistake that the user can correct; the message is one sentence that says what to do."""


def nameOf(node: Any) -> str:
    """The name of a node for a message."""
    return (node.GetName() or node.GetID() or "without a name") if node is not None else "nothing"


def requireInScene(node: Any, what: str) -> None:
    """Raise SceneError if ``node`` is ``None`` or no longer part of a scene; ``what`` names its kind."""
    if node is None:
        raise SceneError(_("There is no {what}; choose one first.").format(what=what))
    if node.GetScene() is None:
        raise SceneError(
            _("The {what} '{name}' has been deleted; choose another one.").format(what=what, name=nameOf(node))
        )


def notADeformation(node: Any) -> SceneError:
    """The error for a node that is not a deformation of this module."""
    return SceneError(
        _("'{name}' is not a deformation made by this module; choose one that is.").format(name=nameOf(node))
    )
