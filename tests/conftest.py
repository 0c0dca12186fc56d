"""Shared by all tests: one thread, W&B inside the test's own folder, and one tiny trained run."""

import gc
import os
import shutil
from pathlib import Path
from typing import Any

import lightning
import monai
import pytest
import torch
import yaml
from hypothesis import HealthCheck, Phase, settings

from anomaly3d.cli import CONF
from anomaly3d.cohorts.phantom.cohort import PARTS
from anomaly3d.preprocessing.ncct import NCCT
from anomaly3d.system.instantiate import build

torch.set_num_threads(1)

# what large libraries made while they were imported stays, and need not be searched for garbage after every command
assert lightning
assert monai
gc.collect()
gc.freeze()

QUICK = settings(  # of properties: the same few examples each time, and no minutes of shrinking where one fails
    max_examples=40,
    phases=[Phase.explicit, Phase.generate],
    derandomize=True,
    deadline=None,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
SCANS = Path(os.environ.get("ANOMALY3D_SCANS", Path(__file__).parents[2] / "shared" / "scans"))


def counts(**wanted: int) -> str:
    """An override for a phantom cohort of these parts only: Hydra keeps what an override does not name."""
    every = {name: wanted.get(name, 0) for name in PARTS}
    return "dataset.counts={" + ", ".join(f"{name}: {count}" for name, count in every.items()) + "}"


TINY = [  # overrides that make a whole run a matter of seconds
    "preprocessing.resolution=32",
    "preprocessing.working_spacing=3",
    "preprocessing.registration_enough=0",  # one start: these coarse heads score lower, and time counts
    "dataset.matrix=64",
    "dataset.slices=24",
    counts(train=4, validation=2, calibration=1, test_normal=2, test_lesion=3),
    "model.channels=4",
    "model.latent=16",
    "++phase.batch=2",
    "++phase.steps=4",
    "++phase.steps_per_epoch=2",
    "workers=1",
]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests of whole commands are marked: ``-m "not whole"`` runs all others, in a third of the time."""
    for item in items:
        if {"tiny_run", "places"} & set(getattr(item, "fixturenames", ())):
            item.add_marker("whole")


@pytest.fixture(autouse=True, scope="session")
def private_wandb(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Nothing of W&B outside of the tests' own folder, and no network."""
    folder = tmp_path_factory.mktemp("wandb")
    for name in ("WANDB_DIR", "WANDB_CACHE_DIR", "WANDB_DATA_DIR", "WANDB_CONFIG_DIR"):
        os.environ[name] = str(folder)
    os.environ["WANDB_MODE"] = "offline"
    os.environ["OMP_NUM_THREADS"] = "1"


@pytest.fixture(scope="session")
def scans() -> Path:
    """The folder of real scans."""
    if not SCANS.is_dir():
        pytest.skip(f"real scans are not in {SCANS}; set ANOMALY3D_SCANS")
    return SCANS


def preprocessing(**changes: object) -> dict[str, object]:
    """``conf/preprocessing/ncct.yaml`` as plain values, with changes."""
    return {**yaml.safe_load((Path(CONF) / "preprocessing" / "ncct.yaml").read_text()), **changes}


def detector_config(name: str) -> dict[str, Any]:
    """``conf/detector/NAME.yaml`` as plain values."""
    return yaml.safe_load((Path(CONF) / "detector" / f"{name}.yaml").read_text())


@pytest.fixture(scope="session")
def ncct(tmp_path_factory: pytest.TempPathFactory) -> NCCT:
    """The preprocessor of ``conf/preprocessing/ncct.yaml``, ready to be used."""
    made = build(preprocessing(), "preprocessing config")
    made.setup(tmp_path_factory.mktemp("template"))
    return made


@pytest.fixture(scope="session")
def places(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Overrides that keep data and runs of the session in one folder."""
    folder = tmp_path_factory.mktemp("session")
    return [f"data_dir={folder / 'data'}", f"runs_dir={folder / 'runs'}"]


@pytest.fixture(scope="session")
def tiny_run(places: list[str]) -> Path:
    """``runs/tiny`` with three trained phases and an evaluation, made by the commands themselves."""
    from anomaly3d import evaluate, train

    assert train.main(["run=tiny", *places, *TINY]) == 0  # no phase: all of them
    assert evaluate.main(["run=tiny", *places]) == 0
    return Path(places[1].split("=")[1]) / "tiny"


def refused(capsys, *words):
    """The last error is one line with these words and there is no traceback."""
    error = capsys.readouterr().err
    lines = [line for line in error.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1, error
    assert "Traceback" not in error
    for word in words:
        assert word in lines[0]


@pytest.fixture
def bad_and_good(tiny_run, tmp_path):
    """A folder with one phantom, one text file that calls itself NIfTI and one cut file."""
    folder = tmp_path / "scans"
    folder.mkdir()
    phantom = sorted(tiny_run.parents[1].glob("data/raw/*/ct/subdural*-0001.nii.gz"))[0]
    shutil.copy(phantom, folder / "good.nii.gz")
    (folder / "text.nii").write_text("hello")
    (folder / "cut.nii.gz").write_bytes(phantom.read_bytes()[:5000])
    return folder
