"""Every feature that a staging model may see can be told to a person."""

import math

import pytest

from hmvnet.staging.features import feature_names
from hmvnet.staging.words import in_words

TOLD = [name for name in feature_names() if "_rule_" not in name]


@pytest.mark.parametrize("name", TOLD)
def test_every_feature_has_words(name):
    words = in_words(name, 1.0)
    assert name not in words and "_" not in words and any(c.isdigit() for c in words)


def test_numbers_are_what_was_measured_and_not_its_logarithm():
    assert in_words("t_log_diameter", math.log1p(30)) == "primary 30 mm in its greatest dimension"
    found = in_words("invasion_inside_lost_log_ml", math.log1p(20 * 0.25))
    assert found == "0.25 mL of bone lost inside the primary"
    assert in_words("invasion_shell_air_share", 0.255).startswith("26%")
    assert in_words("record_performance_status", 2.0) == "Performance Status 2"
