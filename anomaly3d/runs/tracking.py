"""Loggers, and what of a run they get: nothing that names a machine or a patient leaves it."""

import hashlib
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import pandas as pd
from lightning.pytorch.loggers import Logger, WandbLogger

from anomaly3d.errors import UserError
from anomaly3d.runs.folder import PhaseFolder
from anomaly3d.runs.lineage import flatten
from anomaly3d.system.files import sha256
from anomaly3d.system.instantiate import ALLOWED, build
from anomaly3d.system.progress import is_leader, say

# what of a lineage may leave, by its dotted key: of these the numbers ...
NUMBERS = (
    *("can_score", "synthetic", "replaces", "settings.seed", "settings.model.*", "settings.phase.*"),
    *("settings.detector.*", "settings.preprocessing.*", "settings.data.*", "settings.callbacks.*"),
    *(f"settings.dataset.{key}" for key in ("seed", "version", "matrix", "slices", "twins", "counts.*", "shares.*")),
)
# ... and of these the words, which name parts of this program
WORDS = (
    *("title", "role", "reads", "version", "git_commit", "config_hash", "prepared", "split_hash", "parent_sha256"),
    *("made_with.*", "settings.model.*", "settings.phase.name", "settings.phase.monitor", "settings.phase.mode"),
    *("settings.detector.name", "settings.detector.phases", "settings.preprocessing.crop", "settings.dataset.purpose"),
    "*._target_",
)
WORD = re.compile(r"[\w .,:;()+-]{1,100}")  # no path
MODES = ("auto", "online", "offline", "disabled")
LOGIN_TIMEOUT = 20  # seconds
FINISH_TIMEOUT = 600  # seconds at the end of a run for what is still on its way; what stays is in the run's folder


def asked_mode(wanted: str) -> str:
    """One of ``MODES`` for a ``mode`` of the config; ``auto`` leaves it to ``WANDB_MODE`` where that is set.

    Raises:
        UserError: another mode.
    """
    mode = os.environ.get("WANDB_MODE", "auto") if wanted == "auto" else wanted
    mode = {"dryrun": "offline", "run": "online"}.get(mode, mode)  # older names, one of which Lightning itself sets
    if mode not in MODES:
        raise UserError(f"W&B has no mode {mode!r}: logger.mode (or WANDB_MODE) is one of {', '.join(MODES)}")
    return mode


def wandb_mode(wanted: str) -> str:
    """``asked_mode``, or for ``auto``: online where wandb itself knows a key for its server and reaches it."""
    mode = asked_mode(wanted)
    if mode != "auto":
        return mode
    import wandb

    try:
        wandb.Api(timeout=LOGIN_TIMEOUT)
    except wandb.errors.UsageError:  # no key
        return "offline"
    except Exception as error:  # whatever the network raises
        say(f"W&B is out of reach ({type(error).__name__}): this run is kept offline")
        return "offline"
    return "online"


def require_login() -> None:
    """Refuse work that takes a W&B server.

    Raises:
        UserError: wandb knows no key, or does not reach its server.
    """
    import wandb

    try:
        wandb.Api(timeout=LOGIN_TIMEOUT)
    except wandb.errors.UsageError as error:
        raise UserError(
            "you are not logged in to W&B: run 'wandb login' (with --host for a server of yours)"
        ) from error
    except Exception as error:  # whatever the network raises
        raise UserError(f"W&B is out of reach ({type(error).__name__}): try again with a network") from error


def scrub(node: Any, key: str = "") -> Any:
    """What of a lineage may leave this machine: numbers and names of what this program does, never of data or places.

    Args:
        key: the dotted key of ``node``.
    """
    if isinstance(node, dict):
        inside = {name: scrub(value, f"{key}.{name}".lstrip(".")) for name, value in node.items() if is_word(name)}
        return {name: value for name, value in inside.items() if value not in (None, [], {})}
    if isinstance(node, list):
        return [made for part in node if (made := scrub(part, key)) not in (None, [], {}) or part is None]
    if isinstance(node, str):
        ours = not key.endswith("_target_") or node.startswith(ALLOWED)  # not a package of the user's own
        fits = ours and is_word(node.replace("/", " ", 1) if key.endswith(".monitor") else node)  # phase/number
    else:
        fits = isinstance(node, int | float)
    allowed = WORDS if isinstance(node, str) else NUMBERS
    return node if fits and any(fnmatchcase(key, pattern) for pattern in allowed) else None


def is_word(text: str) -> bool:
    """Whether a text can be no path."""
    return bool(WORD.fullmatch(text))


