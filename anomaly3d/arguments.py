"""From what a user typed to what Hydra reads: a study's file, what a run remembers, quotes around paths and names.

Of two that set a key the later wins: what the run remembers, the file of ``study=``, what was typed.
"""

import difflib
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from hydra.core.override_parser.overrides_parser import OverridesParser

from anomaly3d.errors import UserError
from anomaly3d.system.files import is_name
from anomaly3d.system.progress import say

HERE = Path(__file__).parent
CONF = str(HERE / "conf" if (HERE / "conf").is_dir() else HERE.parent / "conf")  # in a wheel, in a checkout
COMMANDS = ("prepare", "train", "evaluate", "score", "calibrate", "compare", "export", "dashboard")
ADDED = ("phase", "experiment")  # groups of train that its list of defaults does not have
COMMAS = re.compile(r""",(?=(?:[^'"]|'[^']*'|"[^"]*")*$)""")  # outside of quotes
SCANS = ("root", "scans", "manifest")
PATHS = (*SCANS, *(f"dataset.{key}" for key in SCANS), "out", "data_dir", "runs_dir")
NAMED = ("run", "site", "dataset.name", "parent")
NOTHING = ("dataset=null", "detector=null", "model=null")  # as the configs have them; Hydra takes no null for a group
# whose values are quoted for Hydra
QUOTED = (*PATHS, *NAMED, "study", "model", "mask_command", "preprocessing.mask_command")
CHOICE = re.compile(r"[\w-]+(/[\w-]+)*")  # of a group: a file's name, and no way to files elsewhere
MEMBER = re.compile(r"detector@detector\.module\.members\.[A-Za-z_]\w*")  # a group's file as a member of an ensemble
SIMPLE = re.compile(r"[A-Za-z_./-][A-Za-z0-9_./-]*|\s*")
OTHERS = (  # keys of a study that mean its training, and in these commands something else
    ("evaluate", "dataset"),
    ("score", "model"),
    ("calibrate", "model"),
)
ONCE = ("phase", "overwrite", "parent", "run", "runs_dir", "optimized_metric", "hparams_search")
CODE = ("plugins", "mask_command", "preprocessing.mask_command")  # whose code may run: typed for each call, or nothing
ANEW = ("trainer", "workers", "scheduler", "memory_gb")  # where and how fast it runs
SIZES = ("phase.steps", "phase.steps_per_epoch", "phase.batch")  # what one phase takes over from another
OPEN = ("phase.", "phases.", "trainer.")  # take keys that the config has not: of phases to come, of Lightning's Trainer
COHORT = ("dataset", "preprocessing", "seed")  # and prepare, where a run is named
KEPT = ("data_dir",)  # what other commands take over from the training


def completed(command: str, arguments: Sequence[str]) -> list[str]:
    """The arguments of a command for Hydra: ``study=FILE`` replaced by its lines, before them what the run remembers.

    Raises:
        UserError: the study's file is not there, or says what nothing knows.
    """
    known_keys = names_of(command)[1] | {"hydra"}
    for text in arguments:  # else Hydra says of a value with a space that it cannot read it
        key, _, value = text.partition("=")
        if " " in value and re.fullmatch(r"\w+(\.\w+)*", key) and key.split(".")[0] not in known_keys:
            raise UserError(unknown_key(key, known_keys))
    sweep = not {"-m", "--multirun"}.isdisjoint(arguments)
    typed = [quoted(text, sweep) if key_of(text) in QUOTED else text for text in arguments]
    typed = [f"++{text}" if text.startswith(OPEN) else text for text in typed]
    study = value_of(typed, "study")
    typed = [text for text in typed if key_of(text) != "study" and text not in NOTHING]
    if study is not None:
        typed = [*of_detector(without(read_study(command, Path(study)), typed), typed), *typed]
    if (known := remembered(command, typed)) and (run := run_of(typed)):
        say(f"run {run.name} goes on with {' '.join(known)}; what is typed wins")
    first = next((n for n, text in enumerate(typed) if is_override(text)), len(typed))
    return [*typed[:first], *known, *typed[first:]]  # options stand first: what follows a word is no option's any more


# ---- one argument


def is_override(text: str) -> bool:
    """Whether it is Hydra's and no option of the command line."""
    return not text.startswith("-") and ("=" in text or text[:1] in ("+", "~"))


def key_of(text: str) -> str:
    """``phase.steps`` of ``++phase.steps=4``."""
    return text.lstrip("+~").split("=", 1)[0]


def value_of(arguments: Iterable[str], key: str, default: str | None = None) -> str | None:
    """The last value that was given for a key, as text; of a sweep all of them as they were typed."""
    texts = [text for text in arguments if "=" in text and key_of(text) == key]
    if not texts:
        return default
    found = OverridesParser.create().parse_override(texts[-1])
    value = texts[-1].split("=", 1)[1] if found.is_sweep_override() else found.value()
    return default if value is None else str(value)


