from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch

from anomaly3d.cohorts.phantom.cohort import PARTS, PhantomCohort, plan
from anomaly3d.cohorts.phantom.draws import draw_infarct, draw_subdural
from anomaly3d.cohorts.phantom.files import Recipe, make, write_phantom
from anomaly3d.cohorts.phantom.folds import fold
from anomaly3d.cohorts.phantom.generate import SEPTUM, best_affine, generate, total_push
from anomaly3d.cohorts.phantom.lesions import TYPES, ExtraAxial, Place
from anomaly3d.cohorts.phantom.postoperative import KINDS
from anomaly3d.cohorts.phantom.scanner import acquire, draw_scan
from anomaly3d.cohorts.phantom.subject import draw_subject
from anomaly3d.cohorts.phantom.versions import LATEST, VERSIONS, version_of
from anomaly3d.errors import UnreadableScan, UserError
from anomaly3d.preprocessing.cohort import Study
from anomaly3d.scans.manifest import read_manifest
from anomaly3d.scans.readers import read_image
from anomaly3d.system.instantiate import build
from tests.conftest import preprocessing

SIZE = dict(matrix=72, slices=20)


@pytest.fixture(scope="module")
def healthy():
    return generate((5, 0), [], **SIZE)


@pytest.fixture(scope="module")
def people():
    return [draw_subject(np.random.default_rng(i), VERSIONS[LATEST]) for i in range(80)]


@pytest.fixture(scope="module")
def coarse():
    """A preprocessor that takes a tenth of the time."""
    return build(preprocessing(resolution=32, working_spacing=3, registration_enough=0), "preprocessing config")


def ml(phantom, mask):
    return float(mask.sum() * abs(np.linalg.det(phantom.affine)) / 1000)


def test_a_healthy_head_has_the_densities_of_one(healthy):
    hu, inside = healthy.hu, healthy.intracranial > 0
    assert hu.shape[:2] == (72, 72)
    assert hu.dtype == np.int16
    assert np.median(hu[0]) < -900  # air at the edge of the view
    assert 25 < np.median(hu[inside]) < 42  # brain
    assert (hu > 800).mean() > 0.01  # bone
    assert healthy.lesion.sum() == healthy.mass_effect.sum() == 0
    assert 1100 < ml(healthy, inside) < 2200


def test_the_brain_is_not_mirror_symmetric(healthy):
    warp = healthy.subject.brain_warp.numpy()
    mirrored = warp[:, ::-1] * np.array([-1, 1, 1]).reshape(3, 1, 1, 1)
    assert np.abs(warp - mirrored).mean() > 1.0  # mm


def test_age_widens_ventricles_and_darkens_white_matter(people):
    old, young = ([s.look for s in people if s.age > 70], [s.look for s in people if s.age < 40])
    for trait in ("ventricle", "sulci", "leukoaraiosis"):
        assert np.mean([getattr(s, trait) for s in old]) > np.mean([getattr(s, trait) for s in young])


def test_healthy_heads_have_bright_things_in_them(people):
    pineal = [any(abs(s.centre[0]) < 5 and abs(s.centre[1] + 27) < 5 for s in p.anatomy.spots) for p in people]
    plexus = [sum(abs(abs(s.centre[0]) - 23) < 5 for s in p.anatomy.spots) > 0 for p in people]
    assert 0.4 < np.mean(pineal) < 0.9
    assert 0.4 < np.mean(plexus) < 0.8
    assert all(44 <= p.anatomy.venous_hu <= 70 for p in people)
    assert 0 < np.mean([p.anatomy.frontal_bone > 0 for p in people]) < 0.3


@pytest.mark.parametrize("kind", [*TYPES, "tumour"])
def test_a_bleed_lies_inside_the_head(kind):
    phantom = generate((5, 1), [kind], **SIZE)
    lesion = phantom.lesion > 0
    assert 0.1 < ml(phantom, lesion) < 180
    assert (phantom.intracranial[lesion] > 0).mean() > 0.9
    assert not (lesion & (phantom.mass_effect > 0)).any()
    if kind in ("epidural", "intraparenchymal"):
        assert np.median(phantom.hu[lesion]) > np.median(phantom.hu[phantom.intracranial > 0]) + 12


