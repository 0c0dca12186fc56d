"""What the commands share: Hydra composes the config, a user's mistake becomes one sentence and an exit code.

0 done; 2 a mistake in config, manifest or command; 3 done, but some scans could not be used; interrupted: 128 and the
signal's number, which is 130 for Ctrl-C and 143 for SIGTERM.
"""

import io
import math
import os
import re
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import hydra
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

import anomaly3d
from anomaly3d.arguments import CONF, SCANS, completed, key_of, names_of, unknown_key
from anomaly3d.errors import UserError
from anomaly3d.system.files import LONGEST, is_name, is_text
from anomaly3d.system.instantiate import allow, parameters
from anomaly3d.system.memory import keep_freed_memory, ran_out, release_memory
from anomaly3d.system.slurm import REQUEUE, in_job, requeue

OmegaConf.register_new_resolver("joined", "-".join, replace=True)  # a list in a name: ${joined:${...}}
SWITCHES = ("images", "logger.images", "logger.models")  # true or false, but null where nothing is said
NAMES = ("run", "site", "dataset.name", "detector.name", "phase.name")  # of folders and files


@dataclass(frozen=True)
class Done:
    """How a command ended: its exit code, the number that a sweep optimises, if there is one, and why it failed."""

    code: int = 0
    value: float | None = None
    failure: str = ""

    def __float__(self) -> float:
        """The number as sweepers take it, NaN for none."""
        return math.nan if self.value is None else self.value


def command(config_name: str) -> Callable[[Callable[[DictConfig], Done]], Callable[..., int]]:
    """Decorate ``task(config) -> Done`` into ``main(argv=None) -> exit code``."""

    def decorate(task: Callable[[DictConfig], Done]) -> Callable[..., int]:
        def main(argv: list[str] | None = None) -> int:
            try:
                code = Command(config_name, task).run(argv)
                sys.stdout.flush()
            except BrokenPipeError:  # whoever read the output, "| head" say, has read enough
                os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # where what is left is flushed to
                return 141  # what shells say of it
            return code

        main.__doc__ = task.__doc__
        return main

    return decorate


