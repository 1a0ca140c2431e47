"""Writes docs/api.md, the reference, from the docstrings: ``python docs/make_api.py``.

Nothing is imported, so that it runs anywhere and the module's part needs no Slicer. ``--check`` only says whether the
page is up to date.
"""

from __future__ import annotations

import ast
import inspect
import re
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "api.md"
LOGIC = ROOT / "DRDMDeform" / "DRDMDeformLib"
SECTIONS = re.compile(r"^(Args|Attributes|Returns|Raises|Warns|Usage example|Args and result as in .*):(.*)$")

HEAD = """# Reference

Made of the docstrings by `python docs/make_api.py`; do not edit. Lengths are millimetres and coordinates LPS unless it
says otherwise; the shapes of tensors and what a field means are on the page [geometry](geometry.md). Mistakes that you
can put right raise `DRDMError` or one of its kinds, with one sentence that says what to do.
"""


def parsed(path: Path) -> ast.Module:
    """Syntax tree of a source file."""
    return ast.parse(path.read_text(encoding="utf-8"))


def definition(tree: ast.Module, name: str) -> ast.stmt | None:
    """The public function, class or assignment of that name."""
    kinds = (ast.FunctionDef, ast.ClassDef)
    return next((node for node in tree.body if isinstance(node, kinds) and node.name == name), None)


def exported() -> dict[str, str]:
    """Name -> module of DRDMLib, as its ``__init__`` has them."""
    for node in parsed(ROOT / "DRDMLib" / "__init__.py").body:
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name) and node.targets[0].id == "_WHERE":
            return dict(ast.literal_eval(node.value))
    raise AssertionError("DRDMLib/__init__.py has no _WHERE")


def docstring(node: ast.AST) -> str:
    """As Markdown: sections become bold, their entries a list, examples code."""
    text = inspect.cleandoc(ast.get_docstring(node) or "")
    out: list[str] = []
    inside = ""
    for line in text.splitlines():
        section = SECTIONS.match(line)
        if section:
            inside = section.group(1)
            out += ["", f"**{inside}** {section.group(2)}".rstrip(), ""]
        elif line.startswith(">>>"):
            out.append("    " + line[4:])
        elif inside and line.startswith("    ") and not line.startswith("     "):
            name, colon, rest = line.strip().partition(":")
            listed = bool(colon) and inside != "Returns" and re.fullmatch(r"[\w*, ().:`]+", name)
            out.append(f"- `{name}`:{rest}" if listed else f"- {line.strip()}" if inside == "Raises" else line.strip())
        elif inside and not line.strip():
            out.append("")
        elif inside:
            out.append("  " + line.strip() if out and out[-1].startswith(("-", "  ")) else line.strip())
        else:
            out.append(line)
    markdown = "\n".join(out)
    # Roles of reStructuredText, and its double back-quotes.
    markdown = re.sub(r":\w+:`~?([\w.]+)`", r"`\1`", markdown)
    return re.sub(r"\n{3,}", "\n\n", markdown.replace("``", "`")).strip()


def signature(node: ast.FunctionDef, owner: str = "") -> str:
    """``name(arguments) -> result``, without ``self``."""
    arguments = ast.unparse(node.args)
    if owner:
        arguments = re.sub(r"^(self|cls)(, )?(/, )?", "", arguments)
    result = f" -> {ast.unparse(node.returns)}" if node.returns else ""
    return f"{owner}{node.name}({arguments}){result}"


def is_property(node: ast.FunctionDef) -> bool:
    """A property, cached or not."""
    names = {ast.unparse(decorator).split(".")[-1] for decorator in node.decorator_list}
    return bool(names & {"property", "cached_property"})


def members(node: ast.ClassDef, prefix: str) -> Iterator[str]:
    """Public methods and properties."""
    for member in node.body:
        if not isinstance(member, ast.FunctionDef) or member.name.startswith("_") or not ast.get_docstring(member):
            continue
        if is_property(member):
            yield f"#### `{prefix}{member.name}`\n\n{docstring(member)}"
        else:
            yield f"#### `{prefix}{member.name}`\n\n```text\n{signature(member, prefix)}\n```\n\n{docstring(member)}"


def entry(name: str, node: ast.stmt, qualified: str) -> str:
    """One function or class."""
    if isinstance(node, ast.FunctionDef):
        return f"### `{qualified}`\n\n```text\n{signature(node)}\n```\n\n{docstring(node)}"
    assert isinstance(node, ast.ClassDef)
    parts = [f"### `{qualified}`\n\n{docstring(node)}", *members(node, f"{name[0].lower()}{name[1:]}.")]
    return "\n\n".join(parts)


def library() -> Iterator[str]:
    """What ``import DRDMLib`` offers."""
    for name, module in exported().items():
        node = definition(parsed(ROOT / "DRDMLib" / f"{module}.py"), name)
        assert node is not None, f"{name} is not defined in DRDMLib/{module}.py"
        yield entry(name, node, f"DRDMLib.{name}")


def loaders() -> Iterator[str]:
    """What ``DRDMLib.loaders`` offers, if it is there."""
    folder = ROOT / "DRDMLib" / "loaders"
    for path in sorted(folder.glob("[a-z]*.py")):
        for node in parsed(path).body:
            public = isinstance(node, (ast.FunctionDef, ast.ClassDef)) and not node.name.startswith("_")
            if public and ast.get_docstring(node):
                yield entry(node.name, node, f"DRDMLib.loaders.{path.stem}.{node.name}")


def logic() -> Iterator[str]:
    """What the module's logic offers to scripts in Slicer, those of its bases included."""
    for path in sorted(LOGIC.glob("*.py")):
        for node in parsed(path).body:
            if isinstance(node, ast.ClassDef) and node.name in ("Logic", "BatchLogic"):
                if node.name == "Logic":
                    yield docstring(node)
                yield from (text.replace("#### ", "### ", 1) for text in members(node, "logic."))


def page() -> str:
    """The whole page."""
    parts = [HEAD, "## The library", *library()]
    extra = list(loaders())
    if extra:
        parts += ["## Loaders for training", *extra]
    parts += ['## In Slicer: `slicer.util.getModuleLogic("DRDMDeform")`', *logic()]
    return "\n\n".join(part.strip() for part in parts) + "\n"


def main() -> int:
    """Write, or with ``--check`` compare."""
    text = page()
    if "--check" in sys.argv[1:]:
        fresh = PAGE.is_file() and PAGE.read_text(encoding="utf-8") == text
        print("docs/api.md is up to date." if fresh else "docs/api.md is out of date: python docs/make_api.py")
        return 0 if fresh else 1
    PAGE.write_text(text, encoding="utf-8", newline="\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