def test_the_twin_is_the_same_head_without_its_bleed():
    ill, twin = generate((5, 1), ["epidural"], **SIZE), generate((5, 1), ["epidural"], twin=True, **SIZE)
    assert twin.lesion.sum() == 0
    assert np.array_equal(ill.affine, twin.affine)
    apart = (ill.lesion == 0) & (ill.mass_effect == 0) & (ill.intracranial > 0)
    difference = (ill.hu.astype(float) - twin.hu)[apart]
    assert abs(np.median(difference)) < 1  # HU
    assert difference.std() > 2  # other noise
    assert np.median((ill.hu.astype(float) - twin.hu)[ill.lesion > 0]) > 15


def test_a_large_bleed_moves_the_midline_less_where_there_is_room():
    deep = torch.full((3,), 60.0)
    shifts = []
    for reserve in (0.0, 0.6):
        lesions = [draw_subdural(np.random.default_rng(s), reserve) for s in range(30)]
        shifts.append(np.mean([total_push([x], SEPTUM, deep)[:, 0].abs().mean() for x in lesions]))
    assert shifts[1] < 0.6 * shifts[0]


@pytest.mark.parametrize("kind", KINDS)
def test_surgery_changes_the_scan_where_it_was(kind):
    size = SIZE | {"matrix": 160}  # a catheter is thin
    before, after = generate((5, 2), [], **size), generate((5, 2), [], postoperative=kind, **size)
    changed = np.abs(before.hu.astype(int) - after.hu) > 20
    assert 0.0001 < changed.mean() < 0.1
    bone = before.hu > 400
    if kind == "craniectomy":
        assert (after.hu[bone & changed] < 300).mean() > 0.5
    else:
        assert after.hu[changed & (after.intracranial > 0)].max() > 80


def test_sites_scan_differently():
    sites = VERSIONS[LATEST].sites
    draws = {
        k: [draw_scan(np.random.default_rng(i), np.ones(3), s, 256, 36) for i in range(60)] for k, s in sites.items()
    }
    assert np.mean([s.offset for s in draws["B"]]) - np.mean([s.offset for s in draws["A"]]) > 2  # HU
    assert max(s.thickness for s in draws["B"]) > 6
    assert min(s.thickness for s in draws["B"]) < 2
    assert any(s.affine[1, 2] != 0 for s in draws["A"])  # a tilted gantry
    assert all(s.affine[1, 2] == 0 for s in draws["C"])
    assert np.mean([s.offset for s in draws["C"]]) < -2


def test_one_seed_gives_the_same_bytes(tmp_path):
    recipe = Recipe("x", (1, 2, 3), ("subdural", "contusion"), twin=True, **SIZE)
    for folder in ("a", "b"):
        write_phantom(tmp_path / folder, recipe)
    kinds = ("ct", "lesion", "mass_effect", "intracranial", "twin")
    for kind in kinds:
        first, second = ((tmp_path / f / kind / "x.nii.gz").read_bytes() for f in ("a", "b"))
        assert first == second
    other = generate((1, 2, 4), ["subdural", "contusion"], **SIZE)
    stored = nib.load(tmp_path / "a" / "ct" / "x.nii.gz").get_fdata()
    assert stored.shape != other.hu.shape or not np.array_equal(other.hu, stored)


def test_the_plan_keeps_seeds_and_splits_apart():
    counts = dict.fromkeys(PARTS, 3)
    dev, test = plan(counts, 9), plan(counts, 9, "test")
    seeds = [recipe.seed for _, recipe in dev + test]
    assert len(set(seeds)) == len(seeds) == 6 * len(PARTS)
    assert len({recipe.scan_id for _, recipe in dev}) == 3 * len(PARTS)
    for part, recipe in dev:
        assert (part.label == "1") == bool(recipe.lesions or recipe.postoperative)
        assert part.label != "1" or part.split in ("test", "labelled")
    assert {kind for _, recipe in plan({"test_lesion": 12}, 0) for kind in recipe.lesions} == set(TYPES)
    others = plan({"infarct": 2, "tumour": 1}, 0)
    assert [(p.group, r.lesions, r.scan_id) for p, r in others] == [
        ("other", ("infarct",), "infarct-0000"),
        ("other", ("infarct",), "infarct-0001"),
        ("other", ("tumour",), "tumour-0000"),
    ]


def test_unknown_parts_and_purposes_are_named():
    with pytest.raises(UserError, match="tset_normal"):
        plan({"tset_normal": 3}, 0)
    with pytest.raises(UserError, match="purpose"):
        plan({}, 0, "final")
    with pytest.raises(UserError, match=r"dataset\.version must be one of 3, 4, not 5"):
        PhantomCohort("x", {"train": 1}, version=5)
    with pytest.raises(UserError, match="'c_test_normal' is of a site that version 3 of the phantom has not"):
        PhantomCohort("x", {"c_test_normal": 1}, version=3)