class PrivateWandbLogger(WandbLogger):
    """Lightning's W&B logger without host name, command line and code, and without ever a prompt.

    Args:
        save_dir: the run's folder; its name is the group of the W&B run.
        name: of the phase below it.
        mode: of ``MODES``; auto: online where a key is known.
        models, images: whether networks and slices of volumes may be logged; None: for synthetic cohorts only.
        id: of the W&B run that goes on; None: a new one.
    """

    def __init__(
        self,
        save_dir: Path,
        name: str,
        mode: str = "auto",
        project: str = "anomaly3d",
        entity: str | None = None,
        models: bool | None = None,
        images: bool | None = None,
        id: str | None = None,
    ) -> None:
        import wandb

        mode = wandb_mode(mode)
        save_dir.mkdir(parents=True, exist_ok=True)
        self.models, self.images = models, images
        options = {
            "save_dir": save_dir,
            "project": project,
            "entity": entity,
            "settings": private_settings(mode),
            "id": id,
        }
        options |= {"name": f"{save_dir.name}/{name}", "group": save_dir.name, "job_type": name}
        super().__init__(**options, offline=mode != "online")
        self._wandb_init.pop("anonymous", None)  # wandb warns of the key that Lightning 2.6 always passes
        if not is_leader():
            return
        say(f"W&B: {mode}, {f'project {project}' if mode == 'online' else f'in {save_dir}/wandb'}")
        try:
            _ = self.experiment  # starts the run now, so that a missing network is known before any training
        except wandb.errors.Error as error:
            say(f"W&B is out of reach ({type(error).__name__}): this run is kept offline under {save_dir / 'wandb'}")
            wandb.teardown()
            super().__init__(**{**options, "settings": private_settings("offline")}, offline=True)
            self._wandb_init.pop("anonymous", None)


def private_settings(mode: Any) -> Any:
    """What wandb would send by itself, switched off.

    The mode is said here too: Lightning says it in ``WANDB_MODE`` only, which wandb has read before, at ``wandb.Api``.
    """
    import wandb

    return wandb.Settings(
        mode=mode,
        console="off",
        disable_code=True,
        disable_git=True,
        finish_timeout=FINISH_TIMEOUT,
        host="",
        init_timeout=LOGIN_TIMEOUT,
        program="anomaly3d.train",
        save_code=False,
        silent=True,
        x_disable_machine_info=True,
        x_disable_meta=True,
        x_disable_stats=True,
        x_save_requirements=False,  # packages of one's own have names too
    )


def make_logger(config: Mapping[str, Any], run: Path, name: str, wandb_id: str | None = None) -> Logger | None:
    """The logger of ``conf/logger`` for what lies in ``run/name``, None for none.

    Args:
        wandb_id: of the W&B run that goes on.

    Raises:
        UserError: its package is not installed, or it has no such mode.
    """
    if not config.get("_target_") or ("mode" in config and asked_mode(str(config["mode"])) == "disabled"):
        return None
    try:
        ours = config["_target_"].endswith(f".{PrivateWandbLogger.__name__}")
        more: dict[str, Any] = {"id": wandb_id} if wandb_id and ours else {}
        return build(config, "logger config", Logger, save_dir=run, name=name, **more)
    except ModuleNotFoundError as error:
        raise UserError(
            f"logger config: {error}; 'pip install tensorboard' brings what logger=tensorboard takes"
        ) from error


def may_log(logger: Logger | None, what: str, synthetic: bool) -> bool:
    """Whether ``models`` or ``images`` may go to a logger: as it says, else for synthetic cohorts only."""
    allowed = getattr(logger, what, None)
    return synthetic if allowed is None else bool(allowed)


def log_model(logger: Logger | None, folder: PhaseFolder, parent: Path | None, upload: bool) -> None:
    """Digests of the phase's detector and of its parent's; where ``upload``, the detector as an artifact.

    The artifact is linked to the parent's. Offline it would only be a second copy on this disk.

    Args:
        upload: whether networks may leave this machine: a generator has learned its training scans.
    """
    if not isinstance(logger, WandbLogger) or not is_leader():
        return
    import wandb

    run, digest = logger.experiment, sha256(folder.model)
    run.summary.update({"model_sha256": digest, "parent_sha256": sha256(parent) if parent else None})
    if run.settings.mode != "online" or not upload:
        return
    with unless_silent("network"):
        if parent:
            link(run, artifact_name(run, parent.parent))
        artifact = wandb.Artifact(artifact_name(run, folder.path), "model", metadata={"sha256": digest})
        artifact.add_file(str(folder.model))
        run.log_artifact(artifact)


