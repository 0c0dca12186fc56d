"""A pose refined by mutual information, for images whose values do not correspond to the template's."""

import numpy as np
import SimpleITK as sitk

from anomaly3d.preprocessing.registration import CENTRE
from anomaly3d.scans.volume import Volume, block_means

SPACING = 2.0  # mm of the scan's voxels
SMOOTHING = 2.0  # mm
SHRINK = 3  # of the template's grid, whose voxels are compared: all, since a share of them would be drawn by chance
BINS = 32


def as_itk(volume: Volume) -> sitk.Image:
    """A volume whose axes are perpendicular, with its world in RAS mm."""
    image = sitk.GetImageFromArray(np.ascontiguousarray(volume.data.T, np.float32))
    image.SetSpacing(volume.spacing.tolist())
    image.SetOrigin(volume.affine[:3, 3].tolist())
    image.SetDirection((volume.affine[:3, :3] / volume.spacing).ravel().tolist())
    return image


def refine(scan: Volume, template: Volume, inside: np.ndarray, mni_to_scan: np.ndarray) -> np.ndarray:
    """The affine near ``mni_to_scan`` with the most mutual information (Mattes et al. 2003) between scan and template;
    ``mni_to_scan`` itself where it lies so far off that there is nothing to compare.

    Args:
        inside: ``(X, Y, Z)`` bool, where on the template's grid the two are compared.
    """
    small = block_means(scan, np.maximum(np.rint(SPACING / scan.spacing).astype(int), 1))
    pose = sitk.AffineTransform(3)  # x -> matrix (x - centre) + centre + translation
    pose.SetCenter(CENTRE.tolist())
    pose.SetMatrix(mni_to_scan[:3, :3].ravel().tolist())
    pose.SetTranslation((mni_to_scan[:3] @ [*CENTRE, 1.0] - CENTRE).tolist())
    method = sitk.ImageRegistrationMethod()
    method.SetNumberOfThreads(1)  # scans are what is done side by side; and sums do not depend on their number
    method.SetMetricAsMattesMutualInformation(BINS)
    method.SetMetricFixedMask(sitk.Cast(as_itk(Volume(inside.astype(np.float32), template.affine)), sitk.sitkUInt8))
    method.SetMetricSamplingStrategy(method.NONE)
    method.SetInterpolator(sitk.sitkLinear)
    method.SetOptimizerAsRegularStepGradientDescent(1.0, 0.01, 100, relaxationFactor=0.7)
    method.SetOptimizerScalesFromPhysicalShift()
    method.SetShrinkFactorsPerLevel([SHRINK])
    method.SetSmoothingSigmasPerLevel([SMOOTHING])
    method.SetInitialTransform(pose, inPlace=True)
    try:
        method.Execute(as_itk(template), as_itk(small))
    except RuntimeError:  # ITK: all samples lie outside of the scan
        return mni_to_scan
    found = np.eye(4)
    found[:3, :3] = np.reshape(pose.GetMatrix(), (3, 3))
    found[:3, 3] = np.array(pose.GetTranslation()) + CENTRE - found[:3, :3] @ CENTRE
    return found