def test_a_cohort_on_disk_is_a_valid_manifest(tmp_path):
    counts = {"train": 1, "test_lesion": 1, "b_test_normal": 1, "craniectomy": 1, "wrong_registration": 1, "motion": 1}
    counts["validation"] = 1
    manifest = PhantomCohort("small", counts, 3, matrix=48, slices=16, twins=True).manifest(tmp_path, 1)
    table = read_manifest(manifest).set_index("scan_id")
    assert list(table["cohort"]) == ["small", "small", "small", "small-b", "small", "small", "small"]
    assert list(table["group"]) == ["normal", "normal", "tbi", "normal", "postoperative", "low_quality", "low_quality"]
    ill = table.loc["epidural-0000"]
    assert ill.lesion_mask
    assert ill.mass_effect_mask
    assert list(table["twin"] != "") == [False] + 6 * [True]  # of all that an evaluation scores
    assert np.loadtxt(table.loc["wrong-registration-0000"].transform_fault).shape == (4, 4)


def test_a_scan_that_is_known_to_be_bad_is_tested_although_it_is_rejected(tmp_path, coarse):
    cohort = PhantomCohort("bad", {"train": 1, "wrong_registration": 1}, 3, matrix=64, slices=20)
    prepared = Study(cohort, coarse, tmp_path).prepare()
    assert list(prepared.quality["verdict"]) == ["accepted", "rejected"]
    assert list(prepared.table["split"]) == ["train", "test"]


def test_best_affine_is_the_pose_of_an_unwarped_head():
    phantom = generate((5, 3), [], warped=False, **SIZE)
    np.testing.assert_allclose(best_affine(phantom.subject, phantom.scan), phantom.scan.pose, atol=1e-3)


def test_recipes_in_place_of_raw_scans_are_prepared_to_the_same_bytes(tmp_path, coarse):
    counts = {"test_lesion": 1, "motion": 1, "wrong_registration": 1}
    prepared = []
    for keep_raw in (True, False):
        cohort = PhantomCohort("kept", counts, 3, matrix=64, slices=20, twins=True, keep_raw=keep_raw)
        prepared.append(Study(cohort, coarse, tmp_path).prepare().folder)
        assert any(cohort.place(tmp_path).parent.rglob("*.nii.gz")) == keep_raw
    raw, lazy = ({p.relative_to(f): p.read_bytes() for p in f.rglob("*.nii.gz")} for f in prepared)
    assert {p.parent.name for p in raw} >= {"image", "lesion_mask", "mass_effect_mask", "twin"}
    assert raw == lazy
    assert (prepared[0] / "manifest.csv").read_text() == (prepared[1] / "manifest.csv").read_text()


def test_the_first_phantom_is_prepared_before_the_others_are_made(tmp_path, coarse, capsys):
    study = Study(PhantomCohort("small", {"train": 2, "test_lesion": 1}, 3, matrix=64, slices=20), coarse, tmp_path)
    study.prepare()
    said = capsys.readouterr().out
    look, others = "first scan to look at: ", "phantom cohort: 3 heads"
    assert said.index(look) < said.index(others) < said.index("prepare: 2 of 3 scans to do")
    assert said.count(look) == 1
    assert Path(said.split(look)[1].splitlines()[0]).stem == "train-0000"
    study.prepare()
    assert look not in capsys.readouterr().out


def test_who_makes_phantoms_keeps_its_threads():
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(3)
        make(Recipe("x", (0, 1), matrix=32, slices=10))
        assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(threads)


def test_a_damaged_recipe_is_an_unreadable_scan(tmp_path):
    (tmp_path / "x.recipe").write_text('{"kind": "ct"}')
    with pytest.raises(UnreadableScan, match="damaged"):
        read_image(tmp_path / "x.recipe")


def test_a_version_decides_what_is_made_and_keeps_a_person_the_same():
    old, new = (generate((5, 0), [], version=v, **SIZE) for v in (3, 4))
    assert old.subject.age == new.subject.age
    assert torch.equal(old.subject.brain_warp, new.subject.brain_warp)
    assert old.subject.folds is None
    assert old.scan.glare == old.scan.overlap == old.subject.cortex == old.subject.fossa == 0
    assert old.scan.lean == (0, 0)
    assert not np.array_equal(old.hu, new.hu)
    assert PhantomCohort("x", {"train": 1}, version=3).key() != PhantomCohort("x", {"train": 1}).key()
    assert {r.version for _, r in PhantomCohort("x", {"train": 1}, version=3).scans} == {3}


