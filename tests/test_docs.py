"""The site: it is built strictly, needs no network, and says of settings, columns and files what there is."""

import re
import shlex
from html import unescape
from pathlib import Path

import pandas as pd
import pytest
from hydra import compose, initialize_config_dir
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from mkdocs.commands.build import build
from mkdocs.config import load_config
from omegaconf import OmegaConf

from anomaly3d.arguments import COMMANDS, CONF, completed
from anomaly3d.cli import keys, refuse_unknown_keys
from anomaly3d.preprocessing import mr
from anomaly3d.scans.manifest import GROUPS, LESIONS, OPTIONAL, REQUIRED, SPLITS
from anomaly3d.scoring.familiarity import UNLIKE
from anomaly3d.scoring.new_scans import JUDGED

ROOT = Path(__file__).parents[1]
INTERNAL = (
    "hydra.help",
    "hydra.job",
    "hydra.run",
    "hydra.sweep.",
    "hydra.output_subdir",
)  # how Hydra keeps out of the way
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
CALL = re.compile(rf"(?:python -m anomaly3d\.|-m anomaly3d\.|anomaly3d\.sif anomaly3d\.)({'|'.join(COMMANDS)})\b(.*)")


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """The built site; a link or an anchor that leads nowhere ends the build."""
    place = tmp_path_factory.mktemp("site")
    build(load_config(str(ROOT / "mkdocs.yml"), site_dir=str(place), strict=True))
    return place


def test_it_needs_no_network(site):
    pages = list(site.rglob("*.html"))
    assert {"index.html", "getting_started.html", "settings.html"} <= {page.name for page in pages}
    loaded = r"""<(?:script|link|img|iframe)[^>]*(?:src|href)=["']?((?:https?:)?//[^"' >]+)"""
    for page in pages:
        assert not re.findall(loaded, page.read_text()), page
    for style in site.rglob("*.css"):
        assert not re.search(r"url\(['\"]?(https?:)?//|@import", style.read_text()), style


def settings_of(html: str) -> dict[str, dict[str, tuple[str, str]]]:
    """Value and comment of each key, by the file's anchor."""
    parts = re.split(r'<h3 id="([\w-]+)">', html)
    row = re.compile(r"<tr><td><code>(.*?)</code></td><td>(?:<code>)?(.*?)(?:</code>)?</td><td>(.*?)</td></tr>")
    return {
        anchor: {key: (unescape(value), unescape(said)) for key, value, said in row.findall(body.replace("<wbr>", ""))}
        for anchor, body in zip(parts[1::2], parts[2::2], strict=True)
    }


def test_every_setting_is_there_with_what_its_file_says(site):
    found = settings_of((site / "reference" / "settings.html").read_text())
    for path in Path(CONF).rglob("*.yaml"):
        name = path.relative_to(CONF).with_suffix("")
        rows, group = found["-".join(name.parts)], name.parts[:-1]
        named = {key.split("[")[0] for key in rows}  # a list's entries stand for it
        inline = {key for key, (value, _) in rows.items() if value.startswith("{")}
        package = "" if "@package _global_" in path.read_text() else "".join(f"{part}." for part in group)
        for key, _ in keys(OmegaConf.to_container(OmegaConf.load(path), resolve=False)):
            parts = (package + key).split(".")
            above = {".".join(parts[:depth]) for depth in range(1, len(parts))}
            known = package + key in named or above & inline
            assert known or key == "defaults" or key.startswith(INTERNAL), (path, key)
    assert found["detector-fanogan"]["detector.module.kappa"] == ("1.0", "weight of the feature distance, eq. 6")
    assert found["preprocessing-ncct"]["preprocessing.window"] == ("[-20.0, 100.0]", "HU -> [-1, 1]")
    assert found["train"]["detector"] == ("fanogan", "")  # from its list of defaults
    said = found["score"]["mask_command"][1]
    assert said.endswith("said anew, because a run from somebody else could name any program")  # of two lines
    assert found["data-augmented"]["data.transforms.transforms[0].prob"] == ("0.5", "")


def test_equations_are_drawn_without_a_script(site):
    html = (site / "explanation" / "method.html").read_text()
    assert html.count('display="block"') == 6
    assert "$" not in re.sub(r"<script.*?</script>|<pre.*?</pre>", "", html, flags=re.DOTALL)


