"""Is the training going well? Numbers of the phase after each validation, and alarms in plain words.

Nothing here knows of a test scan, and nothing is chosen by it.
"""

import json
from pathlib import Path
from typing import Any

import lightning as L
import torch

from anomaly3d.data.module import data_of
from anomaly3d.errors import UserError
from anomaly3d.phases.base import Alarm, Phase
from anomaly3d.system.files import written_whole
from anomaly3d.system.progress import say


class Health(L.Callback):
    """Measure, log under ``PHASE/health_NAME``, warn, and keep all of it in ``health.json`` of the phase.

    Args:
        abort: end training at the first alarm.
    """

    def __init__(self, abort: bool = False) -> None:
        self.abort = abort
        self.history: list[dict[str, float]] = []
        self.alarms: list[dict[str, Any]] = []

    def state_dict(self) -> dict[str, Any]:
        return {"history": self.history, "alarms": self.alarms}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.history, self.alarms = state_dict["history"], state_dict["alarms"]

    @torch.no_grad()
    def on_validation_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        assert isinstance(pl_module, Phase)
        found = pl_module.health(data_of(trainer))
        pl_module.log_dict({f"{pl_module.name}/health_{k}": v for k, v in found.items()}, rank_zero_only=True)
        alarms: list[str] = []
        if trainer.is_global_zero and not getattr(trainer, "fast_dev_run", False):
            metrics = trainer.callback_metrics
            logged = {k.split("/")[1]: float(v) for k, v in metrics.items() if k.startswith(f"{pl_module.name}/")}
            alarms = self.look({**logged, **found}, pl_module.alarms, trainer.current_epoch + 1)
            with written_whole(Path(trainer.default_root_dir) / "health.json") as path:
                path.write_text(json.dumps(self.state_dict(), indent=1))
            for words in alarms:
                say(f"  alarm: {words}")
        if self.abort and (alarms := trainer.strategy.broadcast(alarms)):
            raise UserError(f"stopped at an alarm (callbacks.health.abort=true): {alarms[0]}")

    def look(self, numbers: dict[str, float], watched: tuple[Alarm, ...], epoch: int) -> list[str]:
        """Take in the numbers of a validation and return what is alarming; an alarm is given once until it ends."""
        self.history.append({alarm.number: numbers[alarm.number] for alarm in watched if alarm.number in numbers})
        before = {a["number"] for a in self.alarms if a["epoch"] == epoch - 1 or a.get("until") == epoch - 1}
        words = []
        for alarm in watched:
            name = alarm.number
            values = [h[name] for h in self.history if name in h]
            text = alarm.check(values) if values else None
            if not text:
                continue
            if name in before:
                last = next(a for a in reversed(self.alarms) if a["number"] == name)
                last["until"] = epoch
            else:
                self.alarms.append({"number": name, "epoch": epoch, "words": text})
                words.append(text)
        return words
