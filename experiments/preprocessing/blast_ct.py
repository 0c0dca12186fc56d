"""The registration recipe that blast-ct publishes, written from its description, to compare with ours in one run.

Geometry start, rigid then affine, Mattes mutual information with 32 bins, 20 % regular sampling, gradient descent with
line search, shrink and smoothing 4 then 2, on the full image without a mask or a window.
"""

import numpy as np
import SimpleITK as sitk

from anomaly3d.preprocessing.registration import matrix_of, orthogonal, to_sitk
from anomaly3d.preprocessing.volume import Volume


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
