"""Write the examples of docs/examples/ into docs/contributing.md (`make docs`)."""

from generated import ROOT, update

DOCUMENT = ROOT / "docs" / "contributing.md"
EXAMPLES = ROOT / "docs" / "examples"
SCRIPT = "scripts/update_contributing_doc.py"


def parts() -> dict[str, str]:
    """Name of a file without its suffix → the file as a block of code."""
    return {path.stem: f"```python\n{path.read_text(encoding='utf-8')}```" for path in sorted(EXAMPLES.glob("*.py"))}


if __name__ == "__main__":
    changed = [update(DOCUMENT, name, SCRIPT, content) for name, content in parts().items()]
    print("docs/contributing.md", "written" if any(changed) else "was current")