def code_of(page: Path) -> str:
    """The blocks of a page, and what is marked as code in its text."""
    text = page.read_text()
    blocks = re.findall(r"```\w*\n(.*?)```", text, re.DOTALL)
    return "\n".join([*blocks, *re.findall(r"`([^`\n]+)`", re.sub(r"```.*?```", "", text, flags=re.DOTALL))])


CALLS = [
    (page.stem, name, words.split(" # ")[0].strip()) for page in PAGES for name, words in CALL.findall(code_of(page))
]


@pytest.mark.parametrize(("page", "command", "typed"), CALLS)
def test_every_command_is_one_that_could_be_typed(page, command, typed):
    """Each composes, sweeps with the first of their values, and names no key that is not there."""
    words = [w for w in shlex.split(re.sub(r"\$\(.*?\)", "found", typed).split("&&")[0]) if w not in ("...", "-m")]
    jobs = []
    for override in OverridesParser.create().parse_overrides(completed(command, words)):
        text = str(override.input_line)
        if override.is_sweep_override() and not override.is_choice_sweep():
            continue  # a space that a sweeper searches
        first = next(override.sweep_string_iterator()) if override.is_sweep_override() else None
        jobs.append(text if first is None else f"{text.split('=')[0]}={first}")
    with initialize_config_dir(CONF, version_base="1.3"):
        config = compose(command, jobs, return_hydra_config=True)
        HydraConfig.instance().set_config(config)
        refuse_unknown_keys(command, config)


def test_there_are_commands():
    assert {command for _, command, _ in CALLS} == set(COMMANDS)
    assert len(CALLS) > 25


def named(page: str, section: str = "") -> set[str]:
    """What the first cells of the tables of a page name, or of one of its sections."""
    text = (ROOT / "docs" / "reference" / page).read_text()
    text = re.split(r"\n##+ ", text.split(f"\n## {section}\n")[1])[0] if section else text
    return {name for cell in re.findall(r"^\| (`.*?) \|", text, re.M) for name in re.findall(r"`([^`]+)`", cell)}


def test_every_column_of_a_manifest_is_explained():
    assert named("columns.md", "Manifest") == {*REQUIRED, *OPTIONAL}
    text = (ROOT / "docs" / "reference" / "columns.md").read_text()
    for value in (*SPLITS, *filter(None, GROUPS), *LESIONS):
        assert f"`{value}`" in text, value


def test_every_column_of_a_table_is_explained(tiny_run):
    assert {*JUDGED, UNLIKE, "verdict", "reasons", "model", "source"} <= named("columns.md", "scores.csv of new scans")
    text = (ROOT / "docs" / "reference" / "columns.md").read_text()
    repeated = set(re.findall(r"`(\w+)`", " ".join(re.findall(r"(?:Both repeat|It repeats) (.*)", text))))
    own = {"image", "feature", "latent"} & named("columns.md", "scores.csv of new scans")
    scores = "scores.csv and rescored.csv of an evaluation"
    quality = next(tiny_run.parents[1].glob("data/phantom-*/*/quality.csv"))
    evaluation = tiny_run / "evaluation" / "fanogan"
    for path, section, also in (
        (quality, "quality.csv", repeated),
        (evaluation / "localization.csv", "localization.csv", set()),
        (evaluation / "rescored.csv", scores, repeated | own),
    ):
        there = set(pd.read_csv(path))
        known = {name for name in named("columns.md", section) if not name.startswith("MAP_")}
        assert there <= known | also, (path.name, there - known - also)
        assert known <= there, (path.name, known - there)


def test_every_quality_number_of_mr_is_explained():
    assert named("columns.md", "quality.csv of MR") == {*mr.REASONS} - named("columns.md", "quality.csv")


def test_every_file_is_explained(tiny_run):
    patterns = [
        re.sub(r"[A-Z]{2,}", "[^/]+", re.escape(p)) + (".*" if p.endswith("/") else "") for p in named("files.md")
    ]
    top = tiny_run.parents[1]
    files = [p.relative_to(top) for p in (*tiny_run.rglob("*"), *top.glob("data/**/*")) if p.is_file()]
    assert len(files) > 100
    unknown = [str(f) for f in files if not any(re.fullmatch(p, str(f)) for p in patterns)]
    assert not unknown