class Command:
    """One call of a command: one job, or the jobs of a multirun."""

    def __init__(self, config_name: str, task: Callable[[DictConfig], Done]) -> None:
        self.config_name, self.task = config_name, task
        self.codes: list[int] = []
        self.broken: set[tuple[str, str]] = set()  # runs and detectors that a multirun trains no further
        self.failure: Exception | None = None
        self.signal: int = signal.SIGINT  # that interrupted it, if any did

    def job(self, config: DictConfig) -> Done:
        """A job as Hydra calls it; one of a multirun that fails says so and lets the others go on."""
        release_memory()
        try:
            allow(several(config.plugins))
            refuse_unknown_keys(self.config_name, config)
            refuse_half_said(self.config_name, config)
            for name in NAMES:
                settle_name(config, name)
            refuse_closed_places(config)
            if trained_of(config) in self.broken:
                raise UserError(f"an earlier job of run={config.run} failed, and this one may build on it")
            done = self.task(config)
        except (UserError, HydraException, OmegaConfBaseException) as error:
            code = refuse(error, self.config_name)  # here, because Hydra would print a line of its own
            if not sweeping():
                raise SystemExit(code) from error
            failure = str(error)
        except Exception as error:
            if not sweeping():
                self.failure = error
                raise SystemExit(1) from error
            code = short_of(error, self.config_name, fatal=False)
            failure = f"{type(error).__name__}: {error}"
        else:
            self.codes.append(done.code)
            return done
        self.codes.append(code)
        if trained := trained_of(config):
            self.broken.add(trained)
        return Done(code, failure=failure)

    def run(self, argv: list[str] | None) -> int:
        """Compose and run; returns the exit code."""
        program = sys.argv
        alone = threading.current_thread() is threading.main_thread()  # only there may signals be handled
        before = {number: signal.signal(number, self.interrupt) for number in ending_signals()} if alone else {}
        keep_freed_memory()
        if isinstance(sys.stdout, io.TextIOWrapper):
            sys.stdout.reconfigure(errors="backslashreplace")  # a name that its encoding lacks ends no work
        os.environ["HYDRA_FULL_ERROR"] = "1"  # hand us its errors instead of printing them
        name, arguments = (sys.argv[0], sys.argv[1:]) if argv is None else (f"anomaly3d.{self.config_name}", argv)
        try:
            if "--version" in arguments:
                print(f"anomaly3d {anomaly3d.__version__}")
                return 0
            refuse_undecoded(arguments)
            sys.argv = [name, *completed(self.config_name, arguments)]
            hydra.main(version_base="1.3", config_path=CONF, config_name=self.config_name)(self.job)()
        except (UserError, HydraException, OmegaConfBaseException) as error:
            return refuse(error, self.config_name)
        except ValueError as error:
            if "Config group override" not in str(error):
                raise
            return refuse(UserError("null is no choice of a group: name a file of conf/, such as logger=none"), name)
        except SystemExit as stop:
            if self.failure:
                return short_of(self.failure, self.config_name)
            return stop.code if isinstance(stop.code, int) else 1
        except KeyboardInterrupt:
            again = self.signal == REQUEUE and requeue()
            how = "SLURM runs this job again, which goes on" if again else "run the same command again to go on"
            print(f"interrupted: {how} from where it stopped", file=sys.stderr)
            return 128 + self.signal
        finally:
            sys.argv = program
            for number, handler in before.items():
                signal.signal(number, handler)
            GlobalHydra.instance().clear()
        return max(self.codes, default=0)

    def interrupt(self, number: int, frame: object) -> None:
        """What a signal does: the same as Ctrl-C."""
        self.signal = number
        raise KeyboardInterrupt


def refuse_undecoded(arguments: Sequence[str]) -> None:
    """Refuse words that this process could not read, or not as UTF-8: files would get other names than were typed.

    Raises:
        UserError: names the word.
    """
    encoding = sys.getfilesystemencoding()
    for text in arguments:
        if not is_text(text) or (encoding != "utf-8" and not text.isascii()):  # torch opens files by names in UTF-8
            raise UserError(f"{text!a} is no text in this system's encoding, {encoding}: set PYTHONUTF8=1")


def settle_name(config: DictConfig, key: str) -> None:
    """Make a name a text, as ``run=2024`` is no number, and refuse one that leads out of its folder.

    Raises:
        UserError: names the key.
    """
    if (value := OmegaConf.select(config, key)) is None:
        return
    OmegaConf.update(config, key, str(value))
    if not is_name(str(value)):
        raise UserError(
            f'{key}={value!r} must be a plain name: no slash, backslash or any of :*?"<>|, no dot in front, at most '
            f"{LONGEST} letters; places are data_dir=..., runs_dir=... and out=..."
        )


def refuse_closed_places(config: DictConfig) -> None:
    """Refuse places for results that cannot be written to, before any work.

    Raises:
        UserError: names the key.
    """
    for key in ("data_dir", "runs_dir", "out"):
        if not (place := config.get(key)):
            continue
        path = Path(place).absolute()
        path = path.parent if path.suffix == ".json" else path  # compare writes a file
        there = next(folder for folder in (path, *path.parents) if folder.exists())
        if not there.is_dir():
            raise UserError(f"{key}={place}: {there} is a file, not a folder: choose another place with {key}=...")
        if not os.access(there, os.W_OK | os.X_OK):
            raise UserError(f"{key}={place}: {there} may not be written to: choose another place with {key}=...")


def several(value: Any) -> list[str]:
    """The words of a key that takes a list, where one stands for a list of one and null for none."""
    parts = value if isinstance(value, ListConfig) else [] if value is None else [value]
    return [str(part) for part in parts]