def test_folds_are_crisp_sheets_of_fluid_in_the_cortex_alone():
    rng = torch.Generator().manual_seed(0)
    points = torch.tensor([0.0, -18.0, 8.0]) + 60 * torch.nn.functional.normalize(
        torch.randn(4000, 3, generator=rng).abs(), dim=1
    )
    cortex = torch.tensor([[0.7], [0.1], [30.0]]).expand(3, 4000)  # grey, white, mm to the ventricles
    folds = draw_subject(np.random.default_rng(1), VERSIONS[4]).folds
    depth = torch.full((4000,), 8.0)
    narrow, wide = (fold(folds, w, torch.ones(4000), cortex, points, depth)[0] for w in (0.7, 1.6))
    fluid = [1 - maps[:2].sum(0) for maps in (narrow, wide)]
    assert 0.02 < (fluid[0] > 0.5).float().mean() < (fluid[1] > 0.5).float().mean() < 0.6
    assert ((fluid[0] > 0.2) & (fluid[0] < 0.8)).float().mean() < 0.25  # a sheet or none
    deep, _ = fold(folds, 1.6, torch.ones(4000), cortex, points, torch.full((4000,), 40.0))
    torch.testing.assert_close(deep[:2], cortex[:2])
    white = torch.tensor([[0.05], [0.95], [30.0]]).expand(3, 4000)
    torch.testing.assert_close(fold(folds, 1.6, torch.ones(4000), white, points, depth)[0][:2], white[:2])


def test_blood_ends_where_it_ends():
    far = Place(torch.tensor([[-70.0, -18.0, 8.0]]), torch.tensor([0.3]), torch.zeros(1), torch.full((1,), 30.0))
    near = Place(torch.tensor([[65.0, -18.0, 8.0]]), torch.tensor([1.0]), torch.zeros(1), torch.full((1,), 30.0))
    for film in (True, False):
        blood = ExtraAxial((1.0, 0.0, 0.0), 3.0, 40.0, True, 62.0, 0.9, film=film)
        assert float(blood.fraction(near)) == 1
        assert (float(blood.fraction(far)) > 0) == film


def test_an_infarct_is_a_dark_wedge_of_one_side():
    for seed in range(6):
        infarct = draw_infarct(np.random.default_rng(seed), 0.0)
        side = np.sign(infarct.apex[0])
        middle = np.array(infarct.apex) + (0 if infarct.axis is None else 25 * np.array(infarct.axis))
        points = torch.tensor(np.stack([middle, middle * [-1, 1, 1]]), dtype=torch.float32)
        place = Place(points, torch.full((2,), 20.0), torch.tensor([0.0, 0.0]), torch.full((2,), 10.0))
        assert infarct.fraction(place).tolist() == [1, 0], side
        assert 9 <= infarct.hu <= 27
    phantom, healthy = generate((5, 4), ["infarct"], **SIZE), generate((5, 4), [], **SIZE)
    where = phantom.lesion > 0
    assert ml(phantom, where) > 1
    assert np.median((phantom.hu.astype(float) - healthy.hu)[where]) < -5


def test_the_scanner_overlaps_slices_and_spreads_glare():
    rng = np.random.default_rng
    site = VERSIONS[4].sites["A"]
    scan = replace(draw_scan(rng(0), np.ones(3), site, 64, 20), noise=4.0, overlap=0.0, glare=0.0)
    flat = np.zeros(scan.shape, np.float32)

    def next_slice(overlap):
        noise = acquire(flat, replace(scan, overlap=overlap), rng(1)).astype(float)
        return np.corrcoef(noise[..., :-1].ravel(), noise[..., 1:].ravel())[0, 1]

    assert abs(next_slice(0.0)) < 0.03
    assert 0.3 < next_slice(0.7) < 0.6
    bone = flat.copy()
    bone[:20] = 1000.0
    dark, bright = (acquire(bone, replace(scan, glare=g), rng(1)).astype(float)[21].mean() for g in (0.0, 0.1))
    assert bright > dark + 6  # HU, 5 mm from the bone


def test_the_version_of_an_unknown_number_is_refused():
    with pytest.raises(UserError, match="3, 4"):
        version_of(2)
