"""``python -m anomaly3d.dashboard``: a W&B workspace with the panels in the order in which a reader needs them."""

import sys
from typing import TYPE_CHECKING, Any

from hydra import compose
from omegaconf import DictConfig

from anomaly3d.arguments import usual_detector
from anomaly3d.cli import Done, chosen, command, searchpath

if TYPE_CHECKING:
    from anomaly3d.phases.base import Phase

MEDIA = ("samples", "reconstructions")
EVALUATION = ("roc", "lesions", "groups", "volumes", "conformal", "cases")
STEPS = "trainer/global_step"  # what Lightning calls the number of batches
SCALARS = ("evaluation/results.all.auc.value", "evaluation/results.all.ap.value")


def phases_of(detector: str) -> "list[type[Phase]]":
    """The classes of a detector's phases, in their order."""
    from hydra.utils import get_class

    words = [f"detector={detector}", *searchpath()]
    phases = compose("train", words).detector.phases
    modules = [compose("train", [*words, f"+phase={name}"]).phase for name in phases]
    return [get_class(phase.module["_target_"]) for phase in modules]


def layout(phases: "list[type[Phase]]") -> list[tuple[str, list[tuple[str, list[str]]]]]:
    """Sections, each with its panels: a title and the keys that it draws."""
    return [
        (f"{number} {p.question}", [(title, [f"{p.name}/{key}" for key in names]) for title, names in p.panels])
        for number, p in enumerate(phases, start=1)
    ]


def build(entity: str, project: str, phases: "list[type[Phase]]") -> Any:
    """The workspace, not saved anywhere."""
    import wandb_workspaces.reports.v2 as panels
    import wandb_workspaces.workspaces as workspaces

    sections = [
        workspaces.Section(
            name=title,
            panels=[panels.LinePlot(title=t, x=STEPS, title_x="training steps", y=[*names]) for t, names in lines],
            is_open=True,
        )
        for title, lines in layout(phases)
    ]
    media: list[Any] = [panels.MediaBrowser(media_keys=[f"{phase.name}/{key}"]) for phase in phases for key in MEDIA]
    sections.append(workspaces.Section(name=f"{len(phases) + 1} What it makes", panels=media))
    results: list[Any] = [panels.ScalarChart(title=key, metric=panels.SummaryMetric(key)) for key in SCALARS]
    results += [panels.MediaBrowser(media_keys=[f"evaluation/{name}"]) for name in EVALUATION]
    title = f"{len(phases) + 2} How well it finds lesions"
    sections.append(workspaces.Section(name=title, panels=results, is_open=True))
    return workspaces.Workspace(entity=entity, project=project, name="anomaly3d", sections=sections)


@command("dashboard")
def main(config: DictConfig) -> Done:
    """Lay out the workspace of ``entity=... project=...``; ``dry_run=true`` only says what it would hold."""
    from anomaly3d.errors import UserError
    from anomaly3d.runs.tracking import require_login
    from anomaly3d.system.progress import say

    try:
        workspace = build(config.entity or "", config.project, phases_of(chosen("detector") or usual_detector()))
    except ImportError as error:
        raise UserError("the dashboard takes one more package: pip install wandb-workspaces") from error
    for section in workspace.sections:
        say(f"{section.name}: {len(section.panels)} panels")
    if config.dry_run:
        return Done()
    if not config.entity:
        raise UserError("whose workspace? Give entity=NAME, your W&B user or team, or dry_run=true")
    require_login()
    workspace.save()
    say(f"saved: {workspace.url}")
    return Done()


if __name__ == "__main__":
    sys.exit(main())