def refuse_missing_inputs(config: DictConfig) -> None:
    """Refuse scans that are not there, at once: what would notice it takes seconds to import.

    Raises:
        UserError: names the key.
    """
    ours = str(OmegaConf.select(config, "dataset._target_")).startswith("anomaly3d.")  # others may read from anywhere
    for prefix in ("", *(["dataset."] if ours else [])):
        for key in SCANS:
            value = OmegaConf.select(config, prefix + key)
            for place in [value] if isinstance(value, str) else value or []:
                if not Path(place).expanduser().exists():
                    raise UserError(f"{prefix}{key}={place}: there is no such file or folder")


def ending_signals() -> list[signal.Signals]:
    """What schedulers end a job with, beside Ctrl-C; on all of them a phase goes on from its last whole epoch.

    Lightning's own answer to SLURM's is a checkpoint in the middle of an epoch, from which nothing repeats exactly.
    """
    return [signal.SIGTERM, *([REQUEUE] if REQUEUE and in_job() else [])]


def short_of(error: Exception, config_name: str, fatal: bool = True) -> int:
    """Exit code 2 with a sentence where disk or memory do not do; any other error is ours, raised or only shown."""
    from anomaly3d.system.workers import disk_error

    mistake = disk_error(error) if isinstance(error, OSError) else error
    if ran_out(error):
        mistake = UserError(f"out of memory: a smaller batch=..., fewer workers=... or memory_gb=0 take less ({error})")
    if isinstance(mistake, UserError):
        return refuse(mistake, config_name)
    if fatal:
        raise error
    traceback.print_exception(error)
    return 1


def refuse(error: Exception, config_name: str) -> int:
    """Say what is wrong on one line and return exit code 2."""
    text = " ".join(str(error).split())
    text = text.split(" Config search path:")[0].split(" full_key:")[0]
    if "Could not override 'phase'" in text:
        text = "phase is added with a plus: +phase=NAME"
    elif unknown := re.match(r"Could not override '([^']*)'", text):
        text = unknown_key(unknown[1], composed_keys(config_name))
    print(f"error: {text}", file=sys.stderr)
    return 2


def sweeping() -> bool:
    """Whether this is a job of a multirun."""
    return HydraConfig.get().mode == RunMode.MULTIRUN


def trained_of(config: DictConfig) -> tuple[str, str] | None:
    """Run and detector that a job trains; None for other commands."""
    return (str(config.run), str(OmegaConf.select(config, "detector.name"))) if "phase" in config else None


def typed() -> list[str]:
    """What the user typed, for this job."""
    return list(HydraConfig.get().overrides.task)


def recompose(config_name: str, before: Sequence[str] = (), after: Sequence[str] = ()) -> DictConfig:
    """The config of this call with other groups or keys below or on top of what the user typed."""
    return compose(config_name, [*before, *typed(), *after, *searchpath()])


def chosen(group: str) -> str | None:
    """The name that was given for a group, None for none; a file of that name need not be there."""
    name = HydraConfig.get().runtime.choices.get(group)
    return None if name is None else str(name)


def searchpath() -> list[str]:
    """The user's own places of configs, as an override."""
    return [text for text in HydraConfig.get().overrides.hydra if text.startswith("hydra.searchpath")]


def plain(config: DictConfig) -> dict[str, Any]:
    """A config as plain values."""
    container = OmegaConf.to_container(config, resolve=True)
    assert isinstance(container, dict)
    return {str(key): value for key, value in container.items()}


