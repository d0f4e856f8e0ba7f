"""What a user can mend is told in one line."""

from collections.abc import Callable

import pytest

from auditdm_jax.errors import UserError


def expect(call: Callable, *words: str) -> None:
    """The call fails with one line that holds the words, and advice after a semicolon."""
    with pytest.raises(UserError) as caught:
        call()
    message = str(caught.value)
    assert "\n" not in message
    assert ";" in message
    for word in words:
        assert word in message
