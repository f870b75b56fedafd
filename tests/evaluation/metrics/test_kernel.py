"""Properties of KID and KVD."""

import itertools

import pytest
import torch
from torch import Tensor

from sparsevid.evaluation.metrics import kernel
from sparsevid.evaluation.metrics.kernel import kid, kvd


def draw(count: int, dim: int, seed: int, shift: float = 0.0) -> Tensor:
    return torch.randn(count, dim, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) + shift


def by_pairs(real: Tensor, fake: Tensor) -> float:
    """The definition, a pair of clips at a time."""

    def k(x: Tensor, y: Tensor) -> float:
        return (float(x @ y) / len(x) + 1) ** 3

    def within(z: Tensor) -> float:
        return sum(k(a, b) for a, b in itertools.permutations(z, 2)) / (len(z) * (len(z) - 1))

    across = sum(k(a, b) for a in real for b in fake) / (len(real) * len(fake))
    return within(real) + within(fake) - 2 * across


@pytest.mark.parametrize(("n", "m", "dim"), [(5, 4, 3), (2, 7, 1), (6, 6, 20)])
def test_kvd_is_its_definition(n, m, dim):
    real, fake = draw(n, dim, 0), draw(m, dim, 1, shift=0.5)
    assert kvd(real, fake) == pytest.approx(by_pairs(real, fake), rel=1e-11)
    assert kvd(real, fake) == pytest.approx(kvd(fake, real), rel=1e-12)


def test_kvd_of_two_points():
    a, b = draw(1, 6, 2), draw(1, 6, 3)

    def k(x, y):
        return ((x * y).mean().item() + 1) ** 3

    assert kvd(a.expand(4, 6), b.expand(9, 6)) == pytest.approx(k(a, a) + k(b, b) - 2 * k(a, b), rel=1e-11)


def test_kvd_does_not_depend_on_how_the_kernel_matrix_is_cut(monkeypatch):
    real, fake = draw(23, 6, 4), draw(17, 6, 5, shift=1.0)
    whole = kvd(real, fake)
    for rows in (1, 5, 22):
        monkeypatch.setattr(kernel, "_ROWS", rows)
        assert kvd(real, fake) == pytest.approx(whole, rel=1e-11)


def test_rotation_changes_nothing():
    real, fake = draw(30, 8, 6), draw(40, 8, 7, shift=0.7)
    rotation = torch.linalg.qr(draw(8, 8, 8)).Q
    assert kvd(real @ rotation, fake @ rotation) == pytest.approx(kvd(real, fake), rel=1e-11)
    assert kid(real @ rotation, fake @ rotation, subsets=3, subset_size=9).value == pytest.approx(
        kid(real, fake, subsets=3, subset_size=9).value, rel=1e-11
    )


def test_kid_of_subsets_that_hold_all_clips_is_kvd():
    real, fake = draw(40, 8, 9), draw(40, 8, 10, shift=0.3)
    found = kid(real, fake, subsets=5)
    assert found.value == pytest.approx(kvd(real, fake), rel=1e-11)
    assert found.std <= 1e-11


def test_subsets_are_of_the_smaller_set_at_most():
    """With two clips of real, drawn always, only the fakes of a subset vary."""
    real, fake = draw(2, 3, 11), draw(3, 3, 12)
    pairs = [kvd(real, fake[list(chosen)]) for chosen in itertools.combinations(range(3), 2)]
    found = kid(real, fake, subsets=2000)
    assert found.value == pytest.approx(sum(pairs) / 3, abs=5 * found.std / 2000**0.5)
    assert min(pairs) - 1e-9 <= found.value <= max(pairs) + 1e-9


def test_the_seed_rules_the_subsets():
    real, fake = draw(50, 4, 13), draw(60, 4, 14)
    options = {"subsets": 6, "subset_size": 20}
    assert kid(real, fake, **options, seed=1) == kid(real, fake, **options, seed=1)
    assert kid(real, fake, **options, seed=1) != kid(real, fake, **options, seed=2)
    assert kid(real, fake, **options).std > 0


def test_sets_of_one_distribution_score_zero_on_average_however_few_clips():
    scores = torch.tensor([kvd(draw(12, 4, 100 + i), draw(12, 4, 500 + i)) for i in range(300)])
    assert abs(scores.mean()) <= 4 * scores.std() / len(scores) ** 0.5
    assert (scores < 0).any()
    assert kvd(draw(300, 4, 15), draw(300, 4, 16, shift=0.5)) > 20 * scores.std() / 25


def test_equals_torch_fidelity():
    public = pytest.importorskip("torch_fidelity.metric_kid", reason="needs torch-fidelity")
    real, fake = draw(40, 8, 17), draw(40, 8, 18, shift=0.3)
    theirs = public.kid_features_to_metric(
        fake, real, kid_subsets=4, kid_subset_size=40, kid_kernel="poly", kid_kernel_poly_degree=3,
        kid_kernel_poly_gamma=None, kid_kernel_poly_coef0=1.0, rng_seed=0, verbose=False,
    )  # fmt: skip
    assert kid(real, fake, subsets=4).value == pytest.approx(theirs[public.KEY_METRIC_KID_MEAN], rel=1e-11)
    assert kvd(real, fake) == pytest.approx(theirs[public.KEY_METRIC_KID_MEAN], rel=1e-11)


@pytest.mark.parametrize(
    ("options", "message"), [({"subsets": 0}, "1 subset or more.*subsets=0"), ({"subset_size": 1}, "subset_size=1")]
)
def test_numbers_out_of_range_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        kid(draw(5, 2, 0), draw(5, 2, 1), **options)


@pytest.mark.parametrize("distance", [kid, kvd])
def test_unusable_features_are_refused_by_name(distance):
    good = draw(5, 2, 0)
    with pytest.raises(ValueError, match="real features: at least 2 clips, got 1"):
        distance(good[:1], good)
    with pytest.raises(ValueError, match="fake features: 5 of 5 clips"):
        distance(good, good * torch.nan)
    with pytest.raises(ValueError, match="same dimension"):
        distance(good, good[:, :1])
