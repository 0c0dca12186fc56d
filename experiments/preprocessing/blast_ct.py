"""The registration recipe that blast-ct publishes, written from its description, to compare with ours in one run.

Geometry start, rigid then affine, Mattes mutual information with 32 bins, 20 % regular sampling, gradient descent with
line search, shrink and smoothing 4 then 2, on the full image without a mask or a window.
"""

import numpy as np
import SimpleITK as sitk

from anomaly3d.scans.volume import Volume, resample

LPS = np.diag([-1.0, -1.0, 1.0, 1.0])


def to_sitk(volume: Volume) -> sitk.Image:
    """The same voxels as a SimpleITK image; its world is LPS, so a sheared affine is not possible."""
    image = sitk.GetImageFromArray(np.ascontiguousarray(volume.data.T))
    affine = LPS @ volume.affine
    spacing = volume.spacing
    image.SetSpacing(spacing.tolist())
    image.SetDirection((affine[:3, :3] / spacing).ravel().tolist())
    image.SetOrigin(affine[:3, 3].tolist())
    return image


def orthogonal(volume: Volume) -> Volume:
    """The volume itself, or a resampled one where its axes are not at right angles (a straightened gantry tilt)."""
    axes = volume.affine[:3, :3] / volume.spacing
    if np.abs(axes.T @ axes - np.eye(3)).max() < 1e-3:
        return volume
    corners = np.array(np.meshgrid(*[(0, n - 1) for n in volume.data.shape], indexing="ij")).reshape(3, -1)
    world = volume.affine[:3, :3] @ corners + volume.affine[:3, 3:]
    spacing = volume.spacing
    affine = np.diag([*spacing, 1.0])
    affine[:3, 3] = world.min(1)
    shape = tuple(np.ceil(np.ptp(world, axis=1) / spacing).astype(int) + 1)
    return Volume(resample(volume, affine, shape, fill=float(volume.data.min())), affine)


def matrix_of(transform: sitk.Transform) -> np.ndarray:
    """A linear SimpleITK transform (LPS points) as a 4x4 matrix for RAS points."""
    corner = np.array(transform.TransformPoint((0.0, 0.0, 0.0)))
    columns = [np.array(transform.TransformPoint(tuple(unit))) - corner for unit in np.eye(3)]
    matrix = np.eye(4)
    matrix[:3, :3] = np.stack(columns, 1)
    matrix[:3, 3] = corner
    return LPS @ matrix @ LPS


def register_blast_ct(scan: Volume, template: Volume) -> np.ndarray:
    """MNI mm to scan mm, 4x4.

    Raises:
        RuntimeError: SimpleITK gave up, for example because the images do not overlap.
    """
    sitk.ProcessObject.SetGlobalDefaultNumberOfThreads(1)
    fixed = to_sitk(template)
    moving = to_sitk(orthogonal(scan))
    moving = sitk.Cast(moving, sitk.sitkFloat32)
    transform: sitk.Transform = sitk.CenteredTransformInitializer(
        fixed, moving, sitk.Euler3DTransform(), sitk.CenteredTransformInitializerFilter.GEOMETRY
    )
    for kind in (sitk.Euler3DTransform, sitk.AffineTransform):
        if kind is sitk.AffineTransform:
            rigid = sitk.Euler3DTransform(transform)
            affine = sitk.AffineTransform(3)
            affine.SetCenter(rigid.GetCenter())
            affine.SetMatrix(rigid.GetMatrix())
            affine.SetTranslation(rigid.GetTranslation())
            transform = affine
        method = sitk.ImageRegistrationMethod()
        method.SetMetricAsMattesMutualInformation(32)
        method.SetMetricSamplingStrategy(method.REGULAR)
        method.SetMetricSamplingPercentage(0.2)
        method.SetInterpolator(sitk.sitkLinear)
        method.SetOptimizerAsGradientDescentLineSearch(
            learningRate=1.0, numberOfIterations=200, convergenceMinimumValue=1e-6, convergenceWindowSize=10
        )
        method.SetOptimizerScalesFromPhysicalShift()
        method.SetShrinkFactorsPerLevel([4, 2])
        method.SetSmoothingSigmasPerLevel([4.0, 2.0])
        method.SmoothingSigmasAreSpecifiedInPhysicalUnitsOn()
        method.SetInitialTransform(transform, inPlace=True)
        method.SetNumberOfThreads(1)
        method.Execute(fixed, moving)
    return matrix_of(transform)
