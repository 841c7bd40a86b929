"""What MkDocs cannot do by itself: the site (`make site`) also shows files that lie beside docs/.

README.md is the home page, and the changelog, the tables in results/ and the files in benchmarks/results/ are part
of the site at the same paths. Links keep the form that a reader of the repository needs, relative to their file; here
those that lead into or out of docs/ are rewritten for the site, where the content of docs/ lies at the top.
Links to other files of the repository become plain text.
"""

import os
import posixpath
import re
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

ROOT = Path(__file__).resolve().parents[1]
FOLDERS = ("results", "results/photographs", "results/photographs/*")
TABLES = tuple(f"{folder}/*.{kind}" for folder in FOLDERS for kind in ("md", "png", "csv"))
BESIDE = ("README.md", "CHANGELOG.md", *TABLES, "benchmarks/results/*.json")
MOVED = {"CONTRIBUTING.md": "docs/contributing.md", "docs/decisions": "docs/decisions/README.md"}
LINK = re.compile(r"(?P<begin>!?\[(?P<text>[^\]]*)\]\()(?P<target>[^)#\s]+)(?P<end>(?:#[^)]*)?\))")
PICTURE = re.compile(
    r'<picture>\s*<source [^>]*srcset="docs/(?P<dark>[^"]+)">'
    r'\s*<img (?P<alt>alt="[^"]*") src="docs/(?P<light>[^"]+)">\s*</picture>'
)
CELL = re.compile(r"(?<=[| ])`[^`\n]*\\\|[^`\n]*`")  # a bar in code: MkDocs takes it as it is, GitHub wants it escaped
ALONE = ("README.md", "first-hour.md")  # pages without a section to navigate in


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Lists every decision below its index."""
    decisions = sorted(Path(config.docs_dir, "decisions").glob("[0-9]*.md"))
    for section in config.nav or []:
        for entry in section.get("Project", ()) if isinstance(section, dict) else ():
            entry.get("Decisions", []).extend(f"decisions/{path.name}" for path in decisions)
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Adds what lies beside docs/."""
    for path in sorted(path for pattern in BESIDE for path in ROOT.glob(pattern)):
        name = path.relative_to(ROOT).as_posix()
        files.append(File(name, str(ROOT), config.site_dir, config.use_directory_urls))
    return files


def on_page_markdown(markdown: str, page: Any, config: MkDocsConfig, files: Files) -> str:
    """The page with its links as the site needs them."""
    source = Path(page.file.abs_src_path or "").relative_to(ROOT).as_posix()
    known = {file.src_uri for file in files}
    if page.file.src_uri in ALONE:
        page.meta["hide"] = ["navigation"]
    markdown = PICTURE.sub(themed, CELL.sub(lambda code: code[0].replace("\\|", "|"), markdown))
    return LINK.sub(lambda link: rewritten(link, source, known), markdown)


def themed(picture: re.Match[str]) -> str:
    """A picture of README.md for the reader's choice of light or dark on the site, which may not be the system's."""
    shown = ((picture["light"], "light"), (picture["dark"], "dark"))
    return "\n".join(f'<img {picture["alt"]} src="{name}#only-{scheme}">' for name, scheme in shown)


def rewritten(link: re.Match[str], source: str, known: set[str]) -> str:
    """One link of the file `source`, both as paths of the repository, for a site that has the files `known`."""
    target = link["target"]
    if re.match(r"[a-z]+:", target):
        return link[0]
    path = posixpath.normpath(posixpath.join(posixpath.dirname(source), target))
    path = MOVED.get(path, path)
    inside = path.removeprefix("docs/")
    if not path.startswith("docs/") and inside not in known and (ROOT / path).exists():
        return link["text"]
    start = posixpath.dirname(source.removeprefix("docs/"))
    return f"{link['begin']}{os.path.relpath(inside, start or '.')}{link['end']}"
