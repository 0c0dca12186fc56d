"""Clusters of a standardised map: voxels beyond the locked threshold that hang together, how large, how rare, where."""

from dataclasses import dataclass

import edt
import nibabel as nib
import numpy as np
import pandas as pd
from scipy import ndimage

from anomaly3d.atlas.regions import describe
from anomaly3d.scans.volume import Volume, resample
from anomaly3d.scoring.anomaly_maps import RESIDUAL, standardised_name
from anomaly3d.scoring.calibration import Calibration, clusters_of
from anomaly3d.scoring.way_back import Found, bare_header

SMALLEST_ML = 0.3
COLUMNS = (
    *("cluster", "name", "side", "region", "ml", "p_value", "mass", "peak", "mean_z", "mean_value", "mean_difference"),
    *("mni_x", "mni_y", "mni_z", "x", "y", "z"),
)


@dataclass(frozen=True)
class Clusters:
    """Those of a scan: ``labels``, int16 on the scan's own grid, and a row for each in ``table``.

    Columns: ``cluster``, its label; ``name``, ``side``, ``region`` of ``atlas.regions``; ``ml`` on the scan's own grid;
    ``p_value``, how often healthy scans have a cluster of this mass; ``mass``; ``peak`` and ``mean_z`` in healthy
    spreads, signed; ``mean_value`` of the scan as it is stored, of CT in HU; ``mean_difference`` to its reconstruction
    in the preprocessor's unit; its centre in MNI mm and in the scan's mm.
    """

    labels: nib.nifti1.Nifti1Image
    table: pd.DataFrame

    @property
    def mask(self) -> nib.nifti1.Nifti1Image:
        """Where any cluster is, uint8."""
        header = self.labels.header.copy()
        header.set_data_dtype(np.uint8)
        return nib.nifti1.Nifti1Image(
            (np.asarray(self.labels.dataobj) > 0).astype(np.uint8), self.labels.affine, header
        )


def own_grid_clusters(
    original: nib.nifti1.Nifti1Image,
    found: Found,
    own: dict[str, nib.nifti1.Nifti1Image],
    calibration: Calibration,
    smallest_ml: float = SMALLEST_ML,
) -> Clusters | None:
    """The clusters of a scan's standardised map beyond the locked voxel threshold; None where none is locked.

    They are found and weighed on the prepared grid, where healthy scans' were, and drawn on the scan's own: voxels
    beyond the threshold there take the label of the nearest cluster.

    Args:
        own: of ``own_grid_maps``.
        smallest_ml: on both grids; smaller ones are left out.
    """
    name = standardised_name(RESIDUAL)
    level = calibration.voxel_thresholds.get(name)
    if level is None or name not in found.maps:
        return None
    prepared = Volume(found.maps[name], found.affine)
    labels, mass = clusters_of(prepared.data, level, prepared.voxel_ml)
    large = np.bincount(labels.ravel(), minlength=len(mass) + 1) * prepared.voxel_ml >= smallest_ml
    large[0] = False
    nearest = ndimage.distance_transform_edt(labels == 0, return_distances=False, return_indices=True)
    spread = Volume(labels[tuple(nearest)].astype(np.float32), found.affine)
    back = resample(spread, original.affine, original.shape[:3], np.linalg.inv(found.mni_to_scan), order=0).astype(int)
    z = np.asarray(own[name].dataobj)
    drawn = np.where((np.abs(z) >= level) & large[back], back, 0)
    voxel_ml = abs(np.linalg.det(original.affine[:3, :3])) / 1000
    ml = np.bincount(drawn.ravel(), minlength=len(mass) + 1) * voxel_ml
    ml[0] = 0
    drawn = np.where(ml[drawn] >= smallest_ml, drawn, 0)
    kept = np.unique(drawn[drawn > 0])  # the heaviest first
    number = np.zeros(len(mass) + 1, np.int16)
    number[kept] = np.arange(1, len(kept) + 1)
    image = nib.nifti1.Nifti1Image(number[drawn], original.affine, bare_header(original, np.int16))
    depth = edt.edt(found.brain > 0, anisotropy=tuple(map(float, prepared.spacing)), parallel=1)
    rare = calibration.cluster_p_values(name, mass)
    physical = {"mean_value": np.asarray(original.dataobj, np.float32)}
    if "residual" in own:
        physical["mean_difference"] = np.asarray(own["residual"].dataobj)
    rows = []
    for label, mass_rank in enumerate(kept, 1):
        where, here = np.asarray(image.dataobj) == label, np.argwhere(labels == mass_rank)
        points = nib.affines.apply_affine(found.affine, here)
        inside = z[where]
        row = {
            "cluster": label,
            **describe(points, depth[tuple(here.T)]),
            "ml": ml[mass_rank],
            "p_value": rare[mass_rank - 1],
            "mass": mass[mass_rank - 1],
            "peak": inside[np.abs(inside).argmax()],
            "mean_z": inside.mean(),
            **{column: values[where].mean() for column, values in physical.items()},
            **dict(zip(("mni_x", "mni_y", "mni_z"), points.mean(0), strict=True)),
            **dict(zip("xyz", nib.affines.apply_affine(original.affine, np.argwhere(where)).mean(0), strict=True)),
        }
        rows.append(row)
    return Clusters(image, pd.DataFrame(rows, columns=COLUMNS).round(3))
