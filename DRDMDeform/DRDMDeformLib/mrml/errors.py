"""What a person can get wrong in a scene, said in one sentence."""

from __future__ import annotations

from typing import Any

try:
    from slicer.i18n import tr
except ImportError:

    def tr(text: str) -> str:
        """The text itself."""
        return text


_ = tr


class SceneError(ValueError):
    """A mistake that the user can put right; the message is one clear sentence that says what to do."""


def nameOf(node: Any) -> str:
    """The name of a node for a message."""
    return (node.GetName() or node.GetID() or "without a name") if node is not None else "nothing"


def requireInScene(node: Any, what: str) -> None:
    """Raises SceneError when ``node`` is ``None`` or no longer part of a scene."""
    if node is None:
        raise SceneError(_("There is no {what}; choose one first.").format(what=what))
    if node.GetScene() is None:
        raise SceneError(
            _("The {what} '{name}' has been deleted; choose another one.").format(what=what, name=nameOf(node))
        )
