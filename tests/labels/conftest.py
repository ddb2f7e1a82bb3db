import pytest
from llm_server import LLMServer


@pytest.fixture
def server():
    with LLMServer().running() as one:
        yield one
    assert not one.faults
