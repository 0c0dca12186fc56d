import pytest

from tests.phases.toys import make_toy


@pytest.fixture
def toy():
    return make_toy()