def refuse_unknown_keys(config_name: str, config: DictConfig, more: Sequence[str] = ()) -> None:
    """Refuse what ``+`` and ``++`` added under a name that means nothing.

    Known is what is in the config without them, and what a ``_target_`` takes.

    Args:
        more: further overrides that the config was composed with, beside those that the user typed.

    Raises:
        UserError: names the key, and the nearest known one.
    """
    choices = {*HydraConfig.get().runtime.choices, "phase"}
    overrides = OverridesParser.create().parse_overrides([*more, *typed()])
    added = [o for o in overrides if (o.is_add() or o.is_force_add()) and o.key_or_group not in choices]
    if not added:
        return
    groups = [str(o.input_line) for o in overrides if o.key_or_group in choices]
    known = keys_of(config_name, *groups, *searchpath())
    for override in added:
        key = override.key_or_group
        value = OmegaConf.select(config, key)
        for path in [f"{key}.{k}" for k, _ in keys(plain_value(value))] or [key]:
            if path not in known and not accepted(path, config, known):
                raise UserError(unknown_key(path, [*known, *taken_beside(path, config)]))


def refuse_half_said(config_name: str, config: DictConfig) -> None:
    """Refuse what is neither true nor false where one of them is wanted: Hydra reads ``no`` and ``off`` as texts, which
    would mean yes.

    Raises:
        UserError: names the key.
    """
    choices = HydraConfig.get().runtime.choices
    overrides = OverridesParser.create().parse_overrides(typed())
    groups = [str(o.input_line) for o in overrides if o.key_or_group in choices]
    usual = keys_of(config_name, *groups, *searchpath()) if len(groups) < len(overrides) else {}
    said = {o.key_or_group for o in overrides if not o.is_delete()} - {*choices}
    for key in sorted(key for key in said if not key.startswith("trainer.")):  # Lightning's own may be numbers too
        value = OmegaConf.select(config, key)
        unsaid = value is None and usual.get(key) is None
        if (isinstance(usual.get(key), bool) or key in SWITCHES) and not unsaid and value not in (True, False):
            raise UserError(f"{key} must be true or false, not {value!r}")


@lru_cache
def keys_of(config_name: str, *overrides: str) -> dict[str, Any]:
    """Dotted keys of a config and their values, as its files have them."""
    return dict(keys(OmegaConf.to_container(compose(config_name, list(overrides)), resolve=False)))


def composed_keys(config_name: str) -> list[str]:
    """Groups of a command, and its keys with the groups that were typed and no key set."""
    groups = names_of(config_name)[0]
    typed = [text for text in sys.argv[1:] if key_of(text) in groups and "," not in text]
    with initialize_config_dir(CONF, version_base="1.3"):
        return [*sorted(groups), *keys_of(config_name, *typed)]


def plain_value(value: Any) -> Any:
    """A node of a config as plain values."""
    return OmegaConf.to_container(value, resolve=False) if OmegaConf.is_config(value) else value


def keys(node: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Dotted keys of all values that are no dictionaries, or are empty ones."""
    if isinstance(node, dict):
        for name, value in node.items():
            yield from keys(value, f"{prefix}{name}.")
    if prefix and not (isinstance(node, dict) and node):
        yield prefix[:-1], node


def taken_beside(path: str, config: DictConfig) -> list[str]:
    """The keys that the ``_target_`` beside a key takes, also those that no file sets."""
    parent = path.rpartition(".")[0]
    target = OmegaConf.select(config, f"{parent}._target_") if parent else None
    return [f"{parent}.{name}" for name in parameters(str(target))] if target else []


def accepted(path: str, config: DictConfig, known: Mapping[str, Any]) -> bool:
    """Whether a key that no file names belongs to something open: a ``_target_`` that takes it, or an empty key."""
    parts = path.split(".")
    for depth in range(1, len(parts)):
        parent = ".".join(parts[:depth])
        if parent in known and known[parent] in (None, {}):
            return True
        node = OmegaConf.select(config, parent)
        target = node.get("_target_") if isinstance(node, DictConfig) else None
        if target and (parts[depth] == "_target_" or parts[depth] in parameters(target)):
            return True
        if target is None and isinstance(node, DictConfig) and parent in ("callbacks", "phases"):
            return True  # a callback of the user's own; what is set for one phase is looked at as that phase's
    return False
