"""Somebody else's skull stripping: a command line that reads a NIfTI scan and writes its brain mask."""

import shlex
import shutil
import subprocess
from pathlib import Path
from tempfile import TemporaryDirectory

import nibabel as nib

from anomaly3d.errors import PassingTrouble, UserError
from anomaly3d.scans.hounsfield import AIR
from anomaly3d.scans.readers import read_mask
from anomaly3d.scans.volume import Volume


def check_mask_command(command: str) -> None:
    """Refuse a command that cannot work, before any work.

    Raises:
        UserError: a placeholder or the program is missing.
    """
    if "{input}" not in command or "{output}" not in command:
        raise UserError(f"preprocessing.mask_command must hold {{input}} and {{output}}, and is {command!r}")
    if shutil.which(shlex.split(command)[0]) is None:
        raise UserError(f"preprocessing.mask_command: the program {shlex.split(command)[0]} is not installed")


def run_mask_command(command: str, scan: Volume, air: float = AIR) -> Volume:
    """The mask that ``command`` finds on a scan: 0 outside, 1 inside, on any grid of the same world.

    Args:
        air: as for ``read_mask``.

    Raises:
        UnreadableScan: the command failed or wrote no mask, which may pass, or one that lies elsewhere.
    """
    with TemporaryDirectory() as place:
        given, made = Path(place) / "scan.nii.gz", Path(place) / "mask.nii.gz"
        nib.save(nib.nifti1.Nifti1Image(scan.data, scan.affine), given)
        words = [word.replace("{input}", str(given)).replace("{output}", str(made)) for word in shlex.split(command)]
        done = subprocess.run(words, capture_output=True, text=True, errors="replace")
        if done.returncode or not made.exists():
            last = (done.stderr.strip().splitlines() or ["no mask was written"])[-1]
            raise PassingTrouble(f"the mask command failed (exit code {done.returncode}): {last}")
        return read_mask(made, scan, air)
