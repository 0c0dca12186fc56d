"""The jobs of ``-m``: a grid of values, or a search by Optuna. None stops the others, and no two train into one folder.

Hydra's own sweeper hears nothing of jobs that failed in another process, as those of SLURM.
"""

import math
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from hydra._internal.core_plugins.basic_launcher import BasicLauncher
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import IntervalSweep, Override, RangeSweep
from hydra.core.plugins import Plugins
from hydra.plugins.launcher import Launcher
from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf, open_dict

from anomaly3d.arguments import key_of, said_anew
from anomaly3d.cli import Done, settle_name, trained_of
from anomaly3d.errors import UserError
from anomaly3d.system.files import locked, written_whole
from anomaly3d.system.progress import say


class Sweep(Sweeper):
    """Launches jobs and lists those that failed.

    Args:
        params: values by key that stand below what was typed.
    """

    hydra_context: HydraContext
    config: DictConfig
    launcher: Launcher

    def __init__(self, params: dict[str, str] | None) -> None:
        self.params = params or {}
        self.ended: list[tuple[Sequence[str], Done]] = []

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """What Hydra tells a sweeper."""
        self.hydra_context, self.config = hydra_context, config
        self.launcher = Plugins.instance().instantiate_launcher(
            hydra_context=hydra_context, task_function=task_function, config=config
        )

    @property
    def elsewhere(self) -> bool:
        """Whether jobs run in other processes, whose output does not come here."""
        return not isinstance(self.launcher, BasicLauncher)

    def overrides(self, typed: Sequence[str]) -> list[Override]:
        """What was typed, before it the parameters that it does not set."""
        parser = OverridesParser.create(self.hydra_context.config_loader)
        texts = [*(f"{key}={value}" for key, value in self.params.items()), *typed]
        return list({key_of(str(o.input_line)): o for o in parser.parse_overrides(texts)}.values())

    def composed(self, job: Sequence[str], number: int) -> DictConfig:
        """The config of a job, with Hydra's part.

        Raises:
            HydraException: a key or choice that is not there.
        """
        config = self.hydra_context.config_loader.load_sweep_config(self.config, list(job))
        with open_dict(config):
            config.hydra.job.num, config.hydra.job.id = number, str(number)
        HydraConfig.instance().set_config(config)
        return config

    def launch(self, jobs: Sequence[Sequence[str]]) -> list[Done]:
        """Run jobs, each a list of overrides, and wait for them.

        Raises:
            UserError: the process of one died.
        """
        try:
            returns = self.launcher.launch(jobs, initial_job_idx=len(self.ended))
        except RuntimeError as error:  # of submitit; what goes wrong inside of a job does not come this way
            if not self.elsewhere:
                raise
            raise UserError(
                f"a job was ended from outside, its log says why ({' '.join(str(error).split())[:300]}): others may "
                "still be at work; then the same command again goes on"
            ) from error
        done = [returned.return_value for returned in returns]
        self.ended += zip(jobs, done, strict=True)
        return done

    def close(self) -> None:
        """List the jobs that failed.

        Raises:
            SystemExit: one did, or could not use all scans.
        """
        failed = [(job, done.failure) for job, done in self.ended if done.failure]
        if failed:
            if self.elsewhere:
                print(*(f"error: {failure}" for _, failure in failed), sep="\n", file=sys.stderr)
            print(f"{len(failed)} of {len(self.ended)} jobs failed, for the reasons above:", file=sys.stderr)
            print(*(f"  {' '.join(job)}" for job, _ in failed), sep="\n", file=sys.stderr)
        if code := max((done.code for _, done in self.ended), default=0):
            raise SystemExit(code)


