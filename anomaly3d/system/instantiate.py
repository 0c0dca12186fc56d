"""Objects from configs: ``_target_`` names a class, but only of packages that are meant to be named there.

A config, or the config inside a model file, may come from somebody else, and a ``_target_`` could call anything.
"""

import functools
import inspect
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from hydra.errors import InstantiationException
from hydra.utils import get_object, instantiate

from anomaly3d.errors import UserError

ALLOWED = (
    "anomaly3d.",
    "lightning.Trainer",
    "lightning.pytorch.callbacks.",
    "lightning.pytorch.loggers.",
    "monai.transforms.",
    "torch.optim.",
)
plugins: list[str] = []  # packages of the user's own that may be named too, see ``plugins`` in conf/common.yaml


def allow(packages: Iterable[str]) -> None:
    """From now on configs may name what lies in these packages."""
    plugins[:] = [f"{name}." for name in packages]


def targets(config: Any) -> Iterator[str]:
    """Every ``_target_`` in a config, however deep."""
    if isinstance(config, Mapping):
        if "_target_" in config:
            yield str(config["_target_"])
        for value in config.values():
            yield from targets(value)
    elif isinstance(config, list | tuple):
        for value in config:
            yield from targets(value)


def check_targets(config: Any) -> None:
    """Refuse a config that names something else than what it is for.

    Raises:
        UserError: names the target.
    """
    for target in targets(config):
        if not target.startswith((*ALLOWED, *plugins)):
            raise UserError(
                f"_target_={target} is not among the packages that a config may name ({', '.join(ALLOWED)}): name the "
                "package with plugins=[...] if it is yours"
            )


def build(config: Mapping[str, Any], what: str, recursive: bool = True, **more: Any) -> Any:
    """The object that a config describes, with ``more`` arguments, which may be objects that no config can hold.

    Args:
        what: names the config in messages, for example ``model config``.
        recursive: also build nested configs that have a ``_target_``; else they are handed on as dictionaries.

    Raises:
        UserError: a class that may not be named or does not exist, or arguments that it does not take.
    """
    check_targets(config)
    rest = {key: value for key, value in config.items() if key not in ("_target_", "_partial_")}
    try:
        made = get_object(config["_target_"])
        arguments = {**(instantiate(rest, _convert_="all") if recursive else rest), **more}
        if config.get("_partial_"):
            return functools.partial(made, **arguments)
        inspect.signature(made).bind(**arguments)
        return made(**arguments)
    except InstantiationException as error:
        raise UserError(f"{what}: {reason(error)}") from error
    except ModuleNotFoundError as error:
        if str(config["_target_"]).startswith(f"{error.name}."):
            raise UserError(f"{what}: {error}") from error
        raise  # of a library that the class needs
    except (ImportError, AttributeError, TypeError, ValueError) as error:
        raise UserError(f"{what}: {error}") from error


def reason(error: BaseException) -> str:
    """What went wrong at the bottom, not where Hydra noticed it."""
    while error.__cause__ is not None:
        error = error.__cause__
    return str(error).split("\nfull_key")[0]


def parameters(target: str) -> set[str]:
    """Names of the arguments that a ``_target_`` takes; empty where it cannot be imported."""
    try:
        return set(inspect.signature(get_object(target)).parameters)
    except Exception:  # whatever its import raises: the question is only which keys it knows
        return set()
