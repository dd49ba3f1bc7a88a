"""The context that keeps any exception of other people's code."""

import pytest

from nnbuild.errors import Caught, raised


def test_caught_keeps_the_exception():
    with Caught() as caught:
        raise LookupError("no codec")
    assert isinstance(caught.error, LookupError)
    assert raised(caught.error) == "LookupError: no codec (test_errors.py, line 10)"
    with Caught() as caught:
        pass
    assert caught.error is None


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit, FileNotFoundError])
def test_caught_raises_what_is_not_for_it(error):
    with pytest.raises(error), Caught(OSError) as caught:
        raise error
    assert caught.error is None
