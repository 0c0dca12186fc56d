"""The phantom on MR: the same heads, signals by the spin echo's equation, and what it cannot show."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from anomaly3d.atlas.head import CSF, DIPLOE, FAT, MUSCLE
from anomaly3d.atlas.spin_echo import SEQUENCES, Relaxation, SpinEcho
from anomaly3d.cohorts.phantom.cohort import PhantomCohort, plan
from anomaly3d.cohorts.phantom.draws import draw_lesion
from anomaly3d.cohorts.phantom.files import Recipe, make_volume
from anomaly3d.cohorts.phantom.generate import MODALITIES, generate
from anomaly3d.cohorts.phantom.lesions import Infarct, Place, WhiteMatter
from anomaly3d.cohorts.phantom.mr import SITES, sensitivity
from anomaly3d.cohorts.phantom.scanner import draw_scan
from anomaly3d.cohorts.phantom.versions import LATEST, VERSIONS
from anomaly3d.errors import UserError

SIZE = dict(matrix=72, slices=20)


@pytest.fixture(scope="module")
def heads():
    return {name: generate((5, 0), ["tumour"], **SIZE, modality=name) for name in ("t1w", "t2w", "flair")}


def test_a_spin_echo_by_hand():
    water, tissue = Relaxation(1.0, 1000.0, 100.0), Relaxation(0.5, 500.0, 50.0)
    echo = SpinEcho(500.0, 50.0)
    by_hand = [d * (1 - np.exp(-500 / t1)) * np.exp(-50 / t2) for d, t1, t2 in ((1, 1000, 100), (0.5, 500, 50))]
    assert echo.signal(tissue) / echo.signal(water) == pytest.approx(by_hand[1] / by_hand[0])
    t1, t2 = SEQUENCES["t1w"].tissues, SEQUENCES["t2w"].tissues
    assert t1.csf < t1.grey < t1.white == 1
    assert t2.csf > t2.grey > t2.white == 1
    assert t1.pale < 0 < t2.pale  # leukoaraiosis


def test_an_inversion_leaves_out_what_recovers_as_long_as_it_lasts():
    null = Relaxation(1.0, 1000.0, 100.0)
    echo = SpinEcho(1e9, 50.0, ti=1000 * np.log(2))
    assert echo.signal(null) == pytest.approx(0, abs=1e-9)
    slow = Relaxation(1.0, 2000.0, 100.0)  # still below zero: the magnitude is shown
    by_hand = abs(1 - 2 * 2**-0.5) * np.exp(-0.5)
    other = Relaxation(0.5, 500.0, 50.0)
    assert echo.signal(slow) / echo.signal(other) == pytest.approx(by_hand / (0.5 * (1 - 2 * 0.25) * np.exp(-1)))
    flair = SEQUENCES["flair"].tissues
    assert flair.csf < 0.1
    assert flair.grey > flair.white == 1
    assert flair.pale > 0.5  # leukoaraiosis and patches stand out
    dead = MODALITIES["flair"].value_of(Infarct((10, 0, 0), None, 5.0, 24.0))
    assert dead > flair.grey


def test_bone_and_air_are_dark_and_fat_is_bright():
    hu = torch.tensor([-1000.0, 1350.0, FAT, MUSCLE, DIPLOE])
    air, bone, fat, muscle, marrow = SEQUENCES["t1w"].outside(hu).tolist()
    assert air == bone == 0
    assert fat > 1.5
    assert 0.3 < muscle < 1
    assert muscle < marrow < fat


@pytest.mark.parametrize("bright", ["t2w", "flair"])
def test_all_weightings_show_the_same_head_and_lesion(heads, bright):
    one, two = heads["t1w"], heads[bright]
    np.testing.assert_array_equal(one.lesion, two.lesion)
    np.testing.assert_array_equal(one.intracranial, two.intracranial)
    np.testing.assert_array_equal(one.affine, two.affine)
    tumour = one.lesion > 0
    rest = (one.intracranial > 0) & ~tumour
    assert one.hu[tumour].mean() < np.median(one.hu[rest])
    assert two.hu[tumour].mean() > np.median(two.hu[rest])
    assert one.hu.min() >= 0


def test_sites_stand_for_themselves():
    scan = draw_scan(np.random.default_rng(0), np.ones(3), SITES["A"], 64, 20)
    even = sensitivity(replace(scan, cupping=0.0, lean=(0.0, 0.0)))
    np.testing.assert_allclose(even, 1)
    leaning = sensitivity(replace(scan, cupping=0.0, lean=(0.2, 0.0)))
    x = np.linalg.inv(scan.pose) @ scan.affine @ [10, 30, 10, 1]
    assert leaning[10, 30, 10] == pytest.approx(np.exp(0.2 * x[0] / 75), rel=1e-4)
    dome = sensitivity(replace(scan, cupping=0.3, lean=(0.0, 0.0)))
    middle = np.rint(np.linalg.inv(scan.affine) @ scan.pose @ [0, -18, 8, 1]).astype(int)[:3]
    assert dome[tuple(middle)] == pytest.approx(np.exp(0.18), rel=0.01)
    assert dome.max() < np.exp(0.181)


def test_noise_is_rician():
    scan = replace(draw_scan(np.random.default_rng(0), np.ones(3), SITES["A"], 64, 20), noise=0.1, offset=0.0)
    nothing = MODALITIES["t1w"].acquire(np.zeros(scan.shape, np.float32), scan, np.random.default_rng(1))
    assert nothing.mean() == pytest.approx(400 * 0.1 * np.sqrt(np.pi / 2), rel=0.01)  # Rayleigh's mean


def test_an_infarct_turns_from_dead_tissue_to_fluid():
    t2 = MODALITIES["t2w"]
    days, months = (t2.value_of(Infarct((10, 0, 0), None, 5.0, hu)) for hu in (24.0, 9.0))
    assert t2.tissues.grey < days < months == pytest.approx(t2.tissues.csf)


def test_patches_of_white_matter_keep_grey_matter_and_fluid():
    patches = draw_lesion("white_matter", np.random.default_rng(2), VERSIONS[LATEST])
    assert isinstance(patches, WhiteMatter)
    assert 6 <= len(patches.centres) == len(patches.radii) <= 30
    assert CSF < patches.hu < 28
    one = WhiteMatter(((20.0, -20.0, 30.0),), (4.0,), 20.0)
    points = torch.tensor([[20.0, -20.0, 30.0], [20.0, -20.0, 30.0], [27.0, -20.0, 30.0]])
    place = Place(points, torch.full((3,), 30.0), torch.tensor([0.0, 1.0, 0.0]), torch.full((3,), 5.0))
    assert one.fraction(place).tolist() == [1, 0, 0]
    assert not one.push(points, place.depth).any()


def test_what_mr_cannot_show_is_named():
    for part in ("craniectomy", "motion"):
        with pytest.raises(UserError, match=f"the phantom of modality t1w has no '{part}': set it to 0"):
            PhantomCohort("x", {part: 1}, modality="t1w")
    with pytest.raises(UserError, match="'c_test_normal' is of a site that version 4 of the phantom has not on t1w"):
        PhantomCohort("x", {"c_test_normal": 1}, modality="t1w")
    with pytest.raises(UserError, match=r"dataset\.modality must be one of ct, t1w, t2w, flair, not 'pet'"):
        PhantomCohort("x", {"train": 1}, modality="pet")


def test_findings_of_mr_take_turns():
    scans = plan({"test_lesion": 6}, 0, modality="t2w")
    assert {kind for _, recipe in scans for kind in recipe.lesions} == {"infarct", "tumour", "white_matter"}
    assert scans[0][1].kinds()[0] == "t2w"


def test_a_recipe_of_ct_is_what_it_was():
    """So cohorts that were made before there was MR keep their folders."""
    recipe = Recipe("a", (0, 1, 2, 3))
    assert "modality" not in recipe.settings()
    again = replace(recipe, modality="t1w", matrix=48, slices=16)
    assert again.settings()["modality"] == "t1w"
    made = np.asarray(make_volume("t1w", again.settings()).dataobj)
    np.testing.assert_array_equal(made, generate((0, 1, 2, 3), [], "A", 48, 16, modality="t1w").hu)
