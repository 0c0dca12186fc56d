"""``python -m anomaly3d.dashboard``: a W&B workspace with the panels in the order in which a reader needs them."""

import sys
from typing import Any

from omegaconf import DictConfig

from anomaly3d.cli import command

# title, panels: each a title and the keys it draws; open sections come first
LAYOUT: tuple[tuple[str, tuple[tuple[str, tuple[str, ...]], ...]], ...] = (
    (
        "1 Is the GAN healthy?",
        (
            ("Gradient norm: near 1", ("gan/gradient_norm",)),
            ("Wasserstein estimate: grows, then falls slowly", ("gan/wasserstein", "gan/val_wasserstein")),
            ("Samples alike: near 0, up is collapse", ("gan/health_sameness",)),
            ("Samples far from heads: falls below 1", ("gan/health_distance",)),
            ("Samples copy training heads: below 0.5", ("gan/health_copying",)),
            ("Critic overfits: towards 1", ("gan/health_overfitting",)),
        ),
    ),
    (
        "2 Does the encoder find healthy heads?",
        (
            ("Loss of healthy validation heads", ("encoder/val_loss", "finetune/val_loss")),
            ("Pasted anomalies told apart", ("encoder/val_pseudo_auc", "finetune/val_pseudo_auc")),
            ("Image over feature distance", ("encoder/health_balance", "finetune/health_balance")),
            ("Saturated tanh outputs", ("encoder/health_saturation", "finetune/health_saturation")),
            ("Validation over training loss", ("encoder/health_gap", "finetune/health_gap")),
        ),
    ),
)
MEDIA = ("gan/samples", "encoder/reconstructions", "finetune/reconstructions")
EVALUATION = ("roc", "lesions", "groups", "volumes", "conformal", "cases")
SCALARS = ("evaluation/auc.all.value", "evaluation/ap.all.value")


def build(entity: str, project: str) -> Any:
    """The workspace, not saved anywhere."""
    import wandb_workspaces.reports.v2 as panels
    import wandb_workspaces.workspaces as workspaces

    sections = [
        workspaces.Section(
            name=title, panels=[panels.LinePlot(title=t, x="Step", y=list(keys)) for t, keys in lines], is_open=True
        )
        for title, lines in LAYOUT
    ]
    sections.append(
        workspaces.Section(name="3 What it makes", panels=[panels.MediaBrowser(media_keys=[key]) for key in MEDIA])
    )
    results: list[Any] = [panels.ScalarChart(title=key, metric=panels.SummaryMetric(key)) for key in SCALARS]
    results += [panels.MediaBrowser(media_keys=[f"evaluation/{name}"]) for name in EVALUATION]
    sections.append(workspaces.Section(name="4 How well it finds lesions", panels=results, is_open=True))
    return workspaces.Workspace(entity=entity, project=project, name="anomaly3d", sections=sections)


@command("dashboard")
def main(config: DictConfig) -> int:
    """Lay out the workspace of ``entity=... project=...``; ``dry_run=true`` only says what it would hold."""
    from anomaly3d.errors import UserError
    from anomaly3d.progress import say

    try:
        workspace = build(config.entity or "", config.project)
    except ImportError as error:
        raise UserError("the dashboard takes one more package: pip install 'anomaly3d[dashboard]'") from error
    for section in workspace.sections:
        say(f"{section.name}: {len(section.panels)} panels")
    if config.dry_run:
        return 0
    if not config.entity:
        raise UserError("whose workspace? Give entity=NAME, your W&B user or team, or dry_run=true")
    workspace.save()
    say(f"saved: {workspace.url}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
