"""What changed between versions of the phantom. A version is frozen before any detector is scored on it.

Version 3 is what all results until 2026-11-26 were measured on. Version 4 is fitted to what ``experiments/realism``
measures on real heads, where version 3 does not match them: its ranges are chosen such that these lie within two
standard deviations of the phantoms; the literature gives the shape of each effect, not its size on a given scanner.
"""

from dataclasses import dataclass

from anomaly3d.errors import UserError

Range = tuple[float, float]


@dataclass(frozen=True)
class Site:
    """How a hospital scans; ranges are drawn from evenly."""

    thickness: Range  # mm
    noise: Range  # HU, standard deviation after reconstruction
    kernel: Range  # pixels at 256 x 256, sigma of the reconstruction kernel
    tilted: float  # share of scans with a tilted gantry
    offset: Range  # HU, mean and standard deviation of the calibration's error
    cupping: Range  # HU that beam hardening adds near the skull
    bar: Range  # HU of the bar between the petrous bones
    overlap: Range = (0.0, 0.0)  # slices, sigma of their profile beyond one slice's thickness
    lean: float = 0.0  # standard deviation of how much more of the cupping one side, front or back has
    glare: Range = (0.0, 0.0)  # share of each point's HU that is spread over ``GLARE`` mm


@dataclass(frozen=True)
class Version:
    """The parts of a head that differ; the rest is the same in all versions.

    Args:
        tissue: HU, standard deviation of a person's brain; ``patchy`` of its slow changes from place to place.
        cortex: HU, mean and standard deviation, by which grey matter is further above white.
        fossa: HU, likewise, by which the posterior fossa is brighter (beam hardening between the petrous bones).
        sulci: standard deviation of the logarithm of their width at one age.
        folded: sulci and cortex are crisp folds, not the average brain's blur.
        sella: gland and sinuses where the average brain has a hole.
        thin: share of subdurals that are thin.
        film: extra-axial blood tapers into a film of half blood all around: a fault of version 3.
    """

    sites: dict[str, Site]
    tissue: float = 1.5
    patchy: float = 1.2
    cortex: Range = (0.0, 0.0)
    fossa: Range = (0.0, 0.0)
    sulci: float = 0.0
    folded: bool = False
    sella: bool = False
    thin: float = 0.0
    film: bool = True


LATEST = 4
GLARE = 5.0  # mm, sigma of scattered and off-focal radiation's spread in plane
VERSIONS = {
    3: Version(
        {
            "A": Site((2.5, 5.0), (2.5, 4.5), (0.6, 0.9), 0.3, (0.0, 1.5), (2, 12), (4, 12)),
            "B": Site((1.0, 7.0), (4.0, 7.5), (0.4, 0.6), 0.6, (4.0, 2.0), (5, 18), (8, 20)),
        }
    ),
    4: Version(
        {
            "A": Site(
                (2.5, 5.0), (2.5, 9.0), (0.6, 0.9), 0.3, (0.0, 1.5), (4, 24), (4, 12), (0.0, 0.7), 0.6, (0.02, 0.12)
            ),
            "B": Site(
                (1.0, 7.0), (4.0, 9.0), (0.4, 0.6), 0.6, (4.0, 2.0), (8, 30), (8, 20), (0.0, 0.7), 0.6, (0.04, 0.14)
            ),
            "C": Site(
                (2.0, 3.0), (5.0, 9.0), (0.5, 0.8), 0.0, (-3.0, 2.0), (2, 14), (2, 10), (0.5, 0.9), 0.2, (0.0, 0.08)
            ),
        },
        tissue=2.6,
        patchy=1.6,
        cortex=(5.0, 3.0),
        fossa=(1.5, 2.0),
        sulci=0.35,
        folded=True,
        sella=True,
        thin=0.25,
        film=False,
    ),
}


def version_of(number: int) -> Version:
    """One of ``VERSIONS``.

    Raises:
        UserError: there is no such version.
    """
    if number not in VERSIONS:
        raise UserError(f"dataset.version must be one of {', '.join(map(str, VERSIONS))}, not {number!r}")
    return VERSIONS[number]
