"""Phantoms as files: written out, or kept as recipes and made anew whenever they are read."""

import json
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from threadpoolctl import threadpool_limits

from anomaly3d.cohorts.phantom.faults import FAULTS, transform_fault
from anomaly3d.cohorts.phantom.generate import PERSON, PhantomScan, best_affine, generate
from anomaly3d.cohorts.phantom.subject import draw_subject
from anomaly3d.cohorts.phantom.versions import LATEST, version_of
from anomaly3d.scans.image_files import check_size
from anomaly3d.scans.nifti import save_volume
from anomaly3d.scans.recipe import SUFFIX, write_recipe
from anomaly3d.system.files import written_whole

FAULT = 6  # stream of random numbers, beside those of ``generate``
MAKER = "anomaly3d.cohorts.phantom.files.make_volume"


@dataclass(frozen=True)
class Recipe:
    """All that decides the bytes of one phantom."""

    scan_id: str
    seed: tuple[int, ...]
    lesions: tuple[str, ...] = ()
    site: str = "A"
    postoperative: str | None = None
    fault: str | None = None  # of ``faults.FAULTS``, or "wrong_registration"
    matrix: int = 256
    slices: int = 36
    twin: bool = False
    version: int = LATEST
    modality: str = "ct"

    def kinds(self) -> list[str]:
        """The volumes that belong to this phantom, the scan first."""
        lesion = ["lesion", "mass_effect"] if self.lesions else []
        return [self.modality, *lesion, *(["twin"] if self.twin else [])]

    def settings(self) -> dict[str, Any]:
        """The fields; ``modality`` only where it is not CT, so that what was made before there were others stays."""
        return {k: v for k, v in asdict(self).items() if k != "modality" or v != "ct"}


@threadpool_limits.wrap(1)  # the workers share the cores; and who trains in this process after it wants them back
def make(recipe: Recipe) -> tuple[PhantomScan, dict[str, nib.nifti1.Nifti1Image]]:
    """A phantom and its volumes by kind, each on its scan's grid."""
    size = {name: getattr(recipe, name) for name in ("site", "matrix", "slices", "version", "modality")}
    phantom = generate(recipe.seed, recipe.lesions, postoperative=recipe.postoperative, **size)
    hu, affine = phantom.hu, phantom.affine
    if recipe.fault in FAULTS:
        hu, affine = FAULTS[recipe.fault](hu, affine, np.random.default_rng((*recipe.seed, FAULT)))
    volumes = {recipe.modality: (hu, affine)}
    if recipe.lesions:
        volumes |= {"lesion": (phantom.lesion, phantom.affine), "mass_effect": (phantom.mass_effect, phantom.affine)}
    if recipe.twin:
        volumes["twin"] = (generate(recipe.seed, [], twin=True, **size).hu, phantom.affine)
    return phantom, {kind: nib.nifti1.Nifti1Image(*volume) for kind, volume in volumes.items()}


def write_fault(folder: Path, recipe: Recipe) -> None:
    """The matrix that spoils this phantom's registration, where its recipe says so."""
    if recipe.fault == "wrong_registration":
        with written_whole(folder / "transform_fault" / f"{recipe.scan_id}.txt") as path:
            np.savetxt(path, transform_fault(np.random.default_rng((*recipe.seed, FAULT))))


def write_phantom(folder: Path, recipe: Recipe) -> dict[str, Any]:
    """Write one phantom's files under ``folder`` and return its truth, which is also what ``truth/ID.json`` holds.

    The truth is written last, so a scan that has one is complete; such a scan is not made again.
    """
    truth_path = folder / "truth" / f"{recipe.scan_id}.json"
    if truth_path.exists():
        return json.loads(truth_path.read_text())
    phantom, volumes = make(recipe)
    volumes["intracranial"] = nib.nifti1.Nifti1Image(phantom.intracranial, phantom.affine)
    for kind, image in volumes.items():
        save_volume(folder / kind / f"{recipe.scan_id}.nii.gz", np.asarray(image.dataobj), image.affine)
    write_fault(folder, recipe)
    voxel_ml = float(np.abs(np.linalg.det(phantom.affine))) / 1000
    truth = {
        "age": phantom.subject.age,
        "sex": phantom.subject.sex,
        "lesion_ml": round(float(phantom.lesion.sum()) * voxel_ml, 3),
        "displaced_ml": round(float(phantom.mass_effect.sum()) * voxel_ml, 3),
        "midline_shift_mm": round(phantom.midline_shift(), 2),
        "lesion_hu": [round(lesion.hu, 1) for lesion in phantom.lesions],
        "mni_to_scan": best_affine(phantom.subject, phantom.scan).tolist(),
        "recipe": recipe.settings(),
        "scan": {k: v for k, v in asdict(phantom.scan).items() if k not in ("affine", "pose")},
    }
    with written_whole(truth_path) as path:
        path.write_text(json.dumps(truth, indent=1))
    return truth


def write_recipes(folder: Path, recipe: Recipe) -> dict[str, Any]:
    """Write a file a volume that says how ``make_volume`` makes it; returns ``age``, ``sex`` and its ``recipe``."""
    for kind in recipe.kinds():
        write_recipe(folder / kind / f"{recipe.scan_id}{SUFFIX}", MAKER, kind=kind, phantom=recipe.settings())
    write_fault(folder, recipe)
    subject = draw_subject(np.random.default_rng((*recipe.seed, PERSON)), version_of(recipe.version))
    return {"age": subject.age, "sex": subject.sex, "recipe": recipe.settings()}


@lru_cache(maxsize=1)  # a scan's image, masks and twin are read one after the other
def make_once(recipe: Recipe) -> dict[str, nib.nifti1.Nifti1Image]:
    """The volumes of the last recipe asked for."""
    return make(recipe)[1]


def make_volume(kind: str, phantom: dict[str, Any]) -> nib.nifti1.Nifti1Image:
    """One volume of a phantom, from the ``settings`` of its recipe."""
    plain: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in phantom.items()}
    recipe = Recipe(**plain)
    check_size((recipe.matrix, recipe.matrix, recipe.slices))  # of a recipe that came with somebody's scans
    return make_once(recipe)[kind]
