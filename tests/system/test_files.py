"""Which texts are names of files."""

import pytest

from anomaly3d.system.files import is_name


@pytest.mark.parametrize("text", ["demo", "2024", "kappa-0.1", "a b", "Müller", "-x", "_", "a" * 150])
def test_names(text):
    assert is_name(text)


@pytest.mark.parametrize(
    "text",
    ["", ".", "..", "../x", "a/b", "/etc", "a\\b", "C:x", "a\0b", "a\nb", ".hidden", ".1.x", "a" * 151, "é" * 80],
)
def test_what_leads_elsewhere_or_is_no_name(text):
    assert not is_name(text)
