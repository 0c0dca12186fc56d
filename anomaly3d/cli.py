"""What the commands share: Hydra composes the config, a user's mistake becomes one sentence and an exit code.

0 done; 2 a mistake in config, manifest or command; 3 done, but some scans could not be used; 130 interrupted.
"""

import os
import sys
from collections.abc import Callable
from pathlib import Path

import hydra
from hydra.core.global_hydra import GlobalHydra
from hydra.errors import HydraException
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

from anomaly3d.errors import UserError
from anomaly3d.memory import keep_freed_memory, release_memory

CONF = str(Path(__file__).parent.parent / "conf")
INTERRUPTED = 130
NAMES = ("run", "site")


def command(config_name: str) -> Callable[[Callable[[DictConfig], int]], Callable[..., int]]:
    """Decorate ``task(config) -> exit code`` into ``main(argv=None) -> exit code``."""

    def decorate(task: Callable[[DictConfig], int]) -> Callable[..., int]:
        codes: list[int] = []
        failures: list[Exception] = []

        def remember(config: DictConfig) -> None:
            for name in NAMES:  # run=2024 is a name, not a number
                if name in config and config[name] is not None:
                    config[name] = str(config[name])
            release_memory()
            try:
                codes.append(task(config))
            except (UserError, HydraException, OmegaConfBaseException) as error:
                # here, because Hydra would print a line of its own; it also ends a multirun
                raise SystemExit(refuse(error)) from error
            except Exception as error:
                failures.append(error)  # Hydra's launcher would go on with the next job of a multirun
                raise SystemExit(1) from error

        def main(argv: list[str] | None = None) -> int:
            codes.clear()
            failures.clear()
            program = sys.argv
            keep_freed_memory()
            os.environ["HYDRA_FULL_ERROR"] = "1"  # hand us its errors instead of printing them
            if argv is not None:
                sys.argv = [f"anomaly3d.{config_name}", *argv]
            try:
                hydra.main(version_base="1.3", config_path=CONF, config_name=config_name)(remember)()
            except (UserError, HydraException, OmegaConfBaseException) as error:
                return refuse(error)
            except SystemExit as stop:
                if failures:
                    return disk_full(failures[0])
                return stop.code if isinstance(stop.code, int) else 1
            except KeyboardInterrupt:
                print("interrupted: run the same command again to go on from where it stopped", file=sys.stderr)
                return INTERRUPTED
            finally:
                sys.argv = program
                GlobalHydra.instance().clear()
            return max(codes, default=0)

        main.__doc__ = task.__doc__
        return main

    return decorate


def disk_full(error: Exception) -> int:
    """Exit code 2 with a sentence for a full disk; any other error is ours and is raised."""
    from anomaly3d.parallel import disk_error

    mistake = disk_error(error) if isinstance(error, OSError) else error
    if isinstance(mistake, UserError):
        return refuse(mistake)
    raise error


def refuse(error: Exception) -> int:
    """Say what is wrong on one line and return exit code 2."""
    text = " ".join(str(error).split())
    text = text.split(" Config search path:")[0].split(" full_key:")[0]
    print(f"error: {text}", file=sys.stderr)
    return 2
