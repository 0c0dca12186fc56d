import torch

from anomaly3d.data.people import people


def test_age_and_sex_as_numbers_and_zeros_where_they_are_unknown():
    batch = {"age": torch.tensor([75.0, float("nan"), 25, 50]), "sex": ["F", "M", "", "M"]}
    expected = torch.tensor([[1.0, 1, 1, 0], [0, 0, 0, 1], [-1, 1, 0, 0], [0, 1, 0, 1]])
    torch.testing.assert_close(people(batch), expected)