def without(before: Sequence[str], after: Sequence[str]) -> list[str]:
    """The first but for what the second sets anew: a key, or with the choice of a group all keys below it.

    But for phases, of which a run has several with the same keys; a key for all of them, ``phase.steps``, takes the
    place of ``phases.NAME.steps`` too.
    """
    keys = {key_of(text) for text in after}
    groups = keys - {"phase"}

    def anew(key: str) -> bool:
        group, *rest = key.split(".")
        everywhere = ".".join(["phase", *rest[1:]]) if group == "phases" and len(rest) > 1 else key
        return bool({key, everywhere} & keys) or group in groups

    return [text for text in before if not anew(key_of(text))]


def quoted(text: str, sweep: bool) -> str:
    """``key=value`` with quotes around a path or a list of paths that Hydra's grammar could not read, or would read as
    something else: ``root=a (1)``, ``scans=[007,h=2.nii]``."""
    key, _, value = text.partition("=")
    if value in ("null", "[]") or (sweep and "," in value):
        return text
    if value.startswith("[") and value.endswith("]") and not Path(value).exists():
        return f"{key}=[{','.join(quote(part.strip()) for part in re.split(COMMAS, value[1:-1]))}]"
    return f"{key}={quote(value)}"


def quote(text: str) -> str:
    """A path as Hydra's grammar reads it back; what is quoted already, or refers to a key, stays."""
    if SIMPLE.fullmatch(text) or text[:1] in ("'", '"') or "${" in text:
        return text
    return in_quotes(text)


def in_quotes(text: str) -> str:
    """Any text as a string of Hydra's grammar."""
    return "'" + re.sub(r"(\\*)'", r"\1\1\'", text) + "'"


def as_hydra(value: Any) -> str:
    """A plain value in Hydra's grammar."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{k}: {as_hydra(v)}" for k, v in value.items()) + "}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(as_hydra, value)) + "]"
    return str(value) if isinstance(value, int | float) else in_quotes(str(value))


def leaves(node: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Dotted keys and values of nested mappings; what is empty, or describes an object, stays whole."""
    if isinstance(node, Mapping) and node and (not prefix or "_target_" not in node):
        for name, value in node.items():
            yield from leaves(value, f"{prefix}.{name}" if prefix else str(name))
    elif prefix:
        yield prefix, node


def unknown_key(key: str, known: Iterable[str]) -> str:
    """A sentence with the other choices of the key's group that have it, else with the nearest of the keys that there
    are."""
    group, _, rest = key.partition(".")
    files = sorted(Path(CONF, group).glob("*.yaml")) if rest and is_name(group) else []
    having = [f"{group}={file.stem}" for file in files if rest in (yaml.safe_load(file.read_text("utf-8")) or {})]
    if having:
        return f"unknown key {key}: it belongs to {', '.join(having)}; choose one of them beside it"
    near = difflib.get_close_matches(key, list(known), 1, 0.5)
    return f"unknown key {key}" + (f": did you mean {near[0]}?" if near else "")


# ---- study=my.yaml


def names_of(command: str) -> tuple[set[str], set[str]]:
    """Groups and top-level keys of a command, from its file in ``conf``."""
    config = yaml.safe_load(Path(CONF, f"{command}.yaml").read_text("utf-8"))
    groups = {word for entry in config["defaults"] if isinstance(entry, dict) for word in entry}
    groups = {word.removeprefix("optional ") for word in groups if not word.startswith("override ")}
    if command == "train":
        groups |= set(ADDED)
    common = yaml.safe_load(Path(CONF, "common.yaml").read_text("utf-8"))
    return groups, ({*config, *common} | groups) - {"defaults", "hydra"}


def read_study(command: str, path: Path) -> list[str]:
    """The lines of a study's file that concern a command, as overrides; its paths are relative to its folder.

    A line is what one would type, ``dataset: manifest`` for ``dataset=manifest``, ``model.latent: 64`` or nested.

    Raises:
        UserError: it is not there, is no YAML of keys, has a key that no command knows, or says whose code may run.
    """
    try:
        content = yaml.safe_load(path.read_text("utf-8"))
    except OSError as error:
        raise UserError(f"study={path}: {error.strerror}: give a YAML file with the settings of your study") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"study={path} is no YAML: {error}") from error
    if not isinstance(content, dict):
        raise UserError(f"study={path} must hold lines such as 'dataset: manifest'")
    groups, known = names_of(command)
    every: set[str] = set().union(*(names_of(name)[1] for name in COMMANDS))
    overrides = []
    for key, value in content.items():
        top = str(key).split(".")[0]
        if top not in every:
            raise UserError(f"study={path}: {unknown_key(str(key), every)}")
        if top not in known or (command, top) in OTHERS:
            continue  # of another command
        if key in groups and not isinstance(value, Mapping):
            if value is not None and not CHOICE.fullmatch(str(value)):
                raise UserError(f"study={path}: {key}: {value} is not the name of a file in conf/{key}")
            overrides.append(f"{'+' if key in ADDED else ''}{key}={'null' if value is None else value}")
            continue
        for name, leaf in leaves({key: value}):
            if name in CODE or top in CODE:
                raise UserError(
                    f"study={path}: {name} says whose code may run, and a file may come from somebody else: give it on "
                    "the command line"
                )
            overrides.append(f"{'++' if '.' in name else ''}{name}={as_hydra(placed(name, leaf, path.parent))}")
    return overrides


