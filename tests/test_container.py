"""What can be known of the container file without building it."""

import re
import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[1]
TEXT = (ROOT / "Containerfile").read_text()
LINES = [line.split() for line in TEXT.splitlines() if line and not line.startswith("#")]
COPIED = [name for word, *names in LINES if word == "COPY" for name in names[:-1]]


def installs(text):
    """What each call of pip is given, but for how much it says."""
    calls = re.findall(r"pip install (.*?)(?: 2>|\n|$)", text)
    return [[word for word in call.split() if word not in ("--quiet", "--disable-pip-version-check")] for call in calls]


def test_it_copies_what_is_there_and_the_package_is_made_of():
    assert all((ROOT / name).exists() for name in COPIED)
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    tops = {name.split(".")[0] for name in project["tool"]["setuptools"]["packages"]}
    assert {*tops, "conf", "pyproject.toml", project["project"]["readme"], "locks"} <= set(COPIED)
    sent = re.findall(r"^!(.*)$", (ROOT / ".dockerignore").read_text(), re.M)
    assert sent == [*dict.fromkeys(COPIED)]


def test_it_installs_as_the_makefile_does():
    makefile = (ROOT / "Makefile").read_text().replace("$(PIP) ", "pip install ")
    of_make = [call for call in installs(makefile) if "-r" in call or "-e" in call]
    *of_image, last = installs(TEXT)
    assert of_image == of_make[:3]
    assert [*last[:-1], "-e", last[-1]] == of_make[3]
    assert all("--require-hashes" in call for call in of_image)


def test_it_runs_commands_as_nobody_and_names_no_place_to_get_things_from():
    assert not re.search(r"https?:|index-url|\w\.(com|org|io|net)\b", TEXT)
    assert [line[1] for line in LINES if line[0] == "FROM"] == ["python:3.11-slim"]
    assert [line[1] for line in LINES if line[0] == "USER"] == ["anomaly3d"]
    words = [line[0] for line in LINES]
    assert words.index("USER") > max(number for number, word in enumerate(words) if word == "RUN")
    assert 'ENTRYPOINT ["python", "-m"]' in TEXT