@contextmanager
def unless_silent(what: str) -> Iterator[None]:
    """A server that no longer answers costs a word, and not the run."""
    import wandb

    try:
        yield
    except wandb.errors.Error as error:
        say(f"W&B is out of reach ({type(error).__name__}): no {what} there")


def artifact_name(run: Any, phase: Path) -> str:
    """``RUN-DETECTOR-PHASE``; W&B takes at most 128 plain characters, so of other names a digest stands behind them."""
    name = f"{run.group}-{phase.parent.name}-{phase.name}"
    plain = re.sub(r"[^A-Za-z0-9_.-]", "_", name)[:100]
    return name if plain == name else f"{plain}-{hashlib.sha256(name.encode()).hexdigest()[:8]}"


def link(run: Any, artifact: str) -> None:
    """Say that a run used the latest version of an artifact; one that W&B does not know is not an error here."""
    import wandb

    try:
        run.use_artifact(f"{artifact}:latest")
    except (wandb.errors.Error, ValueError):
        say(f"W&B does not know {artifact}: this run is not linked to it")


def curves(labels: list[int], scores: list[float], prefix: str) -> dict[str, Any]:
    """ROC and precision-recall curve as W&B plots, ``PREFIX_roc`` and ``PREFIX_pr``."""
    import wandb

    # the plots want two probabilities a scan; ranks in (0, 1) leave both curves as they are
    share = pd.Series(scores).rank().to_numpy() / (len(scores) + 1)
    pairs = [[1 - s, s] for s in share.tolist()]
    names, abnormal = ["normal", "abnormal"], [1]
    return {
        f"{prefix}_roc": wandb.plot.roc_curve(labels, pairs, names, classes_to_plot=abnormal),  # type: ignore[arg-type]
        f"{prefix}_pr": wandb.plot.pr_curve(labels, pairs, names, classes_to_plot=abnormal),  # type: ignore[arg-type]
    }


def numbers_of(metrics: dict[str, Any], prefix: str) -> dict[str, float]:
    """Every number of an evaluation by its dotted key; of an interval ``ci95_low`` and ``ci95_high``."""
    found: dict[str, float] = {}
    for key, value in flatten(metrics, prefix).items():
        if not all(map(is_word, key.removeprefix(prefix).split("."))):
            continue  # a site may be called like a folder
        if isinstance(value, int | float):
            found[key] = value
        elif isinstance(value, list) and len(value) == 2 and all(isinstance(v, int | float) for v in value):
            found |= {f"{key}_low": value[0], f"{key}_high": value[1]}
    return found


def log_report(
    logger: Logger | None,
    detector: Path,
    metrics: dict[str, Any],
    ranked: pd.DataFrame,
    table: pd.DataFrame,
    figures: dict[str, Path],
) -> None:
    """An evaluation as a W&B run of the group: every number, curves, figures, a table of scans without their names.

    Args:
        detector: folder of the phase that was evaluated.
        ranked, table: rescored test scans, those that AUC is about and all.
        figures: files by name; those that show scans are left out by the caller.
    """
    if not isinstance(logger, WandbLogger):
        return
    import wandb

    run = logger.experiment
    run.summary.update(numbers_of(metrics, "evaluation/"))
    known = ("cohort", "site", "group", "label", "lesions", "lesion_ml")
    scans = table[[c for c in table if c in known or pd.api.types.is_float_dtype(table[c])]]
    scans = scans.assign(**{c: scans[c].where(scans[c].map(is_word), "") for c in ("cohort", "site")})
    pictures = {f"evaluation/{n}": wandb.Image(str(f.with_suffix(".png"))) for n, f in figures.items()}
    labels = ranked["label"].astype(int).tolist()
    with unless_silent("pictures, curves and table of scans"):
        run.log({"evaluation/scans": wandb.Table(dataframe=scans.reset_index(drop=True)), **pictures})
        if len(set(labels)) == 2:
            run.log(curves(labels, ranked["total"].tolist(), "evaluation/test"))
        if run.settings.mode == "online":
            name = artifact_name(run, detector)
            link(run, name)
            artifact = wandb.Artifact(f"{name}-evaluation", "evaluation")
            artifact.add(wandb.Table(dataframe=scans.reset_index(drop=True)), "scans")
            run.log_artifact(artifact)
    close_logger(logger)


def close_logger(logger: Logger | None) -> None:
    """End the logger's run, so that the next phase in this process begins its own."""
    if logger is None or not is_leader():
        return
    logger.finalize("success")
    if isinstance(logger, WandbLogger):
        import wandb

        wandb.finish()
