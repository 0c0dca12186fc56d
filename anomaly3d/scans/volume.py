"""Voxels with their place in the world, and moving them from one grid to another."""

from dataclasses import dataclass

import numpy as np
from scipy import ndimage


@dataclass(frozen=True)
class Volume:
    """Voxels ``(X, Y, Z)`` float32 with the affine from voxel to world (RAS mm).

    ``read_as`` says, where there was a choice, what of its source this is.
    """

    data: np.ndarray
    affine: np.ndarray
    read_as: str = ""

    @property
    def spacing(self) -> np.ndarray:
        """Voxel size in mm along each axis."""
        return np.linalg.norm(self.affine[:3, :3], axis=0)

    @property
    def voxel_ml(self) -> float:
        """Volume of a voxel."""
        return float(abs(np.linalg.det(self.affine[:3, :3])) / 1000)

    def ml(self) -> float:
        """Volume of a mask of 0 and 1."""
        return float(self.data.sum(dtype=np.float64)) * self.voxel_ml


def block_means(volume: Volume, factor: np.ndarray) -> Volume:
    """Means over blocks of ``factor`` voxels along each axis; what does not fill a block is left out."""
    if (factor == 1).all():
        return volume
    keep = tuple(slice(0, n - n % f) for n, f in zip(volume.data.shape, factor, strict=True))
    nx, ny, nz = (n // f for n, f in zip(volume.data.shape, factor, strict=True))
    blocks = volume.data[keep].reshape(nx, factor[0], ny, factor[1], nz, factor[2])
    affine = volume.affine.copy()
    affine[:3, 3] += affine[:3, :3] @ ((factor - 1) / 2)
    affine[:3, :3] = affine[:3, :3] * factor
    return Volume(blocks.mean((1, 3, 5), dtype=np.float32), affine, volume.read_as)


def no_finer(volume: Volume, spacing: float) -> Volume:
    """The volume with voxels finer than ``spacing`` mm averaged in blocks of at most that, so that sampling it there
    does not pick single ones and keep their noise."""
    return block_means(volume, np.maximum(np.floor(spacing / volume.spacing + 1e-3).astype(int), 1))


def resample(
    volume: Volume,
    affine: np.ndarray,
    shape: tuple[int, ...],
    to_volume: np.ndarray | None = None,
    fill: float = 0,
    order: int = 1,
) -> np.ndarray:
    """``volume`` on another grid; its outermost voxels reach half their width beyond their centres.

    Args:
        affine, shape: the new grid, voxel to its world in mm.
        to_volume: affine from the new grid's world to the volume's world; identity if None.
        fill: value outside the volume.
        order: 1 interpolates linearly, 0 takes the nearest voxel.
    """
    import SimpleITK as sitk  # here, because commands that resample nothing start without it

    chain = np.linalg.inv(volume.affine) @ (np.eye(4) if to_volume is None else to_volume) @ affine
    image = sitk.GetImageFromArray(volume.data.astype(np.float32, copy=False))  # its axes are ours from last to first
    sampling = sitk.ResampleImageFilter()
    sampling.SetNumberOfThreads(1)  # scans are what is done side by side
    sampling.SetSize([int(n) for n in shape[::-1]])
    sampling.SetTransform(sitk.AffineTransform(chain[2::-1, 2::-1].ravel().tolist(), chain[2::-1, 3].tolist()))
    sampling.SetInterpolator(sitk.sitkNearestNeighbor if order == 0 else sitk.sitkLinear)
    sampling.SetDefaultPixelValue(fill)
    return sitk.GetArrayFromImage(sampling.Execute(image))


def three_planes(
    volume: np.ndarray, spacing: np.ndarray, centre: tuple[int, int, int] | None = None
) -> list[np.ndarray]:
    """Axial, coronal and sagittal slices of ``(X, Y, Z)`` on a RAS grid, upright, patient's right on the left, in the
    head's true proportions.

    Args:
        spacing: mm of a voxel along each axis; pixels are squares of the smallest.
        centre: voxel that the slices go through; None: the middle.
    """
    x, y, z = centre or tuple(n // 2 for n in volume.shape[:3])
    cuts = ((volume[::-1, :, z], (0, 1)), (volume[::-1, y], (0, 2)), (volume[x], (1, 2)))
    return [np.flipud(in_proportion(cut, spacing[list(axes)] / spacing.min()).T) for cut, axes in cuts]


def in_proportion(cut: np.ndarray, factors: np.ndarray) -> np.ndarray:
    """A slice with ``factors`` times as many pixels along its axes, by linear interpolation."""
    if np.allclose(factors, 1, atol=0.01):
        return cut
    drawn = ndimage.zoom(cut.astype(np.float32), factors, order=1, mode="nearest", grid_mode=True)
    return drawn > 0.5 if cut.dtype == bool else drawn


def side_by_side(volume: np.ndarray, spacing: np.ndarray, centre: tuple[int, int, int] | None = None) -> np.ndarray:
    """``three_planes`` of ``(X, Y, Z)`` in a row, aligned at the bottom."""
    planes = three_planes(volume, spacing, centre)
    height = max(len(plane) for plane in planes)
    padded = [np.pad(p, ((height - len(p), 0), (0, 0)), constant_values=volume.min()) for p in planes]
    return np.concatenate(padded, axis=1)


OUTLINE = (0.84, 0.37, 0.0)  # vermilion of Okabe and Ito
GLYPHS = {"R": ("###.", "#..#", "###.", "#.#.", "#..#"), "L": ("#...", "#...", "#...", "#...", "####")}


def mark_sides(picture: np.ndarray, value: float | np.ndarray) -> np.ndarray:
    """A picture ``(rows, columns, ...)`` whose first plane has the patient's right on the left, with R and L in its
    upper corners.

    Args:
        picture: one axial plane, or several below and beside one another whose left edge is the patient's right.
        value: of the letters' pixels.
    """
    marked = picture.copy()
    for letter, column in (("R", 1), ("L", picture.shape[1] - 5)):
        for row, line in enumerate(GLYPHS[letter]):
            for k, pixel in enumerate(line):
                if pixel == "#":
                    marked[1 + row, column + k] = value
    return marked


def outlined(image: np.ndarray, mask: np.ndarray, spacing: np.ndarray) -> np.ndarray:
    """Three planes through a mask's centre in a row, the mask outlined: ``(rows, columns, 3)`` uint8.

    Args:
        image: ``(X, Y, Z)`` in [0, 1] on a RAS grid; ``mask``: the same shape, true inside.
    """
    x, y, z = np.argwhere(mask).mean(0).astype(int).tolist() if mask.any() else [n // 2 for n in image.shape]
    planes = zip(three_planes(image, spacing, (x, y, z)), three_planes(mask, spacing, (x, y, z)), strict=True)
    tiles: list[np.ndarray] = []
    for plane, inside in planes:
        colour = np.repeat(plane.clip(0, 1)[..., None], 3, axis=2)
        colour[ndimage.binary_dilation(inside) & ~inside] = OUTLINE
        tiles.append(mark_sides(colour, 1.0) if len(tiles) < 2 else colour)  # the third shows front and back
    height = max(map(len, tiles))
    row = np.concatenate([np.pad(tile, ((height - len(tile), 0), (0, 0), (0, 0))) for tile in tiles], 1)
    return np.rint(row * 255).astype(np.uint8)
