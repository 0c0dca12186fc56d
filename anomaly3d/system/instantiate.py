"""Objects from configs: ``_target_`` names a class, but only of packages that are meant to be named there.

A config, or the config inside a model file or a run's lineage, may come from somebody else, and a ``_target_`` could
call anything. Texts are taken as they are: Hydra's ``instantiate`` would resolve ``${...}`` in them, after the check.
"""

import contextlib
import functools
import inspect
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from hydra.utils import get_object

from anomaly3d.errors import UserError

ALLOWED = (
    "anomaly3d.",
    "lightning.Trainer",
    "lightning.pytorch.trainer.trainer.Trainer",  # where that comes from
    "lightning.pytorch.callbacks.",
    "lightning.pytorch.loggers.",
    "monai.transforms.",
    "torch.optim.",
)
REFUSED = ("monai.transforms.io.",)  # its readers and writers are named by a text that may be any function's
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


def check_targets(config: Any, functions: Iterable[str] = ()) -> None:
    """Refuse a config that names something else than what it is for; what does not exist, ``build`` says.

    Raises:
        UserError: names the target.
    """
    for target in targets(config):
        with contextlib.suppress(ImportError):
            located(target, functions)


def refusal(target: str) -> UserError:
    """The sentence about a target that may not be named."""
    return UserError(
        f"_target_={target} is not a class of the packages that a config may name ({', '.join(ALLOWED)}): name the "
        "package with plugins=[...] if it is yours"
    )


def located(target: str, functions: Iterable[str] = ()) -> Any:
    """The class that a ``_target_`` names; of a plugin, whatever it names.

    Its own place is asked too: ``anomaly3d.runs.lineage.subprocess.run`` begins as it should. And a function of ours
    could be any, the commands themselves among them.

    Args:
        functions: those that may be named beside classes.

    Raises:
        UserError: it may not be named.
        ImportError: there is no such thing.
    """
    if not target.startswith((*ALLOWED, *plugins)):
        raise refusal(target)
    made = get_object(target)
    if target.startswith(tuple(plugins)) or target in functions:
        return made
    home = f"{getattr(made, '__module__', '')}.{getattr(made, '__qualname__', '')}"
    if not inspect.isclass(made) or not home.startswith(ALLOWED) or home.startswith(REFUSED):
        raise refusal(target)
    return made


def build(
    config: Mapping[str, Any],
    what: str,
    kind: type = object,
    recursive: bool = True,
    functions: Iterable[str] = (),
    **more: Any,
) -> Any:
    """The object that a config describes, with ``more`` arguments, which may be objects that no config can hold.

    Args:
        what: names the config in messages, for example ``model config``.
        kind: what the class must be.
        recursive: also build nested configs that have a ``_target_``; else they are handed on as dictionaries.
        functions: those of this program that may be named in place of a class.

    Raises:
        UserError: a class that is not named, may not be, does not exist or is of another kind, or arguments that it
            does not take.
    """
    check_targets(config, functions)
    if "_target_" not in config:
        raise UserError(
            f"{what} does not say of which class it is: add its _target_ (there is {', '.join(config)}); for the phase "
            "fit it is taken from detector.fit"
        )
    target = str(config["_target_"])
    rest = {key: value for key, value in config.items() if key not in ("_target_", "_partial_")}
    try:
        made = located(target, functions)
        if inspect.isclass(made) and not issubclass(made, kind):
            raise UserError(f"{what}: _target_={target} is no {kind.__name__}")
        arguments = {**({key: nested(value, what) for key, value in rest.items()} if recursive else rest), **more}
        if config.get("_partial_"):
            return functools.partial(made, **arguments)
        inspect.signature(made).bind(**arguments)
        return made(**arguments)
    except ModuleNotFoundError as error:
        if target.startswith(f"{error.name}."):
            raise UserError(f"{what}: {error}") from error
        raise  # of a library that the class needs
    except (ImportError, AttributeError, TypeError, ValueError) as error:
        raise UserError(f"{what}: {error}") from error


def nested(node: Any, what: str) -> Any:
    """A value of a config with every object that it describes."""
    if isinstance(node, Mapping):
        return build(node, what) if "_target_" in node else {key: nested(value, what) for key, value in node.items()}
    return [nested(value, what) for value in node] if isinstance(node, list | tuple) else node


def parameters(target: str) -> set[str]:
    """Names of the arguments that a ``_target_`` takes; empty where it may not be named or cannot be imported."""
    try:
        return set(inspect.signature(located(target)).parameters)
    except Exception:  # whatever its import raises: the question is only which keys it knows
        return set()
