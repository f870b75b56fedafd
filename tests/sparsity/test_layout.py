"""Layouts parse, print and are checked."""

import pytest

from sparsevid.sparsity.layout import parse_layout

VALID = ["28D", "2P 4(1M3S1R1D) 2D", "1P 2(1M2S1R1D) 1D", "1M1S1R1D", "2(2M1S1R2D)", "3P1D", "2P4(1M3S1R1D)2D", "1(1M1R1D)"]


@pytest.mark.parametrize("text", VALID)
def test_print_and_parse_are_inverse(text):
    layout = parse_layout(text)
    assert parse_layout(str(layout)) == layout
    assert parse_layout(str(layout)).kinds == layout.kinds


def test_kinds_and_segments_of_the_paper():
    layout = parse_layout("2P 4(1M3S1R1D) 2D")
    assert layout.kinds == "PP" + "MSSSRD" * 4 + "DD"
    assert str(layout) == "2P 4(1M3S1R1D) 2D"
    assert [(s.sparse, s.stop - s.start) for s in layout.segments] == [
        (False, 2),
        *[(True, 5), (False, 1)] * 3,
        (True, 5),
        (False, 3),
    ]
    assert layout.segments[0].start == 0 and layout.segments[-1].stop == len(layout) == 28


def test_neighbouring_modules_are_two_segments():
    layout = parse_layout("2(1M1S1R) 1D", allow_no_dense=True)
    assert [(s.sparse, s.start, s.stop) for s in layout.segments] == [(True, 0, 3), (True, 3, 6), (False, 6, 7)]


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "empty"),
        ("2X", "unknown layer kind 'X'"),
        ("PP", "cannot read 'PP'"),
        ("2(1M3S", "cannot read"),
        ("0D", "at least one layer"),
        ("0(1D)", "repeated at least once"),
        ("2(D)", "inside"),
        ("2()", "empty group"),
        ("1M2S 2D", "M of layer 0 has no R"),
        ("1M2S", "M of layer 0 has no R"),
        ("1M1S1M1R1D", "M of layer 0 has no R yet"),
        ("1S1D", "no M opens"),
        ("1R1D", "no M opens"),
        ("1M1S2R1D", "layer 3 is R, but no M opens"),
        ("1D 1P", "P layers stand at the bottom only"),
        ("1M1S1R", "no D after the R of layer 2"),
        ("2(1M1S1R) 1D", "no D after the R of layer 2"),
    ],
)
def test_wrong_layouts_are_refused_with_the_reason(text, reason):
    with pytest.raises(ValueError, match="layout") as error:
        parse_layout(text)
    assert reason in str(error.value)
