"""A file that says how an image is made, in place of the image: for cohorts too large to keep on disk."""

import json
from pathlib import Path
from typing import Any

import nibabel as nib

from anomaly3d.errors import UserError
from anomaly3d.system.files import written_whole
from anomaly3d.system.instantiate import build

SUFFIX = ".recipe"
MAKERS = ("anomaly3d.scans.dicom.read_dicom_files", "anomaly3d.cohorts.phantom.files.make_volume")


def is_recipe(path: Path) -> bool:
    """Whether a file is a recipe, by its name."""
    return path.suffix == SUFFIX


def write_recipe(path: Path, function: str, **arguments: Any) -> None:
    """Write the recipe that ``read_recipe`` follows: ``function`` is dotted, its arguments are plain."""
    with written_whole(path) as beside:
        beside.write_text(json.dumps({"_target_": function, **arguments}))


def listed_files(path: Path) -> list[Path]:
    """The files that a recipe reads, as its ``files`` names them; empty for one that makes an image from numbers."""
    return [Path(file) for file in json.loads(path.read_text()).get("files", [])]


def read_recipe(path: Path) -> nib.nifti1.Nifti1Image:
    """The image of a recipe.

    Raises:
        ValueError: not a recipe.
    """
    try:
        image = build(json.loads(path.read_text()), "recipe", nib.nifti1.Nifti1Image, functions=MAKERS)
    except (KeyError, TypeError, AttributeError, UserError) as error:
        raise ValueError(f"{path} is not the recipe of an image: {error}") from error
    made = nib.nifti1.Nifti1Image.from_bytes(image.to_bytes())  # as a file would give it: its affine in float32
    made.extra.update(image.extra)
    return made
