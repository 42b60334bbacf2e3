import pytest
from accelerate.state import AcceleratorState


@pytest.fixture(autouse=True)
def fresh_accelerator_state():
    """Accelerate keeps its precision and device for the life of a process; every test starts without."""
    yield
    AcceleratorState._reset_state(reset_partial_state=True)