def usual_detector() -> str:
    """Which is trained where none is named."""
    defaults = yaml.safe_load(Path(CONF, "train.yaml").read_text("utf-8"))["defaults"]
    return str(next(entry["detector"] for entry in defaults if "detector" in entry))


def of_detector(lines: Sequence[str], typed: Sequence[str]) -> list[str]:
    """The lines of a study without those for phases of other detectors than the one that is trained: a study may be of
    several."""
    file = Path(CONF, "detector", f"{value_of([*lines, *typed], 'detector', usual_detector())}.yaml")
    if not file.exists():
        return list(lines)
    own = yaml.safe_load(file.read_text("utf-8"))["phases"]
    others = {f"phases.{path.stem}" for path in Path(CONF, "phase").glob("*.yaml") if path.stem not in own}
    return [text for text in lines if ".".join(key_of(text).split(".")[:2]) not in others]


def placed(key: str, value: Any, folder: Path) -> Any:
    """A value whose paths, where the key holds any, are relative to a folder."""
    if key not in PATHS or value is None:
        return value
    return [str(folder / part) for part in value] if isinstance(value, list) else str(folder / str(value))


# ---- what a run remembers


def said_anew(text: str) -> bool:
    """Whether each call of a run says an argument anew: it does not decide what comes out, or it lets code run."""
    key = key_of(text)
    return key in CODE or (key.split(".")[0] in (*ANEW, *CODE) and key != "trainer.precision")


def run_of(typed: Sequence[str]) -> Path | None:
    """The folder of the run that a call goes on with; of a search, whose runs get names of their own, its parent's."""
    if value_of(typed, "hparams_search") and value_of(typed, "run") is None:
        parent = value_of(typed, "parent")
        return Path(parent).parent.parent if parent else None
    return Path(str(value_of(typed, "runs_dir", "runs")), str(value_of(typed, "run", "demo")))


def remembered(command: str, typed: Sequence[str]) -> list[str]:
    """What was typed when the run's phases were trained, for those that follow, and of it what other commands take.

    Args:
        typed: the arguments of this call.
    """
    run = run_of(typed)
    if run is None or "${" in str(run) or "," in run.name or not is_name(run.name):
        return []  # a sweep, or refused later
    elsewhere = command in ("score", "calibrate") and value_of(typed, "model")  # an exported model, and no run
    unnamed = command == "prepare" and value_of(typed, "run") is None
    if command not in ("prepare", "train", "evaluate", "score", "calibrate", "export") or elsewhere or unnamed:
        return []
    files = sorted(run.glob("*/*/overrides.yaml"), key=lambda path: -path.stat().st_mtime)
    trained = {path: words for path in files if (words := read_words(path, names_of("train")[0]))}
    if command != "train":
        words, whose = next(iter(trained.values()), []), KEPT if command != "prepare" else (*KEPT, *COHORT)
        kept = [text for text in words if {key_of(text), key_of(text).split(".")[0]} & {*whose}]
        return without([text for text in kept if key_of(text) not in CODE], typed)
    usual = usual_detector()
    asked, phase = value_of(typed, "detector"), value_of(typed, "phase")
    wanted = asked or (usual if usual in {path.parts[-3] for path in files} else None)
    order = sorted(trained, key=lambda path: (path.parts[-3] != wanted, path.parts[-2] != phase))  # else the latest
    if not order:
        return []
    source = order[0]
    words = [text for text in trained[source] if key_of(text) not in ONCE and not said_anew(text)]
    if wanted and source.parts[-3] != wanted:  # of another detector: whom it learns from, not how
        words = [text for text in words if key_of(text).split(".")[0] not in ("detector", "model", "phases", "phase")]
    own = value_of(trained[source], "phase") in (None, phase)
    words = [text for text in words if own or not key_of(text).startswith("phase.") or key_of(text) in SIZES]
    return without(words, typed)


def read_words(path: Path, groups: Iterable[str]) -> list[str]:
    """What was typed for a phase, as ``overrides.yaml`` keeps it.

    Raises:
        UserError: it holds what nobody types for a phase: Hydra's own keys and options, which can name any code.
    """
    try:
        words = yaml.safe_load(path.read_text("utf-8")) or []
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"{path} is damaged: remove it, and type again what the phase was trained with") from error
    words = [str(word) for word in (words if isinstance(words, list) else [words])]
    for word in words:
        name, value = key_of(word), word.partition("=")[2]
        member = MEMBER.fullmatch(name)
        foreign = not (member or re.fullmatch(r"[A-Za-z_][\w.-]*", name)) or name.split(".")[0] == "hydra"
        chosen = name in groups or (member and not word.startswith("~"))
        if foreign or (chosen and not CHOICE.fullmatch(value)):
            raise UserError(
                f"{path} holds {word!r}, which is no setting of a phase: remove it there, or type run=NAME anew"
            )
    return words
