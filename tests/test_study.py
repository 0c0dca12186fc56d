"""A study in one file, ``study=FILE``, and the same study in another place."""

import pandas as pd
import yaml

from anomaly3d import train
from tests.conftest import TINY, refused


def test_a_study_is_one_file(tiny_run, places, tmp_path, capsys):
    """The same settings as typed, its paths relative to the file; what is typed wins; each command takes its own."""
    raw = next((tiny_run.parents[1] / "data" / "raw").glob("phantom-*/manifest.csv"))
    (tmp_path / "scans").symlink_to(raw.parent)
    text = "\n".join(
        [
            "run: filed",
            "data_dir: data (mine)",
            "runs_dir: runs",
            "dataset: manifest",
            "dataset.manifest: scans/manifest.csv",
            "preprocessing: {resolution: 32, working_spacing: 3, registration_enough: 0}",
            "model: {channels: 4, latent: 16}",
            "phase: {steps: 4, steps_per_epoch: 2, batch: 2}",
            "phases.encoder.steps: 2",
            "logger: none",
            "images: false",
        ]
    )
    study = tmp_path / "my study.yaml"
    study.write_text(text)
    assert train.main([f"study={study}", "++phase.batch=3"]) == 0
    for phase, steps in (("gan", 4), ("encoder", 2), ("finetune", 4)):
        config = yaml.safe_load((tmp_path / "runs/filed/fanogan" / phase / "config.yaml").read_text())
        assert config["phase"]["steps"] == steps, phase
        assert config["phase"]["batch"] == 3
    assert (tmp_path / "data (mine)").is_dir()
    again = [f"study={study}", "run=typed", f"parent={tmp_path}/runs/filed/fanogan/gan", "+phase=encoder"]
    assert train.main([*again, "++phase.steps=6"]) == 0
    config = yaml.safe_load((tmp_path / "runs/typed/fanogan/encoder/config.yaml").read_text())
    assert config["phase"]["steps"] == 6, "typed for all phases, over the study's line for this one"
    assert train.main([f"study={study}", "detector=pca"]) == 0, "it has no phase encoder, and the study is of both"
    assert train.main([f"study={study}", "detector=pca", "++phases.encoder.steps=2"]) == 2
    refused(capsys, "phases.encoder.steps", "pca")
    study.write_text(text + "\nphases.fit.steps: 2")
    assert train.main([f"study={study}", "+phase=gan", "++phase.batch=3"]) == 0, "phases.fit is of other detectors"
    study.write_text(text + "\nphases.gam.steps: 2")
    assert train.main([f"study={study}"]) == 2
    refused(capsys, "phases.gam.steps", "gan, encoder, finetune")
    study.write_text(text + "\nphases.finetune.stps: 2")
    assert train.main([f"study={study}"]) == 2
    refused(capsys, "unknown key phase.stps: did you mean phase.steps?")
    study.write_text(text + "\ndetectr: pca")
    assert train.main([f"study={study}"]) == 2
    refused(capsys, "unknown key detectr: did you mean detector?")
    assert train.main([f"study={tmp_path}/none.yaml"]) == 2
    refused(capsys, "none.yaml", "No such file")


def test_a_study_that_moved_is_the_same_study(tiny_run, places, tmp_path):
    """Another path of the manifest, the same scans: the next phase begins, and a finished one stays finished."""
    raw = next((tiny_run.parents[1] / "data" / "raw").glob("phantom-*/manifest.csv"))
    arguments = ["run=moving", f"data_dir={tmp_path}/data", f"runs_dir={tmp_path}/runs", "dataset=manifest"]
    arguments += [o for o in TINY if not o.startswith("dataset.")] + ["logger=none"]
    (tmp_path / "a").symlink_to(raw.parent)
    assert train.main(["+phase=gan", *arguments, f"dataset.manifest={tmp_path}/a/manifest.csv"]) == 0
    (tmp_path / "b").mkdir()
    table = pd.read_csv(raw, dtype=str, keep_default_na=False)
    for column in ("image", "lesion_mask", "mass_effect_mask"):
        table[column] = [str(raw.parent / p) if p else "" for p in table[column]]
    table.to_csv(tmp_path / "b" / "manifest.csv", index=False)
    for phase in ("gan", "encoder"):
        assert train.main([f"+phase={phase}", *arguments, f"dataset.manifest={tmp_path}/b/manifest.csv"]) == 0
