"""A folder of DICOM slices as one image, by dcm2niix: it straightens gantry tilt and evens out slice gaps."""

import re
import subprocess
from pathlib import Path
from tempfile import TemporaryDirectory

import nibabel as nib
import numpy as np

from anomaly3d.errors import UnreadableScan

CORRECTED = re.compile(r"(_Tilt|_Eq)(_\d+)?")  # what dcm2niix adds to the names of straightened and evened files


def read_dicom(folder: Path) -> nib.nifti1.Nifti1Image:
    """The series with the most slices in a folder, in HU, straightened and with even slices.

    Raises:
        UnreadableScan: no series, or a slice that is damaged.
    """
    import dcm2niix

    with TemporaryDirectory() as place:
        options = ["-b", "n", "-z", "n", "-d", "0", "-f", "%s_%j", "-o", place]
        done = subprocess.run([dcm2niix.bin, *options, str(folder)], capture_output=True, text=True)
        files = list(folder.glob("*.dcm"))
        found = re.search(r"Found (\d+) DICOM", done.stdout)
        if found and int(found[1]) < len(files):
            raise UnreadableScan(f"{len(files) - int(found[1])} of {len(files)} DICOM slices are damaged")
        if "missing images?" in done.stdout:
            raise UnreadableScan("DICOM slices are missing within the series")
        made = sorted(Path(place).glob("*.nii"))
        if not made:
            raise UnreadableScan("a folder without a DICOM series")
        slices = {path: nib.nifti1.Nifti1Image.from_filename(path).shape[2] for path in made}
        originals = [path for path in made if not CORRECTED.search(path.stem)]
        series = max(originals or made, key=lambda path: slices[path]).stem
        best = max((path for path in made if path.stem.startswith(series)), key=lambda path: len(path.stem))
        image = nib.nifti1.Nifti1Image.from_filename(best)
        return nib.nifti1.Nifti1Image(np.asarray(image.dataobj, np.float32), image.affine)