class Grid(Sweep):
    """Every combination of the values that were typed.

    Args:
        max_batch_size: jobs that the launcher gets at once; None for all.
    """

    def __init__(self, max_batch_size: int | None = None, params: dict[str, str] | None = None) -> None:
        super().__init__(params)
        self.max_batch_size = max_batch_size

    def sweep(self, arguments: list[str]) -> None:
        """Run all jobs of ``arguments``."""
        (jobs,) = BasicSweeper.split_arguments(self.overrides(arguments), None)
        if self.elsewhere and len({text for job in jobs for text in job if key_of(text) == "phase"}) > 1:
            raise UserError("phases begin with those before them, and these jobs run side by side: leave out +phase")
        self.refuse_shared_folders(jobs)
        size = self.max_batch_size or len(jobs)
        for start in range(0, len(jobs), size):
            self.launch(jobs[start : start + size])
        self.close()

    def refuse_shared_folders(self, jobs: Sequence[Sequence[str]]) -> None:
        """Compose each job, and refuse two that would train into one folder.

        Raises:
            UserError: names the run, and the key that belongs into its name.
        """
        taken: dict[Path, Sequence[str]] = {}
        for number, job in enumerate(jobs):
            config = self.composed(job, number)
            if (folder := folder_of(config)) is None:
                continue
            if folder in taken:
                keys = [key_of(a) for a, b in zip(job, taken[folder], strict=True) if a != b] or ["seed"]
                name = f"hydra:runtime.choices.{keys[0]}" if keys[0] in config.hydra.runtime.choices else keys[0]
                raise UserError(
                    f"two jobs of this sweep would train into {folder}, and nothing has begun: put what varies into "
                    f"the name of the run, such as 'run={config.run}-${{{name}}}'"
                )
            taken[folder] = job


def folder_of(config: DictConfig) -> Path | None:
    """Where a job trains: ``RUNS/NAME/DETECTOR/PHASE``, without PHASE for all; None where it keeps nothing."""
    trained = trained_of(config)
    if trained is None or OmegaConf.select(config, "trainer.fast_dev_run"):
        return None
    return Path(config.runs_dir, *trained, OmegaConf.select(config, "phase.name") or "")


