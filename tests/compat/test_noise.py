"""Noise on the screen."""

import warnings

from luna_fairseq.compat import noise


def test_only_the_noise_is_quiet() -> None:
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        noise.hide_warnings()
        warnings.warn("'pin_memory' argument is set as true but no accelerator is found, then", stacklevel=1)
        warnings.warn("something that matters", stacklevel=1)
    assert [str(w.message) for w in seen] == ["something that matters"]
