"""What the site has beside the pages of this folder: nothing of it is written twice, so nothing goes stale.

The README is the start page, the folders of ``experiments`` are pages, every key of ``conf/**/*.yaml`` is a row of a
table with the comment that stands beside it there, and equations become MathML, which browsers draw without a script.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from html import escape, unescape
from pathlib import Path
from typing import Any

import yaml
from latex2mathml.converter import convert
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).parents[1]
CONF = ROOT / "conf"
SETTINGS = "<!-- every setting -->"  # where the tables go in reference/settings.md
SHOWN = (".md", ".png", ".json", ".csv", ".py")  # of the experiments
INTERNAL = ("hydra.help", "hydra.job", "hydra.run", "hydra.sweep.", "hydra.output_subdir")  # of common.yaml


@dataclass(frozen=True)
class Setting:
    """A key of a config as it is typed, its value as the file has it, and the comment beside it."""

    key: str
    value: str
    comment: str


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Blocks called ``math`` are equations."""
    fences = [{"name": "math", "class": "math", "format": lambda tex, *_, **__: f"<p>{mathml(tex, 'block')}</p>"}]
    config.mdx_configs["pymdownx.superfences"] = {"custom_fences": fences}
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the start page and the experiments."""
    files.append(File.generated(config, "index.md", content=(ROOT / "README.md").read_text().replace("](docs/", "](")))
    for path in sorted((ROOT / "experiments").rglob("*")):
        if path.suffix in SHOWN:
            files.append(File.generated(config, str(path.relative_to(ROOT)), abs_src_path=str(path)))
    return files


def on_page_markdown(markdown: str, page: Page, **_: Any) -> str:
    """Links that lead out of ``docs`` in the repository stay inside of the site; the table of settings is filled in."""
    if page.parent is None:
        page.meta["hide"] = ["navigation"]  # of one page
    markdown = re.sub(r"\]\(\.\./((?:\.\./)*experiments/)", r"](\1", markdown)
    return markdown.replace(SETTINGS, every_setting()) if SETTINGS in markdown else markdown


def on_page_content(html: str, page: Page, **_: Any) -> str:
    """Equations inside of a sentence, written as on GitHub: ``$`...`$``; tables of names, which phones show stacked."""
    if page.file.src_uri.startswith("reference/"):
        html = html.replace("<table>", '<div class="names"><table>').replace("</table>", "</table></div>")
    return re.sub(r"\$<code>(.*?)</code>\$", lambda found: mathml(unescape(found[1]), "inline"), html)


def mathml(tex: str, display: str) -> str:
    """An equation as MathML."""
    return convert(tex.strip(), display=display)


# ---- conf/**/*.yaml


def every_setting() -> str:
    """Markdown: a section a group, a table a file."""
    groups: dict[str, list[Path]] = {}
    for path in sorted(CONF.rglob("*.yaml")):
        groups.setdefault(str(path.parent.relative_to(CONF)), []).append(path)
    commands = sorted(groups.pop("."), key=lambda path: path.stem != "common")
    parts = ["## Commands", *map(section, commands)]
    for group, paths in groups.items():
        parts += [f"## {group} {{ #{group.replace('/', '-')} }}", *map(section, paths)]
    return "\n\n".join(parts)


def section(path: Path) -> str:
    """Markdown of one file: what it says of itself, and its keys."""
    name = str(path.relative_to(CONF).with_suffix(""))
    text = path.read_text()
    head = [line.removeprefix("#").strip() for line in text.split("\n\n")[0].splitlines() if line.startswith("#")]
    head = [line for line in head if not line.startswith("@package")]
    package = "" if "@package _global_" in text or "/" not in name else f"{name.rpartition('/')[0].replace('/', '.')}."
    rows = [row for row in settings(text, package) if not row.key.startswith(INTERNAL)]
    cells = [(as_code(row.key), as_code(row.value), escape(row.comment)) for row in rows]
    body = "".join("<tr>" + "".join(f"<td>{cell}</td>" for cell in row) + "</tr>" for row in cells)
    title = "Every command" if name == "common" else name.rpartition("/")[2]
    table = f"<thead><tr><th>Key</th><th>Value</th><th>What it says</th></tr></thead><tbody>{body}</tbody>"
    command = any("python -m" in line for line in head)
    about = "```text\n" + "\n".join(head) + "\n```" if command else f"<p>{escape(' '.join(head))}</p>"
    table = f"<table>{table}</table>" if rows else ""
    return f"### {title} {{ #{name.replace('/', '-')} }}\n\n{about}\n\n{table}"


def as_code(text: str) -> str:
    """A key or a value, which may be broken after its dots; nothing for none."""
    return f"<code>{escape(text).replace('.', '.<wbr>')}</code>" if text else ""


def settings(text: str, package: str = "") -> list[Setting]:
    """The keys of a file in their order; ``package`` stands before each but those of its list of defaults."""
    lines = text.splitlines()

    def comment(node: yaml.Node) -> str:
        """What stands behind a node on its line, and goes on in the lines below it."""
        line = node.end_mark.line
        found = re.match(r"\s*:?\s*#\s*(.*)", lines[line][node.end_mark.column :]) if line < len(lines) else None
        parts = [found[1]] if found else []
        while parts and line + 1 < len(lines) and (more := re.match(r"\s{12,}#\s*(.*)", lines[line + 1])):
            parts.append(more[1])
            line += 1
        return " ".join(parts)

    def raw(node: yaml.Node) -> str:
        """A value as it is written, on one line."""
        return " ".join(text[node.start_mark.index : node.end_mark.index].split())

    def rows(node: yaml.Node, prefix: str) -> Iterator[Setting]:
        if isinstance(node, yaml.MappingNode) and not node.flow_style:
            for key, child in node.value:
                path = f"{prefix}{key.value}"
                block = isinstance(child, yaml.CollectionNode) and not child.flow_style
                if block and (said := comment(key)):
                    yield Setting(path, "", said)
                yield from rows(child, f"{path}." if block else path)
        elif isinstance(node, yaml.SequenceNode) and not node.flow_style:
            for number, child in enumerate(node.value):
                yield from rows(child, f"{prefix[:-1]}[{number}].")
        else:
            yield Setting(prefix.removesuffix("."), raw(node), comment(node))

    root = yaml.compose(text)
    found = []
    for key, child in root.value:
        if key.value == "defaults":
            found += [row for item in child.value if (row := of_defaults(item, comment, raw))]
        else:
            only = yaml.MappingNode(root.tag, [(key, child)], flow_style=False)
            found += rows(only, package)
    return found


def of_defaults(item: yaml.Node, comment: Any, raw: Any) -> Setting | None:
    """An entry of a list of defaults: a group's choice, or the file that this one changes; None for Hydra's own."""
    if isinstance(item, yaml.ScalarNode):
        return None if item.value in ("_self_", "common") else Setting("starts from", item.value, comment(item))
    ((key, choice),) = item.value
    if key.value.startswith("override hydra/"):
        return None
    name = key.value.removeprefix("override ").removeprefix("optional ").removeprefix("/")
    return Setting(name, raw(choice), comment(choice))