class Search(Sweep):
    """Trials that Optuna chooses by the numbers of those before; each trains a run of its own, ``RUN-NUMBER``.

    All of them are in a file, with which the same command goes on: trials that were interrupted go on first, more of
    them are added up to ``trials``. One that fails counts as failed.

    Args:
        trials: in all.
        together: at once, where jobs run side by side.
        direction: ``minimize`` or ``maximize`` what the command returns.
        storage: the file.
        params: the space that is searched, by key.
        max_batch_size: of the grid whose config a file of ``hparams_search`` makes a search of; not used.
    """

    def __init__(
        self,
        trials: int,
        together: int,
        direction: str,
        storage: str,
        params: dict[str, str] | None = None,
        max_batch_size: int | None = None,
    ) -> None:
        super().__init__(params)
        self.trials, self.together, self.direction, self.storage = trials, together, direction, Path(storage)

    def sweep(self, arguments: list[str]) -> None:
        """Search as ``arguments`` say.

        Raises:
            UserError: nothing to search or to optimise, another search of the same name, or no Optuna.
        """
        settle_name(self.config, "run")
        run, overrides = str(self.config.run), self.overrides(arguments)
        varied = [o for o in overrides if o.is_sweep_override()]
        texts = [f"{o.get_key_element()}={o.get_value_element_as_str()}" for o in overrides if o not in varied]
        fixed = [text for text in texts if key_of(text) != "run"]
        try:
            space = {o.get_key_element(): distribution(o) for o in varied}
        except ModuleNotFoundError as error:
            raise UserError("hydra/sweeper=optuna takes Optuna: pip install 'anomaly3d[sweep]'") from error
        except ValueError as error:
            asked = ", ".join(str(o.input_line) for o in varied)
            raise UserError(f"Optuna cannot draw from the values of {asked}: {error}") from error
        self.check(space, fixed)
        with locked(self.storage.with_suffix(".lock"), f"the search {self.storage}"):
            settings = [self.direction, *(t for t in fixed if not said_anew(t)), *(str(o.input_line) for o in varied)]
            self.search(self.study(run, sorted(settings)), run, fixed, space)
        self.close()

    def check(self, space: Mapping[str, Any], fixed: Sequence[str]) -> None:
        """Refuse a search that cannot be, before any trial.

        Raises:
            UserError: names the key.
            HydraException: a key or choice that is not there.
        """
        if not space or "run" in space:
            raise UserError(
                "a search takes keys to search, such as 'detector.module.kappa=tag(log,interval(0.1,10))'; run=NAME is "
                "one name, from which those of the trials are made"
            )
        if self.direction not in ("minimize", "maximize") or min(self.trials, self.together) < 1:
            raise UserError(
                f"hydra.sweeper: direction={self.direction} is minimize or maximize, trials={self.trials} and "
                f"together={self.together} are at least 1"
            )
        first = {key: d.choices[0] if hasattr(d, "choices") else d.low for key, d in space.items()}
        config = self.composed([*fixed, *(f"{key}={value}" for key, value in first.items())], 0)
        number = config.get("optimized_metric") or OmegaConf.select(config, "phase.monitor")
        better = {"auc": "maximize", "loss": "minimize"}.get(str(number)[-4:].lstrip("_"), self.direction)
        if self.direction != better:
            way = {"maximize": "higher", "minimize": "lower"}[better]
            raise UserError(f"{number} is better where it is {way}: add hydra.sweeper.direction={better}")
        processes = [OmegaConf.select(config, f"trainer.{key}") for key in ("devices", "num_nodes")]
        if not self.elsewhere and processes != [1, 1]:
            raise UserError(
                "a search trains each trial on one device: take trainer.devices=1, or hydra/launcher=slurm, where each "
                "trial has processes of its own"
            )

    def study(self, run: str, settings: list[str]) -> Any:
        """The study of Optuna in the file, begun or found there.

        Raises:
            UserError: it was begun with other settings.
        """
        import optuna
        from optuna.storages.journal import JournalFileBackend

        optuna.logging.set_verbosity(optuna.logging.WARNING)
        storage = optuna.storages.JournalStorage(JournalFileBackend(str(self.storage)))
        direction = optuna.study.StudyDirection[self.direction.upper()]
        study = optuna.create_study(storage=storage, study_name=run, direction=direction, load_if_exists=True)
        # of one seed, those that a second call adds would be those of the first
        study.sampler = optuna.samplers.TPESampler(seed=self.config.seed + len(study.trials))
        before = study.user_attrs.get("settings", settings)
        if before != settings:
            keys = sorted({key_of(text) for text in set(before) ^ set(settings)})
            raise UserError(
                f"{self.storage} holds a search with other values of {', '.join(keys)}: give the same ones, or the "
                "search another name with run=..."
            )
        study.set_user_attr("settings", settings)
        return study

    def search(self, study: Any, run: str, fixed: Sequence[str], space: Mapping[str, Any]) -> None:
        """Run trials until there are as many as wanted; writes ``RUNS/RUN.csv`` after each batch.

        Raises:
            UserError: they give no number.
        """
        from optuna.trial import TrialState

        waiting = study.get_trials(states=(TrialState.RUNNING,))  # an interrupted call left them
        while waiting or len(study.trials) < self.trials:
            batch, waiting = waiting[: self.together], waiting[self.together :]
            new = min(self.together - len(batch), self.trials - len(study.trials))
            batch = [*batch, *(study.ask(space) for _ in range(new))]
            ended = self.launch([[*fixed, *values_of(trial), f"run={run}-{trial.number}"] for trial in batch])
            for trial, done in zip(batch, ended, strict=True):
                if math.isfinite(number := float(done)):
                    study.tell(trial.number, number)
                    say(f"{run}-{trial.number}: {number:.6g} with {' '.join(values_of(trial))}")
                else:
                    study.tell(trial.number, state=TrialState.FAIL)
            with written_whole(Path(self.config.runs_dir) / f"{run}.csv") as path:
                study.trials_dataframe(("number", "value", "params", "state")).to_csv(path, index=False)
            if all(done.code == 0 and done.value is None for done in ended):
                raise UserError(f"{run}-{batch[0].number} gives no number: name one with optimized_metric=...")
        if study.get_trials(states=(TrialState.COMPLETE,)):
            best = study.best_trial
            words = f"{best.value:.6g} with {' '.join(values_of(best))}"
            say(f"best of {len(study.trials)} trials: run={run}-{best.number}, {words}")


def values_of(trial: Any) -> list[str]:
    """What Optuna chose for a trial, as overrides."""
    return [f"{key}={value}" for key, value in trial.params.items()]


def distribution(override: Override) -> Any:
    """What Optuna draws a key's value from: ``interval`` and ``range`` are numbers, all else is one of its values."""
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    space = override.value()
    low: Any
    high: Any
    if isinstance(space, IntervalSweep):
        low, high, step = space.start, space.end, None
    elif isinstance(space, RangeSweep):
        values = [*override.sweep_iterator()]
        low, high, step = min(values), max(values), abs(space.step or 1)  # type: ignore[type-var]
    else:
        return CategoricalDistribution([*override.sweep_string_iterator()])
    log = "log" in space.tags
    if isinstance(low, int) and isinstance(high, int):
        return IntDistribution(low, high, log=log, step=1 if log else int(step or 1))
    return FloatDistribution(float(low), float(high), log=log, step=None if log or step is None else float(step))
